import copy
import gc
import hashlib
import json
import pickle
import subprocess
import sys
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import TINY_IMAGES
from kornia import augmentation as K
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torchvision import transforms as v1
from torchvision.transforms import v2

from msssl import MultiView
from msssl.views import BlurSolarize, ColorJitterGrayscale, MultiCrop, Preprocess, RandomResizedCropFlip
from msssl.views.apply import CompiledRun
from msssl.views.keyed import constant
from msssl.views.presets import PRESETS

FRESH_PROCESS = """
import hashlib, torch, msssl
images = torch.arange(4 * 3 * 16 * 16).remainder(251).to(torch.uint8).view(4, 3, 16, 16)
views = msssl.MultiView(3)(images, (7, 2, 5))
print(hashlib.sha256(views.numpy().tobytes()).hexdigest())
"""


def some_images(n=4, size=16):
    return torch.arange(n * 3 * size * size).remainder(251).to(torch.uint8).view(n, 3, size, size)


def one_image(n, size=16):
    """The same image n times: rows that differ were augmented differently."""
    return some_images(1, size).expand(n, -1, -1, -1)


def equal_rows(a, b):
    """Number of pairs of equal rows, of all pairs of a row (view of an image) of a and one of b."""
    a, b = a.flatten(0, 1).flatten(1), b.flatten(0, 1).flatten(1)
    return int((a[:, None] == b[None]).all(dim=-1).sum())


