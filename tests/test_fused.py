"""The fused augmentations, against torchvision's operations on the same parameters and its distributions."""

import math

import kornia.augmentation as K
import pytest
import torch
from kornia.augmentation import AugmentationSequential
from torch.testing import assert_close
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from msssl.views import BlurSolarize, ColorJitterGrayscale, RandomResizedCropFlip

ROWS = 4000
KS = math.sqrt(-math.log(1e-6 / 2) / 2)  # two samples of one distribution: exceeded once in a million times


def uniforms(augmentation, n_views=1, n=ROWS):
    return torch.rand(n_views, n, augmentation.n_uniforms, generator=torch.Generator().manual_seed(0))


def images(n, height, width, dtype=torch.float32):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def ks_distance(a, b):
    """Largest difference of the two samples' distribution functions."""
    both = torch.cat([a, b]).sort().values
    cdfs = [torch.searchsorted(x.sort().values, both, right=True) / len(x) for x in (a, b)]
    return (cdfs[0] - cdfs[1]).abs().max().item()


@pytest.mark.parametrize(
    ("size_in", "size_out"), [((32, 32), (32, 32)), ((40, 24), (16, 20)), ((96, 96), (64, 64)), ((33, 70), (32, 32))]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_warp_is_torchvisions_antialiased_crop_and_flip(size_in, size_out, dtype, tolerance):
    crop = RandomResizedCropFlip(size_out)
    x = images(64, *size_in, dtype)
    params = {
        name: p.to(dtype) if p.is_floating_point() else p
        for name, p in crop.make_params(uniforms(crop, 1, 64), size_in).items()
    }
    found = crop.apply_transform(x, params, crop.flags)
    for row in range(64):
        top, left, height, width = (int(params[name][row]) for name in ("top", "left", "height", "width"))
        expected = F.resized_crop(x[row], top, left, height, width, list(size_out), antialias=True)
        expected = expected.flip(-1) if params["flip"][row] else expected
        assert_close(found[row], expected, rtol=0, atol=tolerance)
    assert 0 < params["flip"].float().mean() < 1


@pytest.mark.parametrize("size", [(32, 32), (20, 60)])
def test_boxes_are_distributed_as_torchvisions(size):
    torch.manual_seed(0)
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    theirs = [v2.RandomResizedCrop(8, scale, ratio).make_params([torch.zeros(3, *size)]) for _ in range(ROWS)]
    theirs = {name: torch.tensor([float(each[name]) for each in theirs]) for name in ("top", "left", "height", "width")}
    crop = RandomResizedCropFlip((8, 8), scale, ratio)
    ours = crop.make_params(uniforms(crop), size)
    bound = KS * math.sqrt(2 / ROWS)  # 0.06
    for name, value in theirs.items():
        assert ks_distance(ours[name], value) < bound, name
    for combine in (torch.mul, torch.div):  # area, aspect ratio
        assert ks_distance(combine(ours["width"], ours["height"]), combine(theirs["width"], theirs["height"])) < bound
    assert ours["flip"].float().mean() == pytest.approx(0.5, abs=5 * 0.5 / ROWS**0.5)
    assert (ours["top"] >= 0).all()
    assert (ours["top"] + ours["height"] <= size[0]).all()
    assert (ours["left"] + ours["width"] <= size[1]).all()


@pytest.mark.parametrize(("size", "box"), [((8, 80), (8, 11, 0, 34)), ((80, 8), (11, 8, 34, 0))])
def test_an_image_that_no_box_fits_gives_its_centre(size, box):
    crop = RandomResizedCropFlip((8, 8), scale=(1.0, 1.0))
    params = crop.make_params(uniforms(crop, 1, 16), size)
    assert [int(params[name].unique()) for name in ("height", "width", "top", "left")] == list(box)


def torchvision_jitter(image, order, factors, hue, grayscale):
    operations = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    for operation in order.tolist():
        image = operations[operation](image, float(factors[operation]))
    image = F.adjust_hue(image, float(hue))
    return F.rgb_to_grayscale(image, num_output_channels=3) if grayscale else image


def test_jitter_is_torchvisions_in_each_order():
    jitter = ColorJitterGrayscale(0.4, 0.4, 0.4, 0.1, p_jitter=0.8, p_grayscale=0.2)
    x = images(200, 8, 8)
    x[0] = 0.5  # no hue
    params = jitter.make_params(uniforms(jitter, 1, 200), (8, 8))
    found = jitter.apply_transform(x, params, {})
    for row in range(200):
        assert_close(found[row], torchvision_jitter(x[row], *(p[row] for p in params.values())), rtol=0, atol=1e-5)
    assert len(params["order"].unique(dim=0)) == 6


def test_jitter_is_distributed_as_torchvisions():
    jitter = ColorJitterGrayscale(0.4, 1.5, 0.4, 0.1, p_jitter=0.8, p_grayscale=0.2)
    params = jitter.make_params(uniforms(jitter), (8, 8))
    gray = params["grayscale"].float().mean()
    assert gray == pytest.approx(0.2, abs=5 * 0.4 / ROWS**0.5)
    jittered = params["factors"][:, 0] != 1
    assert jittered.float().mean() == pytest.approx(0.8, abs=5 * 0.4 / ROWS**0.5)
    assert (params["factors"][~jittered] == 1).all()
    assert (params["hue"][~jittered] == 0).all()
    n = int(jittered.sum())
    torch.manual_seed(0)
    theirs = v2.ColorJitter(0.4, 1.5, 0.4, 0.1)
    values = {"brightness": params["factors"][:, 0], "contrast": params["factors"][:, 1]}
    values |= {"saturation": params["factors"][:, 2], "hue": params["hue"]}
    for name, found in values.items():
        low, high = getattr(theirs, name)
        expected = torch.empty(ROWS).uniform_(low, high)
        assert ks_distance(found[jittered], expected) < KS * math.sqrt(1 / n + 1 / ROWS), name
    orders = params["order"] @ torch.tensor([9, 3, 1])
    counts = orders.unique(return_counts=True)[1]
    assert len(counts) == 6
    assert (counts / ROWS - 1 / 6).abs().max() < 5 * math.sqrt(5 / 36 / ROWS)


def test_blur_and_solarization_are_torchvisions():
    blur = BlurSolarize(5, sigma=(0.1, 2.0), p_blur=0.7, p_solarize=0.3)
    x = images(100, 12, 10)
    params = blur.make_params(uniforms(blur, 1, 100), (12, 10))
    found = blur.apply_transform(x, params, {})
    for row in range(100):
        sigma, blurred, solarized = (params[name][row] for name in ("sigma", "blur", "solarize"))
        expected = F.gaussian_blur(x[row], [5, 5], [float(sigma)] * 2) if blurred else x[row]
        expected = F.solarize(expected, 0.5) if solarized else expected
        near = (expected - 0.5).abs() < 1e-5  # which side of the threshold is rounding
        assert_close(found[row][~near], expected[~near], rtol=0, atol=1e-6)
    assert {(bool(b), bool(s)) for b, s in zip(params["blur"], params["solarize"], strict=True)} == {
        (b, s) for b in (False, True) for s in (False, True)
    }


def test_each_view_has_its_own_probability():
    blur = BlurSolarize(3, p_blur=[1.0, 0.1], p_solarize=[0.0, 0.2])
    params = blur.make_params(uniforms(blur, 4, 1000), (8, 8))
    rates = {name: params[name].view(4, 1000).float().mean(dim=1) for name in ("blur", "solarize")}
    assert_close(rates["blur"], torch.tensor([1.0, 0.1, 1.0, 0.1]), rtol=0, atol=5 * 0.3 / 1000**0.5)
    assert_close(rates["solarize"], torch.tensor([0.0, 0.2, 0.0, 0.2]), rtol=0, atol=5 * 0.4 / 1000**0.5)
    assert rates["solarize"][0] == 0


ALL = {
    "crop": lambda: RandomResizedCropFlip((8, 8)),
    "jitter": lambda: ColorJitterGrayscale(0.4, 0.4, 0.4, 0.1, p_jitter=0.8, p_grayscale=0.2),
    "blur": lambda: BlurSolarize(3, p_solarize=0.2),
}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_alone_they_are_kornia_augmentations(make):
    augmentation, x = make(), images(16, 12, 12)
    torch.manual_seed(0)
    found = augmentation(x)
    assert len(found.flatten(1).unique(dim=0)) == 16
    assert not torch.equal(augmentation(x), found)
    torch.manual_seed(0)
    assert torch.equal(augmentation(x), found)
    assert torch.equal(augmentation(x, params=augmentation._params), found)  # replay
    both = AugmentationSequential(make(), K.RandomVerticalFlip(p=0.5), data_keys=["input"])
    made = both(x)
    assert_close(both(x, params=both._params), made)


def test_keypoints_follow_the_crop():
    crop = AugmentationSequential(RandomResizedCropFlip((32, 32), scale=(0.5, 1.0)), data_keys=["input", "keypoints"])
    x = torch.zeros(32, 1, 32, 32)
    x[:, :, 15:18, 15:18] = 1  # a blob around (16, 16)
    made, points = crop(x, torch.full((32, 1, 2), 16.0))
    grid = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="xy"))
    centre = (made * grid).sum(dim=(2, 3)) / made.sum(dim=(2, 3))
    assert_close(points[:, 0], centre, rtol=0, atol=0.3)  # within a third of a pixel
    restored, back = crop.inverse(made, points)
    assert_close(back, torch.full((32, 1, 2), 16.0), rtol=0, atol=1e-3)
    assert (restored.flatten(1).argmax(dim=1) == 16 * 32 + 16).float().mean() > 0.5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomResizedCropFlip((8, 8), scale=(0.5, 0.1)), r"scale is \(0.5, 0.1\)"),
        (lambda: RandomResizedCropFlip((8, 8), p_flip=1.5), "p_flip is 1.5"),
        (lambda: ColorJitterGrayscale(hue=0.6), "0.6"),
        (lambda: ColorJitterGrayscale(p_jitter=[0.5, -0.1]), r"p_jitter is \[0.5, -0.1\]"),
        (lambda: RandomResizedCropFlip((8, 8), ratio=(0, 1)), r"ratio is \(0, 1\)"),
        (lambda: RandomResizedCropFlip(8), "size is 8"),
        (lambda: RandomResizedCropFlip((0, 8)), r"size is \(0, 8\)"),
        (lambda: RandomResizedCropFlip((16, 16))(images(2, 32, 12)), "images are 32 x 12, smaller than .* 16 x 16"),
        (lambda: ColorJitterGrayscale(float("nan")), "nan"),
        (lambda: BlurSolarize(4), "kernel_size is 4"),
        (lambda: BlurSolarize(3, sigma=(0, 0)), r"sigma is \(0, 0\)"),
        (lambda: BlurSolarize(23)(images(2, 8, 8)), "kernel_size is 23"),
        (
            lambda: ColorJitterGrayscale(saturation=0.4)(images(2, 8, 8)[:, :1]),
            "1 channels: .* brightness and contrast",
        ),
        (lambda: ColorJitterGrayscale(hue=0.1)(images(2, 8, 8)[:, :1]), "1 channels: .* brightness and contrast"),
        (lambda: ColorJitterGrayscale(p_grayscale=0.1)(images(2, 8, 8)[:, :1]), "1 channels: .* brightness and"),
        (lambda: ColorJitterGrayscale(0.4)(images(2, 8, 8)[:, :2]), "2 channels: .* leave it out"),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
