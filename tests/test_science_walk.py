"""Images of science on the way that docs/science.md describes: inspect, fit, probe, predict, finetune, export, ONNX."""

import contextlib
import re

import numpy as np
import pytest
import science_files
import torch
from numpy.testing import assert_allclose
from PIL import Image

from msssl import ImageFolder, MultiView
from msssl.data.pixels.arrays.read import read_array
from msssl.views import MultiCrop, RandomResizedCropFlip

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("pydicom")
CPU = ["--data.num_workers", "0", "--data.batch_size", "8"]
FIT = [
    *("--trainer.accelerator", "cpu", "--trainer.precision", "32", "--trainer.max_epochs", "1"),
    *("--model.backbone", "msssl.ResNet", "--model.backbone.width", "4", "--data.views.n_views", "2"),
]


class Walk:
    """Runs command lines on the images of one folder, each of which must succeed; the run is the only one here."""

    def __init__(self, msssl, folder, data, network):
        self.msssl, self.folder = msssl, folder
        self.data = ["--config", "imagefolder.yaml", "--data.data_dir", folder / "images", *data, *CPU]
        self.network = network

    def __call__(self, command, *options):
        code, out, err = self.msssl(command, *options)
        assert code == 0, err
        return out + err

    def inspect(self):
        output = self("inspect", *self.data)
        assert Image.open(self.folder / "views.png").width > 64
        return output

    def fit(self, *options):
        output = self("fit", *self.data, *FIT, *self.network, *options)
        (self.run,) = (self.folder / "runs").iterdir()
        return output

    def predict(self):
        """Features of each image, by the last part of its path."""
        self("predict", "--ckpt_path", self.run)
        content = np.load(self.run / "features.npz")
        names = [path.rpartition("/")[2] for path in content["path"]]
        return dict(zip(names, content["features"], strict=True))

    def by_the_card(self, values):
        """Features that the ONNX model has of an array (C, H, W), by the lines of its model card alone."""
        folder = self.run / "export-onnx"
        if not folder.exists():
            self("export", "--ckpt_path", self.run, "--format", "onnx")
        np.save(folder / "image.npy", values)
        if values.dtype == np.uint8 and len(values) == 3:
            Image.fromarray(values.transpose(1, 2, 0)).save(folder / "image.png")
        load, prepare = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
        scope = {}
        with contextlib.chdir(folder):
            *load, run = load.strip().splitlines()
            exec("\n".join([*load, prepare, run]), scope)
        return scope["features"][0]


def assert_same(found, expected):
    """To the rounding of ONNX's operations and of the card's six digits."""
    assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".dcm", ""])
def test_xrays_in_dicom(suffix, msssl, tmp_path):
    science_files.xrays(tmp_path / "images", suffix=suffix)
    options = ["--data.views.augmentations", "xray", "--data.channels", "1"]
    walk = Walk(msssl, tmp_path, options, ["--model.backbone.in_channels", "1"])
    output = walk.inspect()
    assert "40 x 40 pixels, 1 channel, uint16, 2 times the bytes of uint8" in output
    assert "--model.in_channels 1" in output
    assert re.search(r"held out for validation: 2 of 12 groups, with 4 images", output)
    assert "window: auto, 0.1 and 99.9 % of the values: " in walk.fit()
    assert "12 groups" in walk("probe", "--ckpt_path", walk.run)
    features = walk.predict()
    for name in (f"000{suffix}", f"003{suffix}"):
        (path,) = (tmp_path / "images" / "train").glob(f"*/{name}")
        assert_same(walk.by_the_card(read_array(path)), features[name])


@pytest.mark.long
def test_xrays_whose_files_have_windows(msssl, tmp_path):
    science_files.xrays(tmp_path / "images", WindowCenter=1800, WindowWidth=2000)
    options = ["--data.views.augmentations", "xray", "--data.channels", "1"]
    walk = Walk(msssl, tmp_path, options, ["--model.backbone.in_channels", "1"])
    assert "window: that of each DICOM file; --data.window gives one for all of them, or auto" in walk.fit()
    features = walk.predict()
    (path,) = (tmp_path / "images" / "train").glob("*/005.dcm")
    shown = read_array(path)  # from 0 to 1 by the window of the file
    assert (shown.min(), shown.max()) == (0, 1)
    assert_same(walk.by_the_card(shown), features["005.dcm"])
    inspected = walk("inspect", *walk.data, "--data.window", "auto")
    assert "uint16" in inspected  # as they are stored, without their windows
    assert "window: auto, 0.1 and 99.9 % of the values: " in inspected