def sha256(views):
    return hashlib.sha256(views.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("n_views", [2, 5])
def test_views_are_float32_of_shape_knchw_without_gradient(n_views):
    views = MultiView(n_views)(some_images(4))
    assert views.shape == (n_views, 4, 3, 16, 16)
    assert views.dtype == torch.float32
    assert not views.requires_grad
    assert views.isfinite().all()


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return images * self.weight


def test_an_augmentation_with_parameters_gets_no_gradient_either():
    assert not MultiView(2, [Scale()])(some_images()).requires_grad


def test_images_need_not_be_square():
    assert MultiView(2)(some_images(4)[..., :12]).shape == (2, 4, 3, 16, 12)


def test_autocast_changes_nothing():
    views = MultiView(2)(some_images(), (0,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = MultiView(2)(some_images(), (0,))
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, views)


def test_all_views_of_an_image_and_all_rows_differ():
    views = MultiView(4)(one_image(8), (0, 0, 0))
    assert equal_rows(views, views) == 4 * 8  # each with itself only


def test_the_same_key_and_rank_make_the_same_bits():
    views = MultiView(3)(some_images(), (1, 2, 3), rank=1, world_size=2)
    torch.manual_seed(99)  # the global state has no say
    assert torch.equal(MultiView(3)(some_images(), (1, 2, 3), rank=1, world_size=2), views)


@pytest.mark.parametrize(
    ("key", "rank"),
    [((1, 0, 0), 0), ((0, 1, 0), 0), ((0, 0, 1), 0), ((0, 0, 0), 1)],
    ids=["seed", "epoch", "batch", "rank"],
)
def test_another_seed_epoch_batch_or_rank_changes_every_row(key, rank):
    views, images = MultiView(4), one_image(8)
    assert equal_rows(views(images, (0, 0, 0), 0, world_size=2), views(images, key, rank, world_size=2)) == 0


def test_a_fresh_process_makes_the_same_bits():
    run = subprocess.run([sys.executable, "-c", FRESH_PROCESS], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == sha256(MultiView(3)(some_images(), (7, 2, 5)))


@pytest.mark.parametrize("key", [None, (0, 0, 0)])
def test_the_global_random_state_is_left_alone(key):
    before = torch.get_rng_state()
    MultiView()(some_images(), key)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_bare_call_is_keyed_by_the_initial_seed_and_its_own_count():
    images = one_image(4)
    torch.manual_seed(1)
    first = MultiView(2)
    one, two = first(images), first(images)
    torch.manual_seed(1)
    torch.rand(3)  # moves the state, not the initial seed
    again = MultiView(2)
    assert torch.equal(again(images), one)
    assert torch.equal(again(images), two)
    assert equal_rows(one, two) == 0
    torch.manual_seed(2)
    assert equal_rows(MultiView(2)(images), one) == 0


def test_a_call_with_a_key_does_not_count():
    images, views, fresh = one_image(4), MultiView(2), MultiView(2)
    views(images, (0,))
    assert torch.equal(views(images), fresh(images))


def test_normalize_is_the_hand_computed_value_of_a_pixel():
    pixel = torch.tensor([128, 0, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = torch.tensor([(128 / 255 - 0.4914) / 0.2470, -0.4822 / 0.2435, (1 - 0.4465) / 0.2616])
    torch.testing.assert_close(MultiView().evaluate(pixel).flatten(), expected)
    half = MultiView(augmentations=[], mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    torch.testing.assert_close(half.evaluate(pixel).flatten(), torch.tensor([1 / 255, -1.0, 1.0]))
    imagenet = torch.tensor([(128 / 255 - 0.485) / 0.229, -0.456 / 0.224, (1 - 0.406) / 0.225])
    torch.testing.assert_close(MultiView(augmentations=[]).evaluate(pixel).flatten(), imagenet)


def test_denormalize_undoes_normalize():
    views = MultiView()
    restored = views.denormalize(views.evaluate(some_images()))
    torch.testing.assert_close(restored, some_images().float() / 255)
    stacked = views.evaluate(some_images()).expand(3, -1, -1, -1, -1)  # (K, N, C, H, W)
    torch.testing.assert_close(views.denormalize(stacked)[2], some_images().float() / 255)


def test_no_augmentations_give_the_normalized_images_view_major():
    constant = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 4, 4)  # image n is n everywhere
    views = MultiView(3, [])
    made = views(constant)
    assert torch.equal(made, views.evaluate(constant).expand(3, -1, -1, -1, -1))
    for k in range(3):
        for n in range(5):
            torch.testing.assert_close(views.denormalize(made[k, n]), torch.full((3, 4, 4), n / 255))


def test_kornia_modules_run_in_the_given_order():
    views = MultiView(2, [K.RandomHorizontalFlip(p=1.0), K.CenterCrop((16, 8)), K.Resize((16, 16))])
    flipped = some_images().flip(-1)
    expected = K.Resize((16, 16))(K.CenterCrop((16, 8))(flipped.float() / 255))
    torch.testing.assert_close(views.denormalize(views(some_images()))[1], expected)


def test_kornia_modules_draw_for_each_row():
    views = MultiView(4, [K.RandomRotation(90.0, p=1.0), K.ColorJitter(0.4, 0.4, 0.4, 0.1)])(one_image(4))
    assert equal_rows(views, views) == 4 * 4


def test_kornia_modules_may_change_the_size():
    assert MultiView(2, [K.RandomResizedCrop((8, 8), cropping_mode="resample")])(some_images()).shape == (2, 4, 3, 8, 8)


def full(**kwargs):
    """Every fused augmentation, hue, blur and solarization included."""
    jitter = ColorJitterGrayscale(0.4, 0.4, 0.4, 0.1, p_jitter=0.8, p_grayscale=0.2)
    recipe = [RandomResizedCropFlip((16, 16)), jitter, BlurSolarize(3, p_blur=[1.0, 0.1], p_solarize=[0.0, 0.2])]
    return MultiView(augmentations=recipe, **kwargs)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_make_the_views_of_one_process_with_their_images_together(world_size, monkeypatch):
    views, images = full(n_views=4), one_image(4 * world_size)
    drawn = []
    make_params = RandomResizedCropFlip.make_params
    monkeypatch.setattr(
        RandomResizedCropFlip, "make_params", lambda *args: drawn.append(make_params(*args)) or drawn[-1]
    )
    one = views(images, (0, 1, 2))
    parts = [
        views(images[4 * rank : 4 * rank + 4], (0, 1, 2), rank, world_size=world_size) for rank in range(world_size)
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), one, rtol=0, atol=1e-6)
    for name, value in drawn[0].items():
        together = torch.cat([each[name].view(4, 4) for each in drawn[1:]], dim=1)
        assert torch.equal(together.flatten(), value), name
    assert equal_rows(one, one) == 4 * 4 * world_size  # no two alike


def test_ranks_differ_with_stock_modules_too():
    views = MultiView(2, [K.RandomRotation(90.0, p=1.0)])
    assert equal_rows(views(one_image(4), (0,), 0, world_size=2), views(one_image(4), (0,), 1, world_size=2)) == 0


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operations(n_views, n):
    views, images = full(n_views=n_views), some_images(n)
    views(images)  # constants are made once
    with Operations() as mode:
        views(images)
    return mode.names


def test_operations_do_not_depend_on_the_number_of_images_or_views():
    few = len(operations(2, 64))
    assert few > 50
    assert len(operations(2, 256)) == few == len(operations(8, 64))


class Devices(TorchDispatchMode):
    """Names of operations that read a value, or have a tensor off the GPU on their way in or out."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_iter((args, kwargs, out)) if isinstance(each, torch.Tensor)]
        if any(each.device.type != "cuda" for each in tensors) or "_local_scalar_dense" in str(func):
            self.waits.append(str(func))
        return out


@pytest.mark.parametrize("name", ["cifar", "imagenet", "simclr", "barlow", "vicreg"])
def test_nothing_leaves_a_gpu(name):
    """On tensors without data that say they are on one: neither drawing nor applying copies from or to the host."""
    steps = MultiView(4, name).steps((224, 224))
    with FakeTensorMode(allow_non_fake_inputs=True):
        views = torch.empty(4 * 8, 3, 224, 224, device="cuda")
        drawn = [torch.empty(4, 8, step.n_uniforms, device="cuda") for step in steps]
        for step, uniforms in zip(steps, drawn, strict=True):
            step.make_params(uniforms, (224, 224))  # its constants are copied once
        with Devices() as devices:
            for step, uniforms in zip(steps, drawn, strict=True):
                views = step.apply_transform(views, step.make_params(uniforms, (224, 224)), step.flags)
    constant.cache_clear()  # it now holds tensors without data
    assert devices.waits == []


def test_no_operation_waits_for_the_device():
    waits = ("_local_scalar_dense", "item", "nonzero", "equal", "masked_select", "unique", "is_same_size", "tolist")
    assert not [name for name in operations(4, 8) if name.split(".")[1] in waits]


@pytest.fixture
def compilations(monkeypatch):
    """The shapes that were compiled for, by a compiler that takes no time."""
    shapes = []

    def backend(graph, inputs):
        shapes.append(next(tuple(each.shape) for each in inputs if each.dtype == torch.uint8))
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: real(f, dynamic=dynamic, fullgraph=True, backend=backend))
    return shapes


def test_compiled_views_are_the_eager_ones(compilations):
    images, views = some_images(8), full(compile=True)
    for key in range(3):
        torch.testing.assert_close(views(images, (key,)), full(compile=False)(images, (key,)), rtol=0, atol=1e-5)
    assert views._compiled.is_compiled
    assert len(compilations) == 1


@pytest.mark.slow
def test_views_compiled_by_inductor_are_the_eager_ones():
    images, views = some_images(8), full(compile=True)
    torch.testing.assert_close(views(images, (0,)), full(compile=False)(images, (0,)), rtol=0, atol=1e-5)
    assert views._compiled.is_compiled


def crops(compile=True):
    return MultiView(2, [RandomResizedCropFlip((8, 8))], compile=compile)


@torch._dynamo.config.patch(recompile_limit=2)
def test_views_are_compiled_for_a_few_shapes_and_that_is_said_once(compilations, caplog, monkeypatch):
    monkeypatch.setattr(CompiledRun, "most", 2)
    for views in (crops(), crops()):  # torch counts compilations by code, whosever they are
        for n in (2, 3, 4, 5, 2):
            assert torch.equal(views(one_image(n), (n,)), crops(compile=False)(one_image(n), (n,)))
    assert [shape[0] for shape in compilations] == [2, 3, 2, 3]
    said = [record.message for record in caplog.records if record.name.startswith("msssl")]
    assert said == 2 * ["views: compiled for 2 shapes of batches; others run slower, but the same"]


def test_views_are_not_compiled_in_evaluation(compilations):
    views, images = crops(), some_images()
    evaluated = views.eval()(images, (0,))
    assert compilations == []
    assert torch.equal(views.train()(images, (0,)), evaluated)
    assert len(compilations) == 1


@pytest.mark.parametrize("error", [RuntimeError("no C++ compiler\nmore"), torch.OutOfMemoryError("out of memory")])
def test_without_a_compiler_views_are_made_eagerly_and_that_is_said_once(error, monkeypatch, caplog):
    def compile(function, dynamic):
        def fail(*args):
            raise error

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    views, images = full(compile=True), some_images()
    if isinstance(error, torch.OutOfMemoryError):
        with pytest.raises(torch.OutOfMemoryError):
            views(images)
        return
    assert torch.equal(views(images, (0,)), full(compile=False)(images, (0,)))
    views(some_images(2))
    assert [record.message for record in caplog.records] == [
        "views: not compiled, slower but the same: no C++ compiler"
    ]


def test_an_error_of_a_later_step_is_not_one_of_the_compiler(monkeypatch, caplog):
    calls = []

    def compile(function, dynamic):
        def compiled(*args):
            calls.append(args)
            if len(calls) == 3:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return function(*args)

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    views, images = crops(), some_images()
    views(images)
    views(images)
    with pytest.raises(RuntimeError, match="CUDA error"):
        views(images)
    assert caplog.records == []


def test_views_that_were_compiled_can_be_copied_and_saved(compilations):
    views, images = crops(), some_images()
    expected = views(images, (0,))
    for other in (copy.deepcopy(views), pickle.loads(pickle.dumps(views))):
        assert torch.equal(other(images, (0,)), expected)
    assert len(compilations) == 3


@pytest.mark.parametrize("recipe", ["cifar", [RandomResizedCropFlip((8, 8)), K.RandomRotation(10.0)], "multi-crop"])
def test_a_recipe_stays_as_it_is(recipe):
    """Other statistics or smaller crops are those of another recipe."""
    images = some_images()
    views = (
        MultiCrop([crops(compile=False), crops(compile=False)])
        if recipe == "multi-crop"
        else MultiView(2, recipe, mean="auto")
    )
    before, mean = views(images, (0,)), views.mean
    other = views.with_statistics([0.1, 0.2, 0.3], [0.5, 0.25, 0.125])
    assert (other.mean, other.std, other.automatic) == ((0.1, 0.2, 0.3), (0.5, 0.25, 0.125), False)
    made = other(images, (0,))
    if recipe != "multi-crop":
        views.with_side(4)(images, (0,))
        assert views.side is None
    assert views.mean == mean
    groups = (x if isinstance(x, list) else [x] for x in (before, views(images, (0,)), made))
    for one, again, others in zip(*groups, strict=True):
        assert torch.equal(one, again)
        torch.testing.assert_close(other.denormalize(others), views.denormalize(one))


def test_augmentations_are_freed_with_their_views():
    views = MultiView(2, [RandomResizedCropFlip((16, 16))]).with_side(8)
    first, second = views.steps((16, 16)), views.steps((16, 16))
    assert first[0] is second[0]  # compiled code is for the very module
    kept = [weakref.ref(views.augmentations[0]), weakref.ref(first[0])]
    del views, first, second
    gc.collect()
    assert [each() for each in kept] == [None, None]


class Tint(nn.Module):
    """An augmentation with a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("tint", torch.tensor([0.9, 1.0, 0.8]).view(3, 1, 1))

    def forward(self, images):
        return images * self.tint


def test_augmentations_follow_the_images_to_their_device(monkeypatch):
    """To a GPU, with tensors that have no data: mixed devices are an error there too."""
    views = MultiView(2, [Tint()])
    views._draws_checked = True
    monkeypatch.setattr("msssl.views.multi_view._seeded", lambda key, device: nullcontext())
    with FakeTensorMode(allow_non_fake_inputs=True):
        monkeypatch.setattr(MultiView, "_draw", lambda *args: iter(2 * [torch.empty(2, 4, 0, device="cuda")]))
        made = views(torch.empty(4, 3, 16, 16, dtype=torch.uint8, device="cuda"))
    constant.cache_clear()  # it now holds tensors without data
    assert made.device.type == "cuda"
    assert views.augmentations[0].tint.device.type == "cuda"


def test_fused_and_stock_modules_mix():
    recipe = [K.Resize((24, 24)), RandomResizedCropFlip((8, 8)), K.RandomRotation(10.0), ColorJitterGrayscale(0.4)]
    views = MultiView(3, recipe)
    made = views(one_image(4), (1,))
    assert made.shape == (3, 4, 3, 8, 8)
    assert torch.equal(views(one_image(4), (1,)), made)
    assert equal_rows(made, made) == 12


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    views = MultiView(2, name)
    side = PRESETS[name].size or 96
    images = one_image(6, size=max(side, 96))
    made = views(images, (0,))
    assert made.shape == (2, 6, 3, side, side)
    assert made.isfinite().all()
    assert equal_rows(made, made) == 12
    clean = views.evaluate(images)
    assert clean.shape == (6, 3, side, side)
    assert views.denormalize(made).min() > -1e-4
    assert views.denormalize(made).max() < 1 + 1e-4


@pytest.mark.parametrize(
    ("name", "resize", "size"), [("imagenet100", 146, 128), ("imagenet", 256, 224), ("stl10", 64, 64)]
)
def test_evaluation_of_a_preset_with_a_size_takes_the_central_square(name, resize, size):
    images = torch.randint(256, (2, 3, 300, 340), dtype=torch.uint8)
    views = MultiView(2, name)
    whole = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Resize(resize, antialias=True), v2.CenterCrop(size)])
    torch.testing.assert_close(views.denormalize(views.evaluate(images)), whole(images), rtol=0, atol=1e-5)


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
JITTER = "ColorJitterGrayscale(brightness={}, contrast={}, saturation={}, hue={}, p_jitter=0.8, p_grayscale={})"
CROP = "RandomResizedCropFlip(size=({0}, {0}), scale=({1}, 1.0), ratio=(0.75, 1.3333333333333333), p_flip=0.5)"
BLUR = "BlurSolarize(kernel_size={}, sigma=(0.1, 2.0), p_blur={}, p_solarize={}, threshold=0.5)"
RECIPES = {  # of images of 224 pixels, or 32: the steps, mean, std
    ("cifar", 32): (
        [CROP.format(32, 0.08), JITTER.format(0.4, 0.4, 0.4, 0.0, 0.2)],
        ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ),
    ("stl10", 224): (
        [CROP.format(64, 0.2), JITTER.format(0.4, 0.4, 0.4, 0.0, 0.1)],
        ((113.9112 / 255, 112.1515 / 255, 103.6948 / 255), (57.16 / 255, 56.48 / 255, 57.10 / 255)),
    ),
    ("imagenet100", 224): (
        [CROP.format(128, 0.08), JITTER.format(0.4, 0.4, 0.4, 0.1, 0.2), BLUR.format(23, 0.0, 0.2)],
        IMAGENET,
    ),
    ("imagenet", 224): (
        [CROP.format(224, 0.08), JITTER.format(0.4, 0.4, 0.4, 0.1, 0.2), BLUR.format(23, 0.0, 0.2)],
        IMAGENET,
    ),
    ("grayscale", 32): (
        [CROP.format(32, 0.2), JITTER.format(0.4, 0.4, 0.0, 0.0, 0.0)],
        ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    ),
    ("simclr", 224): (
        [CROP.format(224, 0.08), JITTER.format(0.8, 0.8, 0.8, 0.2, 0.2), BLUR.format(23, 0.5, 0.0)],
        IMAGENET,
    ),
    ("simclr", 32): ([CROP.format(32, 0.08), JITTER.format(0.4, 0.4, 0.4, 0.1, 0.2)], IMAGENET),
    ("barlow", 224): (
        [CROP.format(224, 0.08), JITTER.format(0.4, 0.4, 0.2, 0.1, 0.2), BLUR.format(23, [1.0, 0.1], [0.0, 0.2])],
        IMAGENET,
    ),
    ("vicreg", 224): (
        [CROP.format(224, 0.08), JITTER.format(0.4, 0.4, 0.2, 0.1, 0.2), BLUR.format(23, 0.5, 0.1)],
        IMAGENET,
    ),
}


@pytest.mark.parametrize(("name", "size"), RECIPES)
def test_recipes_are_the_published_ones(name, size):
    steps, (mean, std) = RECIPES[name, size]
    views = MultiView(2, name)
    assert [str(step) for step in views.steps((size, size))] == steps
    assert (views.mean, views.std) == (pytest.approx(mean, abs=1e-4), pytest.approx(std, abs=1e-4))


def test_an_image_smaller_than_the_views_of_a_preset():
    with pytest.raises(ValueError, match="images are 32 x 32, but the preset imagenet100 makes views of 128"):
        MultiView(2, "imagenet100")(some_images(2, 32))


def test_multi_crop():
    crops = MultiCrop(
        [
            MultiView(2, [RandomResizedCropFlip((16, 16), scale=(0.3, 1.0))]),
            MultiView(6, [RandomResizedCropFlip((8, 8), scale=(0.05, 0.3))]),
        ]
    )
    made = crops(one_image(4), (0,), rank=1, world_size=2)
    assert crops.n_views == 8
    assert [tuple(group.shape) for group in made] == [(2, 4, 3, 16, 16), (6, 4, 3, 8, 8)]
    again = crops(one_image(4), (0,), rank=1, world_size=2)
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    equal = MultiCrop([MultiView(2, [RandomResizedCropFlip((16, 16))]) for _ in range(2)])(one_image(4), (0,))
    assert equal_rows(*equal) == 0  # the groups draw their own
    mixed = MultiCrop([MultiView(2, [], mean=(0.5,) * 3, std=(0.25,) * 3), MultiView(2, [])])(one_image(4), (0,))
    assert torch.equal(*mixed)  # one mean and std for all
    with pytest.raises(ValueError, match="groups is empty"):
        MultiCrop([])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MultiView(0), "n_views is 0"),
        (lambda: MultiView(augmentations="cifr"), "'cifr'.*'cifar'"),
        (lambda: MultiView(mean=(0.5,)), r"mean is \(0.5,\)"),
        (lambda: MultiView(std=(0.2, 0.0, 0.2)), r"std \(0.2, 0.0, 0.2\)"),
        (lambda: MultiView()(torch.rand(4, 3, 8, 8).double()), r"torch.float64 \(4, 3, 8, 8\)"),
        (lambda: MultiView()(some_images()[0]), r"torch.uint8 \(3, 16, 16\)"),
        (
            lambda: MultiView()(some_images()[:, :2]),
            "2 channels, and the preset cifar takes the 3 of RGB: take the preset microscopy",
        ),
        (
            lambda: MultiView()(some_images()[:, :1]),
            "1 channel, and the preset cifar .* take the preset grayscale or xray, or",
        ),
        (lambda: MultiView()(some_images().repeat(1, 2, 1, 1)[:, :4]), "4 channels, and the preset cifar"),
        (lambda: MultiView().evaluate(some_images()[:, :1]), "1 channel, and the preset cifar"),
        (lambda: MultiView(2, "grayscale")(some_images()[:, :1]), "mean and std are of 3: .* each of the 1, or repeat"),
        (lambda: MultiView(2, "grayscale", [0.5], [0.2])(some_images()), "3 channels, and mean and std are of 1"),
        (lambda: MultiView(2, [])(some_images()[:, :2]), "2 channels, and mean and std are of 3"),
        (
            lambda: MultiView(2, [len]),
            r"augmentations\[0\] is a builtin_function_or_method: expected a torch.nn.Module",
        ),
    ],
)
def test_wrong_arguments_are_one_value_error(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def cifar_views(image):
    """2,000 views of one image; the standard error of a rate is at most sqrt(0.25 / 2000) = 0.011, a bound 5 of it."""
    views, size = MultiView(4), max(image.shape)
    made = views(image.to(torch.uint8).expand(500, 3, size, size), (0, 0, 0))
    return views.denormalize(made).flatten(0, 1)


def test_cifar_makes_a_fifth_of_the_views_gray_and_jitters_four_fifths():
    colour = torch.tensor([200.0, 100.0, 50.0]).view(3, 1, 1)
    views = cifar_views(colour.expand(3, 16, 16))
    assert (views.amax(dim=(2, 3)) - views.amin(dim=(2, 3))).max() < 1e-3  # a crop draws no border
    mean = views.mean(dim=(2, 3))
    gray = (mean - mean[:, :1]).abs().amax(dim=1) < 1e-3
    assert gray.float().mean() == pytest.approx(0.2, abs=0.05)
    unchanged = (mean - colour.flatten() / 255).abs().amax(dim=1) < 1e-3
    assert unchanged.float().mean() == pytest.approx(0.2 * 0.8, abs=0.05)


def test_cifar_flips_half_of_the_views_and_none_upside_down():
    ramp = torch.linspace(40, 160, 16)
    views = cifar_views(ramp)
    assert (views[..., -1] < views[..., 0]).all(dim=2).all(dim=1).float().mean() == pytest.approx(0.5, abs=0.056)
    views = cifar_views(ramp[:, None])
    assert (views[..., -1, :] > views[..., 0, :]).all()


def test_cifar_crops_at_least_8_per_cent_of_the_area():
    # Ramps over x and y in two channels tell a crop's sides; a flat third one tells which views were not recoloured.
    ramp = torch.linspace(0, 255, 32).round()
    image = torch.stack([ramp.expand(32, 32), torch.full((32, 32), 100.0), ramp[:, None].expand(32, 32)])
    views = cifar_views(image)
    plain = views[(views[:, 1] - 100 / 255).abs().amax(dim=(1, 2)) < 1e-3]
    sides = (plain.amax(dim=(2, 3)) - plain.amin(dim=(2, 3)))[:, [0, 2]] * 31 + 1  # in pixels, of 32
    area = sides.prod(dim=1) / 32**2
    assert 0.08 * 0.8 < area.min() < 0.2  # sides are whole pixels, rounded down
    assert 0.9 < area.max() <= 1.001
    assert area.mean() == pytest.approx(0.5, abs=0.1)


def test_one_channel_goes_through_the_preset_for_it():
    images = one_image(8)[:, :1]
    gray = MultiView(3, "grayscale", mean=[0.5], std=[0.25])
    made = gray(images, (0,))
    assert made.shape == (3, 8, 1, 16, 16)
    assert equal_rows(made, made) == 3 * 8
    repeated = MultiView(3, "grayscale")(images.expand(-1, 3, -1, -1), (0,))  # the same, but for rounding of the luma
    torch.testing.assert_close(made.expand(-1, -1, 3, -1, -1), repeated, rtol=0, atol=2e-3)
    assert gray.evaluate(images).shape == (8, 1, 16, 16)


class OncePerBatch(nn.Module):
    """A module of one's own that forgets that a batch holds many images."""

    def forward(self, images):
        return images * (0.5 + torch.rand(1, device=images.device))


class CoinPerBatch(nn.Module):
    def forward(self, images):
        return images.flip(-1) if torch.rand(()) < 0.5 else images


class PerImage(nn.Module):
    """A transform that draws once per call, called for each image."""

    def __init__(self, transform):
        super().__init__()
        self.transform = transform

    def forward(self, images):
        return torch.stack([self.transform(image) for image in images])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ([v2.RandomRotation(90)], r"augmentations\[0\] is RandomRotation .* take kornia.augmentation.RandomRotation"),
        ([v1.RandomHorizontalFlip()], "take kornia.augmentation.RandomHorizontalFlip"),
        ([K.Resize((16, 16)), v2.GaussianBlur(3)], r"augmentations\[1\] is .*kornia.augmentation.RandomGaussianBlur"),
        ([v2.Compose([v2.Resize(8), v2.ColorJitter(0.4)])], r"augmentations\[0\]\[1\] is ColorJitter"),
        ([nn.Sequential(v2.Identity(), v2.AugMix())], "is AugMix of torchvision.* equal: apply it to one image"),
        ([K.RandomRotation(90.0, same_on_batch=True)], r"augmentations\[0\], RandomRotation, has same_on_batch true"),
        ([K.ImageSequential(K.RandomRotation(9.0, same_on_batch=True))], r"augmentations\[0\]\[0\], RandomRotation"),
        ([K.AugmentationSequential(K.RandomRotation(9.0), same_on_batch=True)], "AugmentationSequential, has same"),
        ([RandomResizedCropFlip((8, 8), same_on_batch=True)], "RandomResizedCropFlip, has same_on_batch true"),
    ],
)
def test_a_module_that_is_known_to_draw_once_for_a_batch_is_refused(recipe, message):
    with pytest.raises(ValueError, match=message):
        MultiView(2, recipe)


