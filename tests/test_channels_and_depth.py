"""Images of any number of channels and of more than 8 bits: from the file to the views, against NumPy."""

import numpy as np
import pytest
import torch
from deep_images import write_png, write_tiff
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision.transforms.v2 import functional as F

from msssl import ImageFolder, MultiView, MultiViewDataModule
from msssl.data.pixels.pixel_format import PixelFormat
from msssl.data.statistics import find_window
from msssl.views import MultiCrop, Preprocess, RandomResizedCropFlip
from msssl.views.preprocess import in_unit_range

RANDOM = np.random.default_rng(0)
CPU = {"num_workers": 0, "batch_size": 4}


def from_arrays(values, **kwargs):
    """A data module on arrays (n, C, H, W), half of them of each class."""
    tensor = torch.from_numpy(values)
    dataset = TensorDataset(tensor, torch.arange(len(values)) % 2)
    data = MultiViewDataModule.from_datasets(dataset, **{**CPU, "val_fraction": 0.0, **kwargs})
    data.setup()
    return data


def opened(data):
    """All training images of a data module that is not set up yet."""
    data.setup()
    return stored(data)


def stored(data, split="train"):
    return data.images(split)[range(len(data.splits[split]))]["image"]


def of_type(dtype, shape=(12, 5, 8, 8)):
    if dtype == "float32":
        return RANDOM.normal(3, 20, size=shape).astype(dtype)
    return RANDOM.integers(np.iinfo(dtype).max, size=shape).astype(dtype)


