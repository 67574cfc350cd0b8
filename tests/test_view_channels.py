"""Views of any number of channels: each augmentation against float64 by hand, and what holds for all views."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from kornia import augmentation as K
from scipy import stats
from test_views import Operations, compilations, equal_rows  # noqa: F401 - the second is a fixture
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from msssl import MultiView
from msssl.views import BlurSolarize, ChannelDrop, IntensityJitter, RandomD4, RandomResizedCropFlip, hashed
from msssl.views.keyed import constant

CHANNELS = [1, 3, 5, 13]
JITTERS = {
    "none": {},
    "brightness": {"brightness": 0.4},
    "contrast": {"contrast": 1.5},  # factors from 0
    "gamma": {"gamma": 0.5},
    "noise": {"noise": 0.1},
    "all": {"brightness": 0.4, "contrast": 0.4, "gamma": 0.3, "noise": 0.05},
}


def images(n, n_channels, height=8, width=6, dtype=torch.float32):
    """In [0, 1], black and white included."""
    made = torch.rand(n, n_channels, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (1.2 * made - 0.1).clamp(0, 1).to(dtype)


def params_of(augmentation, n, size=(8, 6), n_views=2):
    uniforms = torch.rand(n_views, n // n_views, augmentation.n_uniforms, generator=torch.Generator().manual_seed(0))
    return augmentation.make_params(uniforms, size)


def mixed(x):
    """The published map of 32-bit integers, in Python's."""
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) % 2**32
    x = ((x ^ (x >> 15)) * 0x735A2D97) % 2**32
    return x ^ (x >> 15)