@pytest.mark.parametrize(
    "recipe",
    [
        [OncePerBatch()],
        [RandomResizedCropFlip((8, 8)), OncePerBatch()],  # which the crop would hide
        [K.RandomRotation(90.0), nn.Sequential(OncePerBatch())],
        [CoinPerBatch()],
        [v2.Lambda(v2.RandomRotation(90))],
        [K.ImageSequential(K.RandomHorizontalFlip(p=1.0), K.RandomVerticalFlip(p=1.0), random_apply=1)],
    ],
)
def test_a_module_that_draws_once_for_a_batch_is_found_out_at_the_first_call(recipe):
    views, state = MultiView(2, recipe), torch.get_rng_state()
    with pytest.raises(ValueError, match="of augmentations draws once for a batch"):
        views(some_images())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "recipe",
    [
        [v2.Resize(12), v2.CenterCrop(8), v2.Grayscale(3)],
        [PerImage(v2.ColorJitter(0.4)), PerImage(v2.RandomRotation(90))],
        [K.AugmentationSequential(K.RandomRotation(90.0), K.RandomGrayscale(p=0.1))],
        [K.ImageSequential(K.ColorJitter(0.4, 0.4, 0.4, 0.1), K.RandomHorizontalFlip(p=0.01))],
        [K.RandomErasing(p=1.0), K.RandomGaussianNoise(p=0.5), nn.Dropout(0.1)],
    ],
)
def test_modules_that_draw_for_each_row_or_not_at_all_are_taken(recipe):
    assert MultiView(3, recipe)(some_images()).shape[:3] == (3, 4, 3)