@pytest.mark.parametrize("storage", ["memory", "cached", "stream"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [2, 3, 5, 13])
def test_values_are_kept_exactly_and_scaled_by_the_window(tmp_path, storage, dtype, channels):
    values = of_type(dtype, (12, channels, 8, 8))
    data = from_arrays(values, storage=storage, cache_dir=str(tmp_path), window=(-10, 5000))
    images = stored(data)
    assert images.dtype == getattr(torch, dtype)
    assert np.array_equal(images.numpy(), values)
    expected = values / 255.0 if dtype == "uint8" else np.clip((values.astype(float) + 10) / 5010, 0, 1)
    mean, std = expected.mean(axis=(0, 2, 3)), expected.std(axis=(0, 2, 3))
    if channels != 3:  # nobody gave statistics of so many channels
        assert np.allclose(data.views.mean, mean, atol=1e-6)
        assert np.allclose(data.views.std, std, atol=1e-6)
    clean = next(iter(data.evaluation_dataloader("probe")))
    found = data.make_views(clean)["image"].numpy()
    own = np.array([data.views.mean, data.views.std])[..., None, None]
    assert np.allclose(found, (expected[:4] - own[0]) / own[1], atol=2e-5)


def test_many_channels_without_a_size_stay_a_tensor_of_the_user():
    """No copy is made of what is as asked for."""
    values = of_type("uint8")
    dataset = from_arrays(values).datasets["train"]
    assert isinstance(dataset, TensorDataset)


@pytest.mark.parametrize("dtype", ["int16", "int32", "float64", "float16"])
def test_other_numbers_become_float32(dtype):
    values = (RANDOM.normal(size=(8, 2, 4, 4)) * 100).astype(dtype)
    assert np.array_equal(stored(from_arrays(values, window=(0, 1))).numpy(), values.astype("float32"))


def test_integers_that_float32_cannot_hold_are_an_error():
    values = np.full((8, 2, 4, 4), 2**24 + 1, dtype="int32")
    with pytest.raises(ValueError, match=r"image 0 of train cannot be read: 32 of its 32 values are integers beyond"):
        from_arrays(values)


def test_the_automatic_window_is_that_of_each_channel_and_stays_with_the_checkpoint(caplog):
    values = of_type("uint16", (40, 4, 16, 16)) // np.array([1, 2, 4, 8], "u2")[:, None, None]
    data = from_arrays(values, val_fraction=0.2)
    train = values[data.splits["train"].indices.numpy()]
    for channel, (low, high) in enumerate(data.window):
        ordered = np.sort(train[:, channel].ravel())
        assert abs(low - np.quantile(ordered, 0.001)) <= np.diff(ordered[:40]).max()
        assert abs(high - np.quantile(ordered, 0.999)) <= np.diff(ordered[-40:]).max()
    other = from_arrays(values[:8])
    other.load_state_dict(data.state_dict())
    assert other.window == data.window
    assert Preprocess.from_dict(data.preprocess.as_dict()) == data.preprocess
    given = from_arrays(values[:8], window=(0, 9))
    given.load_state_dict(data.state_dict())
    assert given.window == (0, 9)


@pytest.mark.parametrize(("value", "window"), [(7, (7, 8)), (None, (0, 500))])
def test_an_automatic_window_has_a_width(value, window):
    values = np.zeros((8, 2, 8, 8), "uint16") + (value or 0)
    if value is None:  # one bright point
        values[0, :, 0, 0] = 500
    assert find_window(from_arrays(values, window=(0, 1)).images("train"), 0) == (window, window)


def test_windows_of_channels_are_one_for_each():
    images = torch.from_numpy(of_type("uint16", (2, 3, 4, 4)))
    windows = ((0, 100), (50, 1000), (-5, 70000))
    expected = np.stack(
        [
            np.clip((images[:, i].numpy().astype(float) - low) / (high - low), 0, 1)
            for i, (low, high) in enumerate(windows)
        ],
        axis=1,
    )
    assert np.allclose(in_unit_range(images, windows).numpy(), expected, atol=1e-6)
    with pytest.raises(ValueError, match="window has 3 pairs, and images have 2 channels"):
        in_unit_range(images[:, :2], windows)
    with pytest.raises(ValueError, match=r"images are torch.uint16: give window"):
        in_unit_range(images, None)


@pytest.mark.parametrize("channels", [1, 2, 5, 13])
def test_views_of_any_number_of_channels_are_those_of_the_rows_of_all_ranks(channels):
    images = torch.rand(6, channels, 16, 16)
    views = MultiView(4, [RandomResizedCropFlip((8, 8))], mean=[0.5] * channels, std=[0.25] * channels)
    both = views(images, (1, 2))
    assert both.shape == (4, 6, channels, 8, 8)
    parts = [views(images[3 * rank : 3 * rank + 3], (1, 2), rank, 2) for rank in range(2)]
    torch.testing.assert_close(torch.cat(parts, dim=1), both)


def test_views_of_values_in_0_to_1_are_those_of_the_same_bytes():
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    for views in (MultiView(3), MultiCrop([MultiView(2), MultiView(2)])):
        made, of_floats = views(images, (0,)), views(images.float() / 255, (0,))
        torch.testing.assert_close(made, of_floats)


def test_a_large_image_of_many_channels_is_cut_and_resized_like_one_of_8_bits(tmp_path):
    """Each channel of any number type as Pillow resizes a channel of RGB, but for its rounding."""
    ramp = np.linspace(0, 60000, 30 * 40).reshape(30, 40)
    values = np.stack([ramp, ramp[::-1], ramp[:, ::-1]]).astype("uint16")
    found = PixelFormat(size=12).finish_array(values)
    assert found.shape == (3, 12, 12)
    assert found.dtype == np.uint16
    small = PixelFormat(size=12).finish_array((values / 256).round().astype("uint8"))
    assert np.abs(found / 256 - small).max() <= 1
    as_rgb = Image.fromarray((values / 256).round().astype("uint8").transpose(1, 2, 0)).crop((5, 0, 35, 30))
    assert np.array_equal(small.transpose(1, 2, 0), as_rgb.resize((12, 12), Image.Resampling.BILINEAR))


def test_grey_of_rgb_is_that_of_pillow_and_of_repeated_channels_the_same(tmp_path):
    values = RANDOM.integers(256, size=(16, 16, 3)).astype("uint8")
    grey = PixelFormat(channels=1).finish_array(values.transpose(2, 0, 1))
    assert np.abs(grey[0].astype(int) - np.asarray(Image.fromarray(values).convert("L"))).max() <= 1
    repeated = PixelFormat(channels=4).finish_array(grey)
    assert np.array_equal(repeated, np.repeat(grey, 4, axis=0))
    assert np.array_equal(PixelFormat(channels=1).finish_array(np.repeat(grey, 3, axis=0)), grey)


def folder_of(tmp_path, write, n=6):
    for i in range(n):
        path = tmp_path / "train" / f"class {i % 2}"
        path.mkdir(parents=True, exist_ok=True)
        write(path / f"{i}", i)
    return tmp_path


def test_a_folder_of_16_bits_is_kept_at_16(tmp_path, caplog):
    colours = RANDOM.integers(65536, size=(6, 8, 8, 3)).astype("uint16")
    folder = folder_of(tmp_path, lambda path, i: write_png(path.with_suffix(".png"), colours[i], 2))
    data = ImageFolder(str(folder), val_fraction=0.0, **CPU)
    data.setup()
    paths = data.datasets["train"].paths
    of_path = np.stack([colours[int(path[-5])] for path in paths]).transpose(0, 3, 1, 2)
    assert np.array_equal(stored(data).numpy(), of_path)
    assert data.preprocess.dtype == "auto"
    assert len(data.window) == 3
    # A run of version 0.1 says no `dtype`: its images are read at 8 bits, by its window.
    old = ImageFolder(str(folder), val_fraction=0.0, **CPU)
    old.preprocess = Preprocess((0.5,) * 3, (0.25,) * 3, (8, 8), window=(0, 4095))
    old.setup()
    assert stored(old).dtype == torch.uint8
    assert np.array_equal(stored(old).numpy(), np.rint(np.clip(of_path / 4095, 0, 1) * 255))


def test_grey_of_16_bits_has_three_channels_or_the_one_that_is_asked_for(tmp_path):
    grey = RANDOM.integers(4096, size=(6, 8, 8)).astype("uint16")
    folder = folder_of(tmp_path, lambda path, i: write_tiff(path.with_suffix(".tif"), grey[i]))
    for channels in (None, 1):
        data = ImageFolder(str(folder), val_fraction=0.0, channels=channels, **CPU)
        data.setup()
        of_path = np.stack([grey[int(path[-5])] for path in data.datasets["train"].paths])[:, None]
        assert np.array_equal(stored(data).numpy(), np.repeat(of_path, channels or 3, axis=1))


def test_images_of_another_kind_than_the_first_are_named(tmp_path):
    grey = RANDOM.integers(4096, size=(8, 8)).astype("uint16")

    def mixed(path, i):
        if i:
            write_tiff(path.with_suffix(".tif"), grey)
        else:
            Image.fromarray((grey // 16).astype("uint8")).save(path.with_suffix(".png"))

    folder = folder_of(tmp_path, mixed)
    data = ImageFolder(str(folder), val_fraction=0.0, **CPU)
    with pytest.raises(
        ValueError,
        match=r"\d\.tif cannot be used: it is of torch.uint16, another image of torch.uint8; dtype uint8",
    ):
        opened(data)
    data = ImageFolder(str(folder), val_fraction=0.0, dtype="uint8", window=(0, 4095), **CPU)
    data.setup()
    assert stored(data).dtype == torch.uint8
    five = [(torch.zeros(5 if i else 3, 4, 4, dtype=torch.uint8), i % 2) for i in range(8)]
    data = MultiViewDataModule.from_datasets(five, val_fraction=0.0, **CPU)
    with pytest.raises(ValueError, match="image 1 of train cannot be used: it has 5 channels, another image 3"):
        opened(data)
    data = MultiViewDataModule.from_datasets(five, val_fraction=0.0, channels=3, **CPU)
    with pytest.raises(ValueError, match="image 1 of train cannot be read: it has 5 channels, and channels is 3"):
        opened(data)


@pytest.mark.parametrize(
    ("kwargs", "line"),
    [
        ({"channels": 0}, "channels is 0: expected at least 1"),
        ({"dtype": "uint16"}, "dtype is 'uint16': expected one of auto, uint8"),
        ({"window": [(0, 1), (3, 2)]}, "expected the value that becomes black, and a larger one, white"),
        ({"window": [(0, 1), (2, 3)], "dtype": "uint8"}, "window has 2 pairs: with dtype uint8 expected one"),
    ],
)
def test_wrong_arguments_are_named(kwargs, line):
    with pytest.raises(ValueError, match=line):
        ImageFolder(**kwargs)


def test_evaluation_resizes_values_of_any_type_after_the_window():
    images = torch.from_numpy(of_type("uint16", (2, 5, 12, 12)))
    prepared = Preprocess((0.5,) * 5, (0.25,) * 5, (6, 6), window=((0, 65535),) * 5, dtype="auto").evaluate(images)
    expected = F.resize(images.double() / 65535, [6, 6], antialias=True)
    torch.testing.assert_close(prepared.double(), (expected - 0.5) / 0.25, rtol=0, atol=1e-5)