def random_bits(seed, counter):
    first, step = (int(word) for word in seed)
    return mixed((first + counter * (step // 2 | 1)) % 2**32)


def jittered(image, seed, n_factors, strengths):
    """A row (C, H, W) as the docstring of `IntensityJitter` says, a pixel at a time."""
    brightness, contrast, gamma, noise = (
        strengths.get(name, 0) for name in ("brightness", "contrast", "gamma", "noise")
    )
    made = image.copy()
    n_channels, height, width = image.shape
    for channel in range(n_channels):
        own = channel % n_factors
        u = [(random_bits(seed, step * n_factors + own) // 256) / 2**24 for step in range(4)]
        b = max(0, 1 - brightness) + u[0] * (1 + brightness - max(0, 1 - brightness))
        c = max(0, 1 - contrast) + u[1] * (1 + contrast - max(0, 1 - contrast))
        g = (1 + gamma) ** (2 * u[2] - 1)
        mean = image[channel].mean()
        for row, column in itertools.product(range(height), range(width)):
            x = min(max(b * (mean + c * (image[channel, row, column] - mean)), 0), 1) ** g
            counter = 4 * n_factors + (own * height + row) * width + column
            z = NormalDist().inv_cdf((random_bits(seed, counter) // 256 + 0.5) / 2**24)
            made[channel, row, column] = min(max(x + noise * u[3] * z, 0), 1)
    return made


@pytest.mark.parametrize("n_channels", CHANNELS)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("strengths", JITTERS.values(), ids=JITTERS)
def test_intensity_jitter_is_what_a_loop_over_pixels_computes(n_channels, per_channel, strengths):
    jitter = IntensityJitter(**strengths, per_channel=per_channel, p_jitter=0.7)
    x, params = images(8, n_channels, dtype=torch.float64), params_of(jitter, 8)
    assert 0 < params["jitter"].sum() < 8
    found = jitter.apply_transform(x, params, jitter.flags)
    for row in range(8):
        expected = x[row].numpy()
        if params["jitter"][row]:
            expected = jittered(expected, params["seeds"][row], n_channels if per_channel else 1, strengths)
        assert_close(found[row], torch.from_numpy(expected), rtol=0, atol=1e-6)  # factors are float32
    single = jitter.apply_transform(x.float(), params, jitter.flags)
    assert_close(single.double(), found, rtol=0, atol=2e-5 if "gamma" in strengths else 1e-6)


def test_factors_have_the_stated_range_and_are_independent():
    jitter = IntensityJitter(0.4, 1.5, gamma=0.5, noise=0.1, per_channel=True)
    factors = jitter._factors(params_of(jitter, 4000), 3)  # (B, 4, C)
    ranges = [(0.6, 1.4), (0.0, 2.5), (1 / 1.5, 1.5), (0.0, 0.1)]
    for i, (low, high) in enumerate(ranges):
        values = factors[:, i].double().flatten()
        values, low, high = (values.log(), math.log(low), math.log(high)) if i == 2 else (values, low, high)
        assert stats.kstest(values.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-6
    correlations = torch.corrcoef(factors.flatten(1).T) - torch.eye(12)
    assert correlations.abs().max() < 5 / math.sqrt(4000)


def test_channels_that_are_equal_stay_equal_unless_each_has_its_own():
    """As where a gray image is repeated three times."""
    gray = images(16, 1)
    for per_channel, equal in ((False, True), (True, False)):
        jitter = IntensityJitter(**JITTERS["all"], per_channel=per_channel)
        params = params_of(jitter, 16)
        made = jitter.apply_transform(gray.expand(-1, 3, -1, -1), params, {})
        spread = made.amax(dim=1) - made.amin(dim=1)
        assert (spread.max() < 1e-6) == equal  # to rounding
    shared = IntensityJitter(**JITTERS["all"])
    assert_close(
        shared.apply_transform(gray.expand(-1, 3, -1, -1), params_of(shared, 16), {})[:, :1],
        shared.apply_transform(gray, params_of(shared, 16), {}),
    )


def test_black_stays_black_without_noise():
    """The background of a fluorescence image."""
    jitter = IntensityJitter(0.8, gamma=1.0, per_channel=True)
    assert jitter(torch.zeros(32, 5, 4, 4)).abs().max() == 0


# Random numbers as a function of a seed and a counter.


def seeds(n, n_views=1):
    uniforms = torch.rand(n_views, n // n_views, hashed.N_UNIFORMS, generator=torch.Generator().manual_seed(3))
    return hashed.seeds_from(uniforms)


def test_hashed_bits_are_those_of_integers_of_any_length():
    of_rows = seeds(5)
    found = hashed.bits(of_rows, 40, start=1000)
    assert found.tolist() == [[random_bits(seed, counter) for counter in range(1000, 1040)] for seed in of_rows]
    largest = torch.full((1, 2), 2**32 - 1)
    assert hashed.bits(largest, 1, start=2**32 - 1).item() == random_bits(largest[0], 2**32 - 1)  # nothing overflows
    uniform = torch.tensor([[[0.5, 1 - 2**-24]]])
    assert hashed.seeds_from(uniform).tolist() == [[mixed(2**23), mixed(2**24 - 1)]]


def test_hashed_numbers_have_the_distributions_that_they_are_named_for():
    noise = hashed.normal(seeds(64), 20_000).double()
    n = noise.numel()
    assert abs(noise.mean()) < 5 / n**0.5
    assert abs(noise.var() - 1) < 5 * (2 / n) ** 0.5
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-6
    assert stats.kstest(hashed.uniform(seeds(64), 20_000).double().flatten().numpy(), "uniform").pvalue > 1e-6
    bits = hashed.bits(seeds(64), 20_000)
    shares = torch.stack([(bits >> place & 1).double().mean() for place in range(32)])
    assert (shares - 0.5).abs().max() < 5 * 0.5 / n**0.5


def test_hashed_numbers_of_rows_pixels_and_views_are_independent():
    n_rows, n = 64, 8192
    noise = hashed.normal(seeds(n_rows, n_views=4), n).double()
    rows = torch.corrcoef(noise) - torch.eye(n_rows, dtype=torch.float64)
    assert rows.abs().max() < 6 / n**0.5  # rows of one view, and of several
    for lag in (1, 2, 8, 64, 90, 4096):  # neighbours in a row, a column, a channel
        assert abs((noise[:, lag:] * noise[:, :-lag]).mean()) < 5 / (n_rows * (n - lag)) ** 0.5
    pixels = torch.corrcoef(hashed.normal(seeds(4096), 64).double().T) - torch.eye(64, dtype=torch.float64)
    assert pixels.abs().max() < 6 / 4096**0.5  # pixels over random seeds
    half = seeds(n_rows)
    half[:, 0] = half[0, 0] + torch.arange(n_rows)  # the second word alone tells rows apart that start alike
    noise = hashed.normal(half, n, start=1).double()
    shifted = torch.fft.irfft(torch.fft.rfft(noise[:1]) * torch.fft.rfft(noise[1:]).conj(), n=n) / n
    assert shifted.abs().max() < 7 / n**0.5  # so no row is another one that is shifted
    assert len({tuple(row) for row in hashed.bits(seeds(2000), 4).tolist()}) == 2000


# Channels that are dropped.


@pytest.mark.parametrize("n_channels", [2, 3, 4, 5, 13])
@pytest.mark.parametrize("most", [0.25, 0.5, 1.0])
def test_channel_drop_replaces_random_channels_by_their_mean(n_channels, most):
    n = 2000
    drop = ChannelDrop(p_drop=[0.8, 0.0], most=most)
    x, params = images(n, n_channels, 3, 4, torch.float64), params_of(drop, n)
    made = drop.apply_transform(x, params, {}).numpy()
    largest = min(max(1, math.floor(most * n_channels)), n_channels - 1)
    dropped = np.zeros((n, n_channels), dtype=bool)
    for row, channel in itertools.product(range(n), range(n_channels)):
        before = x[row, channel].numpy()
        dropped[row, channel] = not np.array_equal(made[row, channel], before)
        if dropped[row, channel]:
            np.testing.assert_allclose(made[row, channel], before.mean(), rtol=1e-12)
    number = dropped.sum(axis=1)
    assert number[n // 2 :].max() == 0  # the second view
    assert 1 <= number.max() == largest < n_channels
    first = number[: n // 2]
    counts = np.bincount(first, minlength=largest + 1)
    expected = np.r_[0.2, np.full(largest, 0.8 / largest)] * len(first)
    assert stats.chisquare(counts, expected).pvalue > 1e-6
    of_channels = dropped.sum(axis=0)
    assert np.ptp(of_channels) < 8 * math.sqrt(of_channels.mean())  # none is preferred


def test_images_of_one_channel_keep_it():
    x = images(32, 1)
    assert torch.equal(ChannelDrop(p_drop=1.0, most=1.0)(x), x)


def test_channels_are_dropped_together_in_all_combinations():
    drop = ChannelDrop(p_drop=1.0)
    x = images(2000, 5)
    changed = (drop.apply_transform(x, params_of(drop, 2000), {}) != x).any(dim=(2, 3))
    assert len(changed.unique(dim=0)) == 5 + 10  # one of five, and two of five


# The symmetries of a square.


def symmetries(image):
    """The 8 of a square image (C, H, W), or the 4 of another one, by NumPy."""
    turned = [np.rot90(image, turns, axes=(1, 2)) for turns in range(4)]
    both = [*turned, *(one[:, :, ::-1] for one in turned)]
    return [one for one in both if one.shape == image.shape]


@pytest.mark.parametrize("n_channels", CHANNELS)
@pytest.mark.parametrize("size", [(6, 6), (5, 5), (4, 6)])
def test_d4_makes_each_symmetry_equally_often(n_channels, size):
    n, d4 = 800, RandomD4()
    image = images(1, n_channels, *size, torch.float64)
    made = d4.apply_transform(image.expand(n, -1, -1, -1), params_of(d4, n, size), {}).numpy()
    expected = symmetries(image[0].numpy())
    assert len(expected) == (8 if size[0] == size[1] else 4)
    counts = [sum(np.array_equal(row, one) for row in made) for one in expected]  # to the bit
    assert sum(counts) == n
    assert stats.chisquare(counts).pvalue > 1e-6


@pytest.mark.parametrize("size", [(8, 8), (6, 8)])
def test_keypoints_follow_the_symmetry(size):
    d4 = K.AugmentationSequential(RandomD4(), data_keys=["input", "keypoints"])
    x = torch.zeros(32, 5, *size)
    x[:, :, 2, 1] = 1
    made, points = d4(x, torch.tensor([1.0, 2.0]).expand(32, 1, 2))
    places = made[:, 0].flatten(1).argmax(dim=1)
    assert_close(points[:, 0], torch.stack([places % size[1], places // size[1]], dim=1).float())
    assert len(places.unique()) == (8 if size[0] == size[1] else 4)
    restored, back = d4.inverse(made, points)
    assert_close(back, torch.tensor([1.0, 2.0]).expand(32, 1, 2))
    assert_close(restored, x, rtol=0, atol=1e-5)


# What holds for all of them.


def alone(name):
    return {
        "intensity": lambda: IntensityJitter(**JITTERS["all"]),
        "each channel": lambda: IntensityJitter(**JITTERS["all"], per_channel=True, p_jitter=0.8),
        "drop": ChannelDrop,
        "d4": RandomD4,
    }[name]()


@pytest.mark.parametrize("n_channels", CHANNELS)
@pytest.mark.parametrize("name", ["intensity", "each channel", "drop", "d4"])
def test_alone_they_are_kornia_augmentations_that_can_be_replayed(name, n_channels):
    augmentation, x = alone(name), images(16, n_channels, 12, 12)
    torch.manual_seed(0)
    found = augmentation(x)
    assert found.shape == x.shape
    assert torch.equal(augmentation(x), found) == (name == "drop" and n_channels == 1)
    torch.manual_seed(0)
    assert torch.equal(augmentation(x), found)
    assert torch.equal(augmentation(x, params=augmentation._params), found)
    both = K.AugmentationSequential(alone(name), K.RandomVerticalFlip(p=0.5), data_keys=["input"])
    made = both(x)
    assert_close(both(x, params=both._params), made)


@pytest.mark.parametrize(
    ("augmentation", "line"),
    [
        (
            IntensityJitter(0.4, 0.3, noise=0.02, per_channel=True),
            "IntensityJitter(brightness=0.4, contrast=0.3, gamma=0.0, noise=0.02, per_channel=True, p_jitter=1.0)",
        ),
        (ChannelDrop(p_drop=[0.5, 0.2]), "ChannelDrop(p_drop=[0.5, 0.2], most=0.5)"),
        (RandomD4(), "RandomD4()"),
    ],
)
def test_a_recipe_names_them_in_a_line(augmentation, line):
    assert MultiView(2, [augmentation]).recipe((8, 8)) == [line]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: IntensityJitter(-0.1), "brightness, contrast, gamma, noise are -0.1, 0.0, 0.0, 0.0"),
        (lambda: IntensityJitter(noise=math.inf), "inf: expected numbers of at least 0"),
        (lambda: IntensityJitter(p_jitter=1.5), "p_jitter is 1.5"),
        (lambda: ChannelDrop(most=0), "most is 0: expected a share"),
        (lambda: ChannelDrop(most=2), "most is 2: expected a share"),
        (lambda: ChannelDrop(p_drop=-1), "p_drop is -1"),
    ],
)
def test_wrong_arguments_are_one_value_error(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def views_of(n_channels, n_views=4, **kwargs):
    """Every augmentation that takes any number of channels."""
    jitters = [IntensityJitter(**JITTERS["all"], per_channel=own, p_jitter=0.8) for own in (True, False)]
    crop = RandomResizedCropFlip((16, 16))
    recipe = [crop, RandomD4(), *jitters, BlurSolarize(3, p_solarize=0.2), ChannelDrop()]
    return MultiView(n_views, recipe, [0.5] * n_channels, [0.25] * n_channels, **kwargs)


def bytes_of(n, n_channels, size=16):
    return torch.arange(n * n_channels * size**2).remainder(251).to(torch.uint8).view(n, n_channels, size, size)


def same_image(n, n_channels):
    return bytes_of(1, n_channels).expand(n, -1, -1, -1)


@pytest.mark.parametrize("n_channels", CHANNELS)
def test_all_views_of_an_image_differ_and_the_key_decides(n_channels):
    views, x = views_of(n_channels), same_image(8, n_channels)
    made = views(x, (0, 0))
    assert made.shape == (4, 8, n_channels, 16, 16)
    assert equal_rows(made, made) == 4 * 8
    assert torch.equal(views(x, (0, 0)), made)
    assert equal_rows(views(x, (0, 1)), made) == 0
    restored = views.denormalize(made)
    assert restored.min() > -1e-6
    assert restored.max() < 1 + 1e-6


@pytest.mark.parametrize("n_channels", CHANNELS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_make_the_views_of_one_process(n_channels, world_size):
    views, x = views_of(n_channels), bytes_of(4 * world_size, n_channels)
    parts = [views(x[4 * rank : 4 * rank + 4], (0, 1), rank, world_size) for rank in range(world_size)]
    assert_close(torch.cat(parts, dim=1), views(x, (0, 1)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("n_channels", CHANNELS)
def test_compiled_views_are_the_eager_ones(n_channels, compilations):  # noqa: F811
    views, x = views_of(n_channels, compile=True), bytes_of(8, n_channels)
    for key in range(3):
        assert_close(views(x, (key,)), views_of(n_channels, compile=False)(x, (key,)), rtol=0, atol=2e-5)
    assert views._compiled.is_compiled
    assert len(compilations) == 1


@pytest.mark.slow
@pytest.mark.parametrize("n_channels", [1, 5])
def test_views_compiled_by_inductor_are_the_eager_ones(n_channels):
    views, x = views_of(n_channels, compile=True), bytes_of(8, n_channels)
    assert_close(views(x, (0,)), views_of(n_channels, compile=False)(x, (0,)), rtol=0, atol=2e-5)
    assert views._compiled.is_compiled


def operations(n_channels, n_views, n):
    views, x = views_of(n_channels, n_views), bytes_of(n, n_channels)
    views(x)  # constants are made once
    with Operations() as mode:
        views(x)
    return mode.names


@pytest.mark.parametrize("n_channels", CHANNELS)
def test_operations_depend_on_neither_views_nor_images_and_wait_for_nothing(n_channels):
    few = operations(n_channels, 2, 8)
    assert len(few) > 50
    assert operations(n_channels, 8, 8) == few == operations(n_channels, 2, 32)
    waits = ("_local_scalar_dense", "item", "nonzero", "equal", "masked_select", "unique", "is_same_size", "tolist")
    assert not [name for name in few if name.split(".")[1] in waits]


# Presets of domains.

CROP = "RandomResizedCropFlip(size=({0}, {0}), scale=({1}, 1.0), ratio=(0.75, 1.3333333333333333), p_flip={2})"
JITTER = "IntensityJitter(brightness=0.4, contrast=0.4, gamma={}, noise={}, per_channel={}, p_jitter=0.8)"
BLUR = "BlurSolarize(kernel_size=23, sigma=(0.1, 2.0), p_blur=0.5, p_solarize={}, threshold=0.5)"
RECIPES = {  # at 224 pixels
    "xray": [CROP.format(224, 0.5, 0.5), JITTER.format(0.4, 0.02, False)],
    "microscopy": [
        *(CROP.format(224, 0.4, 0.0), "RandomD4()", JITTER.format(0.2, 0.02, True)),
        "ChannelDrop(p_drop=0.2, most=0.25)",
    ],
    "aerial": [
        *(CROP.format(224, 0.2, 0.0), "RandomD4()", JITTER.format(0.0, 0.0, False), BLUR.format(0.0)),
        "ChannelDrop(p_drop=0.5, most=0.5)",
    ],
}


@pytest.mark.parametrize("name", RECIPES)
def test_presets_of_domains_are_these(name):
    assert MultiView(2, name).recipe((224, 224)) == RECIPES[name]


def test_photograph_is_vicreg_at_224_with_a_blur_in_proportion_to_the_size():
    assert MultiView(2, "photograph").recipe((224, 224)) == MultiView(2, "vicreg").recipe((224, 224))
    blurs = [MultiView(2, "photograph").steps((side, side))[-1] for side in (1, 56, 448)]
    assert [blur.kernel_size for blur in blurs] == [1, 7, 45]
    assert [blur.sigma for blur in blurs] == [(0.0004, 0.0089), (0.025, 0.5), (0.2, 4.0)]


@pytest.mark.parametrize("name", [*RECIPES, "photograph"])
def test_presets_of_domains_take_their_statistics_from_the_training_images(name):
    assert MultiView(2, name).automatic
    given = MultiView(2, name, mean=[0.3] * 3, std=[0.2] * 3)
    assert not given.automatic
    assert given.mean == (0.3, 0.3, 0.3)


@pytest.mark.parametrize(
    ("name", "n_channels"),
    [*itertools.product(("microscopy", "aerial"), CHANNELS), ("xray", 1), ("xray", 3), ("photograph", 3)],
)
def test_presets_of_domains_make_views_of_their_channels(name, n_channels):
    views = MultiView(3, name, mean=[0.5] * n_channels, std=[0.25] * n_channels)
    made = views(same_image(4, n_channels), (0,))
    assert made.shape == (3, 4, n_channels, 16, 16)
    assert equal_rows(made, made) == 12


@pytest.mark.parametrize(
    ("name", "n_channels", "message"),
    [
        ("xray", 5, "5 channels, and the preset xray takes 1 or 3: take the preset"),
        ("photograph", 5, "5 channels, and the preset photograph takes the 3 of RGB: take the preset microscopy"),
        ("photograph", 1, "1 channel, and the preset photograph takes the 3 of RGB: take the preset grayscale"),
    ],
)
def test_images_of_other_channels_than_the_presets(name, n_channels, message):
    with pytest.raises(ValueError, match=message):
        MultiView(2, name)(bytes_of(2, n_channels))


def plain_views(name, ramp):
    """2,000 views of one image with the values of a ramp: crops and symmetries alone."""
    views = MultiView(4, name, mean=[0.0], std=[1.0])
    recipe = [step for step in views.steps((16, 16)) if isinstance(step, RandomResizedCropFlip | RandomD4)]
    made = MultiView(4, recipe, [0.0], [1.0])(ramp.to(torch.uint8).expand(500, 1, 16, 16), (0,))
    return made.flatten(0, 1)[:, 0]


@pytest.mark.parametrize(("name", "upright"), [("xray", True), ("microscopy", False), ("aerial", False)])
def test_an_xray_stays_upright_and_other_domains_have_no_up(name, upright):
    down = plain_views(name, torch.linspace(40, 200, 16)[:, None])
    if upright:
        assert (down[:, -1] > down[:, 0]).all()
        left = plain_views(name, torch.linspace(40, 200, 16))
        assert (left[..., -1] < left[..., 0]).all(dim=1).float().mean() == pytest.approx(0.5, abs=0.056)
    else:  # the bright side is each of the four equally often
        sides = torch.stack([down[:, -1], down[:, 0], down[..., -1], down[..., 0]]).mean(dim=-1).argmax(dim=0)
        assert_close(sides.bincount() / 2000, torch.full((4,), 0.25), rtol=0, atol=0.05)


def test_an_xray_of_three_equal_channels_stays_gray():
    made = MultiView(4, "xray", mean=[0.5] * 3, std=[0.25] * 3)(bytes_of(8, 1).expand(-1, 3, -1, -1), (0,))
    assert_close(made[:, :, :1].expand(-1, -1, 3, -1, -1), made, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [*RECIPES, "photograph"])
def test_nothing_leaves_a_gpu(name):
    """On tensors without data that say they are on one."""
    from test_views import Devices

    n_channels = 5 if name in ("microscopy", "aerial") else 3
    steps = MultiView(4, name).steps((64, 64))
    with FakeTensorMode(allow_non_fake_inputs=True):
        views = torch.empty(4 * 8, n_channels, 64, 64, device="cuda")
        drawn = [torch.empty(4, 8, step.n_uniforms, device="cuda") for step in steps]
        for step, uniforms in zip(steps, drawn, strict=True):
            step.make_params(uniforms, (64, 64))  # its constants are copied once
        with Devices() as devices:
            for step, uniforms in zip(steps, drawn, strict=True):
                views = step.apply_transform(views, step.make_params(uniforms, (64, 64)), step.flags)
    constant.cache_clear()  # it now holds tensors without data
    assert devices.waits == []