@pytest.mark.long
def test_cells_in_tiff_of_five_channels(msssl, tmp_path):
    science_files.cells(tmp_path / "images", n_train=60, n_test=10)
    options = ["--data.views.augmentations", "microscopy", "--data.val_fraction", "0.35"]
    walk = Walk(msssl, tmp_path, options, ["--model.backbone.in_channels", "5"])
    assert "5: " not in walk.inspect()
    walk.fit()
    assert "test top-1" in walk("probe", "--ckpt_path", walk.run)
    features = walk.predict()
    assert set(features) == {f"{i:03}.tif" for i in range(60, 70)}  # of the test split, where there is one
    (path,) = (tmp_path / "images" / "test").glob("*/061.tif")
    assert_same(walk.by_the_card(tifffile.imread(path)), features["061.tif"])
    tune = ["--labels_per_class", "5", "--draws", "1", "--learning_rates", "1e-3", "--trainer.max_epochs", "1"]
    assert "pretrained" in walk("finetune", "--ckpt_path", walk.run, *tune, "--trainer.accelerator", "cpu")
    assert (walk.run / "finetuned.ckpt").is_file()


@pytest.mark.long
def test_thirteen_bands_in_npy(msssl, tmp_path):
    science_files.bands(tmp_path / "images")
    walk = Walk(msssl, tmp_path, ["--data.views.augmentations", "aerial"], ["--model.backbone.in_channels", "13"])
    assert "CHW is a guess: 1 image of 13 channels, 40 x 40 pixels, in each file" in walk.inspect()
    walk.fit("--online_knn", "OnlineKNN")
    walk("probe", "--ckpt_path", walk.run)
    features = walk.predict()
    (path,) = (tmp_path / "images" / "train").glob("*/007.npy")
    assert_same(walk.by_the_card(np.load(path)), features["007.npy"])
    window = torch.load(walk.run / "last.ckpt", weights_only=True)["preprocess"]["window"]
    walk("fit", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    again = torch.load(walk.run / "last.ckpt", weights_only=True)
    assert (again["epoch"], again["preprocess"]["window"]) == (1, window)


@pytest.mark.long
def test_volumes_slice_by_slice(msssl, tmp_path):
    science_files.volumes(tmp_path / "images")
    walk = Walk(msssl, tmp_path, ["--data.axes", "ZHW", "--data.views.augmentations", "xray"], [])
    assert "25 train, 5 val" in walk.inspect()
    walk.fit()
    features = walk.predict()
    assert set(features) == {f"scan{i}.npy#slice={j}" for i in range(6) for j in range(5)}
    slice_ = np.load(tmp_path / "images" / "scan4.npy")[2:3]  # (1, H, W), which the card repeats
    assert_same(walk.by_the_card(slice_), features["scan4.npy#slice=2"])


@pytest.mark.long
def test_a_large_image_in_tiles(msssl, tmp_path):
    science_files.aerial(tmp_path / "images")
    options = ["--data.tiles", "128", "--data.image_size", "32", "--data.views.augmentations", "aerial"]
    walk = Walk(msssl, tmp_path, options, [])
    output = walk.inspect()
    assert "tiles of train: 96 of 128 pixels in 2 images; 32 are background" in output
    assert "48 train, 48 val" in output
    walk.fit()
    features = walk.predict()
    assert len(features) == 96
    name = "1.png#y=374&x=125"
    tile = np.asarray(Image.open(tmp_path / "images" / "1.png"))[374 : 374 + 128, 125 : 125 + 128]
    assert_same(walk.by_the_card(tile.transpose(2, 0, 1)), features[name])


@pytest.mark.parametrize("storage", ["memory", "cached", "stream"])
def test_the_clean_view_of_five_channels_is_that_of_numpy(storage, tmp_path):
    science_files.cells(tmp_path)
    data = ImageFolder(str(tmp_path), storage=storage, num_workers=0, batch_size=4, image_size=32)
    data.setup()
    windows = np.array(data.window)
    mean, std = (np.array(values).reshape(-1, 1, 1) for values in (data.views.mean, data.views.std))
    (low, high) = windows.T.reshape(2, -1, 1, 1)
    n_images = 0
    for batch in data.test_dataloader():
        paths = [data.images("test").describe(int(index)) for index in batch["index"]]
        clean = data.make_views(batch)["image"]
        for path, stored, image in zip(paths, batch["image"], clean, strict=True):
            values = tifffile.imread(path)
            assert np.array_equal(stored.numpy(), values)
            expected = (((values.astype("float64") - low) / (high - low)).clip(0, 1) - mean) / std
            assert_allclose(image.double().numpy(), expected, rtol=0, atol=1e-6)
            n_images += 1
    assert n_images == 8


def test_views_of_two_sizes_of_five_channels(tmp_path):
    science_files.cells(tmp_path)
    groups = [MultiView(n, [RandomResizedCropFlip((side, side))]) for n, side in ((2, 24), (3, 12))]
    data = ImageFolder(str(tmp_path), num_workers=0, batch_size=4, views=MultiCrop(groups))
    data.setup()
    large, small = data.make_views(next(iter(data.train_dataloader())))["views"]
    assert (large.shape, small.shape) == ((2, 4, 5, 24, 24), (3, 4, 5, 12, 12))
    assert large.mean(dim=(0, 1, 3, 4)).abs().max() < 0.5  # normalised by the statistics of these channels