def test_the_draws_are_tried_at_the_first_call_only():
    class Counting(nn.Module):
        calls = 0

        def forward(self, images):
            self.calls += 1
            return images + torch.rand(len(images), 1, 1, 1)

    module = Counting()
    views, images = MultiView(2, [module]), some_images()
    first = views(images, (1,))
    calls = module.calls
    assert calls > 1
    again = views(images, (1,))
    assert module.calls == calls + 1
    assert torch.equal(first, again)  # the try has no say in what is drawn


def test_transforms_of_torchvision_in_a_config_are_refused_in_one_line(msssl):
    listed = "[{class_path: torchvision.transforms.v2.RandomRotation, init_args: {degrees: 90}}]"
    code, _, err = msssl("fit", "--config", "demo.yaml", *TINY_IMAGES, "--data.views.augmentations", listed)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "augmentations[0] is RandomRotation of torchvision" in err


# What a checkpoint keeps of them.


def test_preprocess_normalises_and_comes_back_from_plain_data():
    mean, std = (0.1, 0.5, 0.9), (0.25, 0.5, 1.0)
    preprocess = Preprocess(mean, std, image_size=(16, 16), window=(0.0, 4095.0), n_views=3, recipe=("a", "b"))
    images = some_images()
    evaluated = preprocess.evaluate(images)
    by_hand = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert evaluated.dtype == torch.float32
    assert_close(evaluated.double(), by_hand, atol=1e-6, rtol=0)
    assert_close(preprocess.denormalize(evaluated), images / 255, atol=1e-6, rtol=0)
    assert Preprocess.from_dict(preprocess.as_dict()) == preprocess
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.as_dict()))) == preprocess


