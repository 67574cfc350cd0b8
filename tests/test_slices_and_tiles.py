"""Folders of arrays, slices of volumes and tiles of large images, from the disk to a checkpoint's predictions."""

import csv
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from msssl import ImageFolder
from msssl.data.sets.tiles import Tiles

RANDOM = np.random.default_rng(0)
tifffile = pytest.importorskip("tifffile")
pydicom = pytest.importorskip("pydicom")


def read(folder, **kwargs):
    data = ImageFolder(str(folder), **{"num_workers": 0, "batch_size": 4, "val_fraction": 0.0, **kwargs})
    data.setup()
    return data


def images_of(data, split="probe"):
    """Every image, by its path within the folder."""
    images = data.images(split)
    paths = [images.describe(int(i)).rpartition("/")[2] for i in images.indices]
    return dict(zip(paths, images[range(len(images))]["image"].numpy(), strict=True))


def write_dicom(path, values, patient, window=None):
    """A CT-like file: 12 of 16 bits, with rescale."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.CTImageStorage, pydicom.uid.generate_uid()
    dataset.PatientID, dataset.Modality = patient, "CT"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
    if window is not None:
        dataset.WindowCenter, dataset.WindowWidth = window
    dataset.PixelData = values.astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)


def places(root, n, suffix):
    for i in range(n):
        path = root / "train" / f"class {i % 2}" / f"{i}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path


def test_a_folder_of_five_channels_is_kept_as_it_is(tmp_path):
    values = RANDOM.integers(4096, size=(8, 5, 16, 16)).astype("uint16")
    for array, path in zip(values, places(tmp_path, 8, ".tif"), strict=True):
        tifffile.imwrite(path, array, photometric="minisblack", planarconfig="separate", metadata={"axes": "CYX"})
    found = images_of(read(tmp_path))
    assert all(np.array_equal(found[f"{i}.tif"], values[i]) for i in range(8))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_thirteen_bands_of_numpy(tmp_path, suffix):
    values = RANDOM.normal(size=(8, 13, 40, 40)).astype("float32")
    for array, path in zip(values, places(tmp_path, 8, suffix), strict=True):
        np.save(path, array) if suffix == ".npy" else np.savez_compressed(path, array)
    data = read(tmp_path)
    found = images_of(data)
    assert all(np.array_equal(found[f"{i}{suffix}"], values[i]) for i in range(8))
    assert len(data.window) == len(data.views.mean) == 13


def test_slices_of_a_volume_are_images_of_one_group(tmp_path):
    values = RANDOM.integers(999, size=(10, 6, 16, 16)).astype("uint16")
    for array, path in zip(values, places(tmp_path, 10, ".npy"), strict=True):
        np.save(path, array)
    data = read(tmp_path, axes="ZHW", val_fraction=0.4, channels=1)
    found = images_of(data) | images_of(data, "val")
    assert len(found) == 60
    for i in range(10):
        for slice_ in range(6):
            assert np.array_equal(found[f"{i}.npy#slice={slice_}"], values[i, slice_][None])
    volumes = {split: {path.partition("#")[0] for path in images_of(data, split)} for split in ("probe", "val")}
    assert volumes["val"]
    assert not volumes["probe"] & volumes["val"]


def test_patients_of_dicom_are_in_one_split_and_their_windows_are_used(tmp_path):
    values = RANDOM.integers(4096, size=(24, 16, 16))
    for i, path in enumerate(places(tmp_path, 24, "")):  # as archives name them: without an extension
        write_dicom(path, values[i], f"patient {i // 4}", window=(40, 400))
    data = read(tmp_path, val_fraction=0.3)
    assert data.window == (0, 1)
    groups = data.datasets["train"].groups
    of_split = {split: {groups[i] for i in data.splits[split].indices.tolist()} for split in ("probe", "val")}
    assert of_split["val"]
    assert not of_split["probe"] & of_split["val"]
    found = images_of(data) | images_of(data, "val")
    for i in range(24):
        hu = values[i].astype(float) - 1024
        expected = np.clip((hu - 39.5) / 399 + 0.5, 0, 1)  # PS3.3, C.11.2.1.2
        assert np.allclose(found[str(i)], expected[None], atol=2e-4)
    own = read(tmp_path, window=(-160, 240))
    assert all(np.array_equal(image[0], values[int(name)] - 1024.0) for name, image in images_of(own).items())
    again = ImageFolder(str(tmp_path), num_workers=0, batch_size=4, val_fraction=0.3)
    again.preprocess = data.preprocess
    again.setup()
    assert all(np.array_equal(image, found[name]) for name, image in images_of(again).items())


def test_files_with_and_without_a_window_need_one(tmp_path):
    for i, path in enumerate(places(tmp_path, 8, ".dcm")):
        write_dicom(path, RANDOM.integers(4096, size=(16, 16)), "a", window=(40, 400) if i else None)
    with pytest.raises(ValueError, match=r"\.dcm has a window of its own and .*0\.dcm has none: give window"):
        read(tmp_path)
    assert len(images_of(read(tmp_path, window=(-100, 100)))) == 8


def test_a_patient_in_two_splits_is_an_error(tmp_path):
    for split in ("train", "test"):
        for i in range(4):
            path = tmp_path / split / f"class {i % 2}" / f"{i}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_dicom(path, RANDOM.integers(4096, size=(16, 16)), f"{split if i else 'both'}")
    with pytest.raises(ValueError, match=r"group 'both' is in train .* and in test"):
        read(tmp_path)


def test_a_folder_of_mixed_kinds_is_refused_with_both_named(tmp_path):
    for path in places(tmp_path, 4, ".npy"):
        np.save(path, np.zeros((3, 16, 16), "uint8"))
    for path in places(tmp_path, 6, ".png"):
        Image.new("RGB", (16, 16)).save(path)
    with pytest.raises(ValueError, match=r"images of several kinds: 4 NumPy \(.*0\.npy\) and 6 ordinary \(.*0\.png\)"):
        read(tmp_path)
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path",), *((f"train/class {i % 2}/{i}.png",) for i in range(6))])
    assert len(images_of(read(tmp_path, manifest=str(tmp_path / "list.csv")))) == 6
    with pytest.raises(ValueError, match=r"axes is 'CHW', but the images of .* are no arrays: leave axes out"):
        read(tmp_path, manifest=str(tmp_path / "list.csv"), axes="CHW")


def test_a_bad_file_among_arrays_is_named_or_skipped(tmp_path):
    for path in places(tmp_path, 8, ".npy"):
        np.save(path, RANDOM.normal(size=(2, 40, 40)).astype("float32"))
    bad = tmp_path / "train" / "class 1" / "3.npy"
    bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"3\.npy cannot be read as an image: "):
        images_of(read(tmp_path))
    data = read(tmp_path, on_error="skip")
    assert "3.npy" not in images_of(data)
    assert len(data.skipped["train"]) == 1


# Tiles.


def drawn(height, width, generator=RANDOM):
    return generator.integers(256, size=(height, width, 3)).astype("uint8")


@pytest.mark.parametrize("kind", ["png", "tif", "npy"])
def test_tiles_cover_an_image_and_are_its_pixels(tmp_path, kind):
    whole = {}
    for path in places(tmp_path, 4, f".{kind}"):
        pixels = drawn(70, 100)
        if kind == "png":
            Image.fromarray(pixels).save(path)
        elif kind == "tif":
            tifffile.imwrite(
                path,
                pixels.transpose(2, 0, 1),
                metadata={"axes": "CYX"},
                tile=(16, 16),
                photometric="minisblack",
                planarconfig="separate",
            )
        else:
            np.save(path, pixels)
        whole[path.name] = pixels.transpose(2, 0, 1)
    found = images_of(read(tmp_path, tiles=32))
    assert len(found) == 4 * 3 * 4
    seen = {name: np.zeros(pixels.shape[1:], bool) for name, pixels in whole.items()}
    for path, tile in found.items():
        name, _, fragment = path.partition("#")
        y, x = (int(part.partition("=")[2]) for part in fragment.split("&"))
        assert np.array_equal(tile, whole[name][:, y : y + 32, x : x + 32])
        seen[name][y : y + 32, x : x + 32] = True
    assert all(mask.all() for mask in seen.values())


@pytest.mark.parametrize("length", [32, 33, 63, 64, 65, 100, 1000])
def test_tiles_are_evenly_spread(length):
    starts = Tiles(32, 0.0).starts(length)
    assert starts[0] == 0
    assert starts[-1] == length - 32
    steps = np.diff(starts)
    assert len(starts) == -(-length // 32)
    assert (steps <= 32).all()
    assert np.ptp(steps) <= 1 if len(steps) else True


def test_background_is_left_out_by_the_stated_rule_and_is_kept_on_disk(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="msssl")
    tissue = {}
    for i, path in enumerate(places(tmp_path, 4, ".png")):
        pixels = np.full((96, 128, 3), 240, "uint8") + RANDOM.integers(4, size=(96, 128, 1)).astype("uint8")  # glass
        tissue[path.name] = {(32 * i % 96, 32), (64, 96)}
        for y, x in tissue[path.name]:
            pixels[y : y + 32, x : x + 32] = drawn(32, 32)
        Image.fromarray(pixels).save(path)
    found = images_of(read(tmp_path, tiles=32))
    expected = {f"{name}#y={y}&x={x}" for name, at in tissue.items() for y, x in at}
    assert set(found) == expected
    assert "40 are background (standard deviation below 0.02 of the range)" in caplog.text
    assert len(images_of(read(tmp_path, tiles=32, tile_contrast=0))) == 4 * 12
    (kept,) = [path for path in tmp_path.glob(".msssl/tiles-*.json") if '"left_out": 10' in path.read_text()]
    changed = json.loads(kept.read_text())
    changed[0]["kept"] = [[0, 0]]
    kept.write_text(json.dumps(changed))  # which proves that it is read again, and the images are not
    assert len(images_of(read(tmp_path, tiles=32))) == 7
    Image.fromarray(drawn(96, 128)).save(next(places(tmp_path, 1, ".png")))
    assert len(images_of(read(tmp_path, tiles=32))) == 12 + 6


def test_an_image_of_background_keeps_one_tile(tmp_path):
    for i, path in enumerate(places(tmp_path, 4, ".png")):
        pixels = np.full((64, 64, 3), 7, "uint8")
        pixels[32 + i, 40] = 9
        Image.fromarray(pixels).save(path)
    assert set(images_of(read(tmp_path, tiles=32))) == {f"{i}.png#y=32&x=32" for i in range(4)}


def test_tiles_of_an_image_are_in_one_split_and_may_be_resized(tmp_path):
    for path in places(tmp_path, 8, ".png"):
        Image.fromarray(drawn(64, 64)).save(path)
    data = read(tmp_path, tiles=32, image_size=16, val_fraction=0.25)
    of_split = {split: {path.partition("#")[0] for path in images_of(data, split)} for split in ("probe", "val")}
    assert len(of_split["val"]) == 2
    assert not of_split["probe"] & of_split["val"]
    assert next(iter(images_of(data).values())).shape == (3, 16, 16)


def test_an_image_that_is_smaller_than_a_tile_is_named(tmp_path):
    for i, path in enumerate(places(tmp_path, 4, ".png")):
        Image.fromarray(drawn(64, 64 if i else 20)).save(path)
    with pytest.raises(ValueError, match=r"0\.png.* cannot be read as an image: it has 64 x 20 pixels"):
        images_of(read(tmp_path, tiles=32))
    assert len(images_of(read(tmp_path, tiles=32, on_error="skip"))) == 12


@pytest.mark.parametrize(
    ("kwargs", "line"),
    [
        ({"tiles": 0}, "tiles is 0: expected pixels"),
        ({"tile_contrast": 1.0}, r"tile_contrast is 1.0: expected a share in \[0, 1\)"),
    ],
)
def test_wrong_arguments_are_named(kwargs, line):
    with pytest.raises(ValueError, match=line):
        ImageFolder(**kwargs)


MEMORY = """
import re, sys
from pathlib import Path
from msssl import ImageFolder, MultiView
from msssl.views import RandomResizedCropFlip
def private():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
data = ImageFolder(sys.argv[1], tiles=256, storage="stream", num_workers=0, batch_size=32, val_fraction=0.0,
                   views=MultiView(2, [RandomResizedCropFlip((64, 64))], [0.5] * 3, [0.5] * 3))
data.setup()
most = 0
for batch in data.train_dataloader():
    data.make_views(batch)
    most = max(most, private())
print(len(data.train_dataloader()), most)
"""


@pytest.mark.slow
def test_an_epoch_of_tiles_of_large_images_takes_little_memory(tmp_path):
    """20 images of 4,000 x 4,000 pixels as tiled TIFF, of which `stream` reads each tile alone."""
    block = drawn(250, 250)
    for i in range(20):
        path = tmp_path / "train" / f"{i}.tif"
        path.parent.mkdir(exist_ok=True)
        pixels = np.tile(np.roll(block, i, axis=0), (16, 16, 1)).transpose(2, 0, 1)
        tifffile.imwrite(
            path, pixels, metadata={"axes": "CYX"}, tile=(256, 256), photometric="minisblack", planarconfig="separate"
        )
    output = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    batches, most = map(int, output.stdout.split())
    assert batches == 20 * 16 * 16 // 32
    assert most < 1_000_000_000