def test_preprocess_resizes_images_of_another_size_to_those_of_the_run():
    """As Pillow does."""
    preprocess = Preprocess((0.0,) * 3, (1.0,) * 3, image_size=(6, 10))
    image = some_images(1, 24)[0]
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((10, 6), Image.Resampling.BILINEAR)
    found = preprocess.evaluate(image[None])[0] * 255
    assert_close(found.permute(1, 2, 0), torch.from_numpy(np.array(resized)).float(), atol=1.01, rtol=0)
    assert preprocess.input_size == (6, 10)
    with pytest.raises(ValueError, match=r"^images are \(1, 1, 24, 24\): expected \(N, 3, H, W\)$"):
        preprocess.evaluate(image[None, :1])


@pytest.mark.parametrize("name", PRESETS)
def test_preprocess_of_a_preset_is_its_evaluation(name):
    views = MultiView(2, name)
    side = 2 * (views.preset.size or 16)
    preprocess = views.preprocess((side, side))
    images = some_images(1, side)
    assert torch.equal(preprocess.evaluate(images), views.evaluate(images))
    assert preprocess.evaluate(images).shape[-2:] == preprocess.input_size
    assert (preprocess.mean, preprocess.std, preprocess.n_views) == (views.mean, views.std, 2)
    assert preprocess.recipe[0].startswith("RandomResizedCropFlip(size=")
    assert not any("\n" in line for line in preprocess.recipe)


def test_the_recipe_of_several_sizes_names_all_of_them():
    groups = [MultiView(n, [RandomResizedCropFlip((side, side))]) for n, side in ((2, 24), (6, 8))]
    large, small = MultiCrop(groups).preprocess((32, 32)).recipe
    assert large.startswith("2 views: RandomResizedCropFlip(size=(24, 24)")
    assert small.startswith("6 views: RandomResizedCropFlip(size=(8, 8)")
