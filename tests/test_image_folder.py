"""A user's own images: formats, orientation, manifests, classes; and what `msssl inspect` finds in them."""

import csv
import logging
import os
import shutil
import struct
import unicodedata
import zlib

import numpy as np
import pytest
import torch
from conftest import NARROW
from deep_images import write_png, write_tiff
from PIL import Image, ImageFile, features
from torchvision.datasets.folder import IMG_EXTENSIONS

from msssl import ImageFolder, MultiView, MultiViewDataModule
from msssl.data.sets.find_images import image_extensions
from msssl.data.sets.folders import list_folders

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255)
QUADRANTS = np.zeros((32, 32, 3), dtype=np.uint8)
QUADRANTS[:16, :16], QUADRANTS[:16, 16:], QUADRANTS[16:, :16], QUADRANTS[16:, 16:] = RED, GREEN, BLUE, WHITE


def read(root, **kwargs):
    data = ImageFolder(str(root), **{"batch_size": 2, "num_workers": 0, "val_fraction": 0.0, **kwargs})
    data.setup()
    return data


def image_of(root, **kwargs):
    """The first of the images, (H, W, 3)."""
    batch = next(iter(read(root, **kwargs).evaluation_dataloader("probe")))
    return batch["image"][0].permute(1, 2, 0).numpy()


def two(root, save):
    root.mkdir(exist_ok=True)
    for i in range(2):
        save(root / str(i))


# Files.


def rgba(image):
    """Colours as they are, and a transparent lower half over a colour of its own."""
    array = np.dstack([np.asarray(image), np.full((32, 32), 255, np.uint8)])
    array[16:] = (9, 9, 9, 0)
    return Image.fromarray(array)


FORMATS = {
    "png": lambda image, path: image.save(f"{path}.PNG"),
    "webp": lambda image, path: image.save(f"{path}.webp", lossless=True),
    "bmp": lambda image, path: image.save(f"{path}.bmp"),
    "tiff": lambda image, path: image.save(f"{path}.tif"),
    "ppm": lambda image, path: image.save(f"{path}.ppm"),
    "palette": lambda image, path: image.quantize(8).save(f"{path}.png"),
    "first frame": lambda image, path: image.quantize(8).save(
        f"{path}.gif", save_all=True, append_images=[Image.new("RGB", (32, 32), RED)]
    ),
    "first page": lambda image, path: image.save(
        f"{path}.tiff", save_all=True, append_images=[Image.new("RGB", (32, 32), RED)]
    ),
    "cmyk": lambda image, path: image.convert("CMYK").save(f"{path}.tiff"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read(tmp_path, name):
    two(tmp_path / "train", lambda path: FORMATS[name](Image.fromarray(QUADRANTS), path))
    assert np.array_equal(image_of(tmp_path), QUADRANTS)


def test_jpegs_of_every_kind_are_read(tmp_path):
    for mode, options in (("RGB", {}), ("RGB", {"progressive": True}), ("CMYK", {})):
        two(
            tmp_path / "train",
            lambda path, mode=mode, options=options: (
                Image.fromarray(QUADRANTS).convert(mode).save(f"{path}.jpeg", quality=100, subsampling=0, **options)
            ),
        )
        assert np.abs(image_of(tmp_path).astype(int) - QUADRANTS).max() <= 4  # rounding, but for the edges' none


@pytest.mark.parametrize("mode", ["RGBA", "RGBA webp", "LA", "P"])
def test_transparent_parts_are_white(tmp_path, mode):
    image = rgba(Image.fromarray(QUADRANTS))
    if mode == "P":
        image = image.convert("RGB").quantize(8)
        image.info["transparency"] = image.getpixel((0, 31))
    if mode == "LA":
        image = image.convert(mode)
    two(tmp_path / "train", lambda path: image.save(f"{path}.{'webp' if 'webp' in mode else 'png'}", lossless=True))
    found = image_of(tmp_path)
    assert (found[16:] == 255).all()
    if mode != "LA":
        assert np.array_equal(found[:16], QUADRANTS[:16])
    else:
        assert np.array_equal(found[:16, :, 0], np.asarray(Image.fromarray(QUADRANTS).convert("L"))[:16])


# What a camera writes (Exif 2.3, tag 0x112) and how to turn an upright image so that it needs that.
ORIENTATIONS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_images_are_turned_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    stored = np.ascontiguousarray(ORIENTATIONS[orientation](QUADRANTS))
    two(tmp_path / "train", lambda path: Image.fromarray(stored).save(f"{path}.png", exif=exif))
    assert np.array_equal(image_of(tmp_path), QUADRANTS)


def exif_with(tag, kind, body, orientation=6):
    """Exif data with an orientation and another entry, whose kind may be one that the tag cannot have."""
    entries = [struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0)]
    entries.append(struct.pack("<HHI", tag, kind, 1) + (body if len(body) == 4 else struct.pack("<I", 8 + 2 + 24 + 4)))
    table = struct.pack("<H", 2) + b"".join(sorted(entries)) + bytes(4)
    return b"Exif\0\0II*\0\x08\0\0\0" + table + (b"" if len(body) == 4 else body)


ODD_EXIF = {
    "sound": exif_with(0x131, 2, b"ab\0\0"),
    "a resolution with a sign": exif_with(0x11A, 10, struct.pack("<ii", -1, 0)),
    "a date that is a number": exif_with(0x132, 12, struct.pack("<d", 1.5)),
    "a maker that is a number": exif_with(0x10F, 11, struct.pack("<f", 1.5)),
    "a unit below 0": exif_with(0x128, 8, struct.pack("<hh", -2, 0)),
    "a unit of 32 bits": exif_with(0x128, 4, struct.pack("<I", 70000)),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("name", ODD_EXIF)
def test_only_the_orientation_is_read_of_what_a_camera_wrote(tmp_path, name, suffix):
    stored = Image.fromarray(np.ascontiguousarray(ORIENTATIONS[6](QUADRANTS)))
    options = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    two(tmp_path / "train", lambda path: stored.save(f"{path}.{suffix}", exif=ODD_EXIF[name], **options))
    assert np.abs(image_of(tmp_path).astype(int) - QUADRANTS).max() <= 4


def test_damaged_exif_data_is_no_damaged_image(tmp_path):
    two(tmp_path / "train", lambda path: Image.fromarray(QUADRANTS).save(f"{path}.png", exif=b"Exif\0\0II*\0\xff\xff"))
    assert np.array_equal(image_of(tmp_path), QUADRANTS)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_tiffs_are_turned_upright_once(tmp_path, orientation, deep):
    stored = np.ascontiguousarray(ORIENTATIONS[orientation](QUADRANTS)).astype(np.uint16 if deep else np.uint8)
    two(tmp_path / "train", lambda path: write_tiff(path.with_suffix(".tif"), stored, t274=orientation))
    assert np.array_equal(image_of(tmp_path, window=(0, 255)), QUADRANTS)


@pytest.mark.parametrize("kind", ["I;16 png", "I;16 tiff", "F tiff"])
def test_a_window_scales_more_than_8_bits(tmp_path, kind):
    mode, suffix = kind.split()
    values = np.linspace(500, 5500, 64).reshape(8, 8).astype(np.uint16 if mode == "I;16" else np.float32)
    two(tmp_path / "train", lambda path: Image.fromarray(values).save(f"{path}.{suffix}"))
    expected = np.clip((values.astype(float) - 1000) / 4000, 0, 1) * 255
    found = image_of(tmp_path, dtype="uint8", window=(1000, 5000))
    assert np.abs(found - np.rint(expected)[..., None]).max() <= 1e-9
    assert found.min() == 0
    assert found.max() == 255


# More than 8 bits a channel.


GREY16 = np.linspace(0, 4095, 64).reshape(8, 8).astype(np.uint16)
COLOUR16 = np.stack([GREY16, GREY16.T, 4095 - GREY16], axis=2)
ALPHA16 = np.where(np.arange(64).reshape(8, 8) % 3 == 0, 0, 65535).astype(np.uint16)
HALF16 = np.full((8, 8), 32768, dtype=np.uint16)


def shown_as(values, alpha=None, window=(0, 4095)):
    """What a window must make of values: RGB, on white."""
    low, high = window
    values = np.clip((values.astype(float) - low) / (high - low), 0, 1)
    values = values if values.ndim == 3 else np.stack([values] * 3, axis=2)
    share = 1 if alpha is None else alpha[..., None] / 65535
    return np.rint(255 * (share * values + 1 - share))


def png(values, colour, *chunks):
    return "png", lambda path: write_png(path, values.reshape(8, 8, -1), colour, *chunks)


def tiff(values, *args, **tags):
    return "tif", lambda path: write_tiff(path, values, *args, **tags)


def pnm(magic, values):
    head = f"{magic} 8 8 4095\n".encode()
    return "ppm", lambda path: path.write_bytes(head + values.astype(">u2").tobytes())


MULTIPLIED = (COLOUR16.astype(float) * HALF16[..., None] / 65535).round().astype(np.uint16)
DEEP = {
    "PNG grey": (png(GREY16, 0), shown_as(GREY16)),
    "PNG grey, a value transparent": (
        png(GREY16, 0, (b"tRNS", struct.pack(">H", 65))),
        shown_as(GREY16, np.where(GREY16 == 65, 0, 65535)),
    ),
    "PNG grey with alpha": (png(np.dstack([GREY16, ALPHA16]), 4), shown_as(GREY16, ALPHA16)),
    "PNG RGB": (png(COLOUR16, 2), shown_as(COLOUR16)),
    "PNG RGB, a colour transparent": (
        png(COLOUR16, 2, (b"tRNS", struct.pack(">HHH", 0, 0, 4095))),
        shown_as(COLOUR16, np.where((COLOUR16 == (0, 0, 4095)).all(axis=2), 0, 65535)),
    ),
    "PNG RGBA": (png(np.dstack([COLOUR16, HALF16]), 6), shown_as(COLOUR16, HALF16)),
    "PGM": (pnm("P5", GREY16), shown_as(GREY16)),
    "PPM": (pnm("P6", COLOUR16), shown_as(COLOUR16)),
}
for _order in "<>":
    for _compressed in (False, True):
        _name = f"TIFF{' compressed' if _compressed else ''} {_order}"
        _layout = (_order, _compressed)
        DEEP |= {
            f"{_name} grey": (tiff(GREY16, *_layout), shown_as(GREY16)),
            f"{_name} RGB": (tiff(COLOUR16, *_layout), shown_as(COLOUR16)),
            f"{_name} RGBA": (tiff(np.dstack([COLOUR16, HALF16]), *_layout, t338=2), shown_as(COLOUR16, HALF16)),
            f"{_name} RGBA multiplied": (
                tiff(np.dstack([MULTIPLIED, HALF16]), *_layout, t338=1),
                shown_as(COLOUR16, HALF16),
            ),
            f"{_name} RGB and more": (tiff(np.dstack([COLOUR16, HALF16]), *_layout, t338=0), shown_as(COLOUR16)),
            f"{_name} int16": (tiff(GREY16.astype("i2") - 99, *_layout), shown_as(GREY16.astype(int) - 99)),
            f"{_name} int32": (tiff(GREY16.astype("i4") - 99, *_layout), shown_as(GREY16.astype(int) - 99)),
            f"{_name} float": (tiff(GREY16.astype("f4") / 3, *_layout), shown_as(GREY16.astype("f4") / 3)),
        }


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_are_read_as_they_are_and_seen_through_the_window(tmp_path, name):
    (suffix, write), expected = DEEP[name]
    two(tmp_path / "train", lambda path: write(path.with_suffix(f".{suffix}")))
    found = image_of(tmp_path, dtype="uint8", window=(0, 4095))
    assert np.abs(found - expected).max() <= ("multiplied" in name)  # whose rounding is in the file
    with pytest.raises(ValueError, match=rf"0\.{suffix} cannot be read as an image: it has more than 8 bits"):
        read(tmp_path, dtype="uint8").train_dataloader()


def test_unsigned_32_bits_do_not_turn_negative(tmp_path):
    values = GREY16.astype("u4") * 2**20
    two(tmp_path / "train", lambda path: write_tiff(path.with_suffix(".tif"), values))
    assert np.array_equal(image_of(tmp_path, dtype="uint8", window=(0, 4095 * 2**20)), shown_as(GREY16))


def cmyk16(path):
    write_tiff(path, np.dstack([COLOUR16, GREY16]), t262=5)


def planar(path):
    write_tiff(path, COLOUR16, planar=True)


def planar_and_compressed(path):
    write_tiff(path, COLOUR16, compressed=True, planar=True)


def text_of_16_bits(path):
    path.write_text("P3 8 8 4095\n" + " ".join(map(str, COLOUR16.flatten().tolist())))


@pytest.mark.parametrize("write", [cmyk16, planar, planar_and_compressed, text_of_16_bits])
def test_what_can_only_be_read_at_8_bits_is_refused(tmp_path, write):
    two(tmp_path / "train", lambda path: write(path.with_suffix(".ppm" if write is text_of_16_bits else ".tif")))
    with pytest.raises(ValueError, match="it has more than 8 bits per channel in a form that can only be read at 8"):
        read(tmp_path, window=(0, 4095)).train_dataloader()


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        (GREY16 // 2, r"values 0 to 2047\): .* such as window: \[0, 2047\]"),
        (GREY16, r"values 0 to 4095\): .* such as window: \[0, 4095\]"),
        (GREY16 * 16, r"values 0 to 65520\): .* such as window: \[0, 65535\]"),
        (GREY16.astype("i2") - 1024, r"values -1024 to 3071\): .* such as window: \[-1024, 3071\]"),
        (GREY16.astype("f4") / 8190, r"values 0 to 0.5\): .* such as window: \[0, 1\]"),
        (GREY16.astype("f4") - 5, r"values -5 to 4090\): .* such as window: \[-5, 4090\]"),
        (np.zeros((8, 8), "f4") + 7, r"values 7 to 7\): .* such as window: \[7, 8\]"),
    ],
)
def test_the_hint_names_the_values_and_a_window_for_them(tmp_path, values, hint):
    two(tmp_path / "train", lambda path: write_tiff(path.with_suffix(".tif"), values))
    with pytest.raises(ValueError, match=hint):
        read(tmp_path, dtype="uint8").train_dataloader()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_an_error_that_names_the_file(tmp_path, wrong):
    values = GREY16.astype("f4")
    two(tmp_path / "train", lambda path: write_tiff(path.with_suffix(".tif"), values))
    values[3, 4] = wrong
    write_tiff(tmp_path / "train" / "2.tif", values)
    for window in ((0, 4095), None):
        with pytest.raises(
            ValueError, match=r"2\.tif cannot be read as an image: 1 of its 64 values are NaN or inf|0\.tif"
        ):
            read(tmp_path, window=window).train_dataloader()
    data = read(tmp_path, window=(0, 4095), on_error="skip")
    assert list(data.skipped["train"]) == [2]
    assert len(data.splits["train"]) == 2


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_goes_from_black_to_white(tmp_path, bits):
    levels = np.linspace(0, 255, 2**bits).round()
    values = np.arange(64).reshape(8, 8) % 2**bits
    packed = np.packbits(np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., -bits:].reshape(8, -1), axis=1)

    def write(path):
        header = struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0)
        parts = (
            (b"IHDR", header),
            (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))),
            (b"IEND", b""),
        )
        chunk = (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in parts
        )
        path.with_suffix(".png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk))

    two(tmp_path / "train", write)
    assert np.array_equal(image_of(tmp_path)[..., 0], levels[values])


def test_large_jpegs_are_read_at_a_lower_resolution_that_looks_the_same(tmp_path):
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(256, size=(12, 16, 3), dtype=np.uint8)).resize((1600, 1200), 3)
    two(tmp_path / "train", lambda path: image.save(f"{path}.jpg", quality=95))
    whole = image.crop((200, 0, 1400, 1200)).resize((64, 64), Image.Resampling.BILINEAR)
    difference = np.abs(image_of(tmp_path, image_size=64).astype(int) - np.asarray(whole))
    assert difference.mean() < 1
    assert difference.max() < 10  # at the crop's edge, where the whole image would be seen beyond it


@pytest.mark.parametrize(("width", "height"), [(90, 40), (40, 90), (41, 40), (40, 40), (3, 900)])
def test_the_square_is_the_centre(tmp_path, width, height):
    """A ramp along the longer side: the centre square's mean is the ramp's middle, whatever the size."""
    long = np.linspace(0, 255, max(width, height))
    ramp = np.tile(long, (height, 1)) if width >= height else np.tile(long[:, None], (1, width))
    image = Image.fromarray(np.repeat(ramp[..., None], 3, axis=2).astype(np.uint8))
    two(tmp_path / "train", lambda path: image.save(f"{path}.png"))
    found = image_of(tmp_path, image_size=10)
    assert found.shape == (10, 10, 3)
    assert abs(found.mean() - 127) < 1.5
    assert found.max() - found.min() <= min(width, height) / max(width, height) * 255 + 2


# Which files.


def test_a_folder_of_photographs_is_a_training_set_without_labels(tmp_path, caplog):
    two(tmp_path / "photos", lambda path: Image.fromarray(QUADRANTS).save(f"{path}.png"))
    (tmp_path / "photos" / "._0.png").write_bytes(b"what macOS leaves on other disks")
    (tmp_path / "photos" / ".thumbnails").mkdir()
    (tmp_path / "photos" / ".thumbnails" / "0.png").write_bytes(b"")
    (tmp_path / "photos" / "2025" / "May").mkdir(parents=True)
    with caplog.at_level(logging.INFO, logger="msssl"), pytest.raises(ValueError, match="one class folder, '2025'"):
        read(tmp_path / "photos")
    (tmp_path / "photos" / "2025" / "May").rmdir()
    (tmp_path / "photos" / "2025").rmdir()
    with caplog.at_level(logging.INFO, logger="msssl"):
        data = read(tmp_path / "photos")
    assert len(data.splits["train"]) == 2
    assert data.num_classes is None
    assert "photos holds no folder train, so that all of its images are one set, named train" in caplog.text


def save(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path)


def labelled(root, *folders, n=2):
    """So many images in each of the folders; each pixel of an image is its number."""
    for i in range(n * len(folders)):
        save(root / folders[i // n] / f"{i}.png", i)


@pytest.fixture
def told(caplog):
    """What msssl says while it reads a folder."""
    caplog.set_level(logging.INFO, logger="msssl")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "valid", "Testing"), ("TRAIN", "validation", "test")]
)
def test_splits_may_have_any_of_their_names(tmp_path, names):
    labelled(tmp_path, *(f"{split}/{name}" for split in names for name in ("ape", "bee")))
    data = read(tmp_path, val_fraction=0.5)
    found = [values(data.images(split)) for split in ("train", "val", "test")]
    assert found == [{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}]


def test_a_folder_beside_the_splits_is_named(tmp_path, told):
    labelled(tmp_path, "train/ape", "train/bee", "dev/ape", "masks/bee", ".cache/x", "@eaDir/x")
    read(tmp_path)
    assert f"not read, as they are neither train, val nor test: dev, masks in {tmp_path}" in told()


def test_the_log_names_classes_and_images_below_their_folders(tmp_path, told):
    labelled(tmp_path / "pacs", *(f"P{i}/study" for i in range(30)))
    save(tmp_path / "pacs" / "P7" / "more.png")
    read(tmp_path / "pacs", val_fraction=0.1)
    assert "classes: 30, by folder: P0, P1, P10, P11, P12, ...; 2 (P0) to 3 (P7) training images each" in told()
    nested = tmp_path / "pacs" / "P0" / "study" / "0.png"
    assert f"60 images are in folders below a class folder, and of its class, such as {nested}" in told()
    assert "labels: none" in told()


@pytest.mark.parametrize("nothing", ["none", None])
def test_folders_need_not_be_classes_and_may_be_groups(tmp_path, nothing, told):
    """An export of a hospital: patient/study/image."""
    labelled(tmp_path / "pacs", *(f"P{i}/study{j}" for i in range(10) for j in range(2)))
    data = read(tmp_path / "pacs", labels=nothing, group_level=1, val_fraction=0.25)
    assert data.num_classes is None
    train, val = values(data.images("train")), values(data.images("val"))
    assert train | val == set(range(40))
    assert len(val) in (8, 12)  # as near to 10 as whole patients of 4 images allow
    assert not {i // 4 for i in train} & {i // 4 for i in val}
    assert "classes" not in told()
    assert read(tmp_path / "pacs", labels=nothing).datasets["train"].groups is None


def test_a_folder_below_that_of_a_class_may_be_the_group(tmp_path, told):
    labelled(tmp_path / "train", *(f"{name}/P{i}/study" for i in range(8) for name in ("sick", "well")), n=3)
    data = read(tmp_path, group_level=2, val_fraction=0.2)
    assert data.num_classes == 2
    groups = data.datasets["train"].groups  # both eyes of P0, say, one of which is sick
    of_split = {split: {groups[i] for i in data.splits[split].indices.tolist()} for split in ("train", "val")}
    assert of_split["train"] | of_split["val"] == {f"P{i}" for i in range(8)}
    assert not of_split["train"] & of_split["val"]
    assert "below a class folder" not in told()  # as the user knows


def test_a_manifest_without_its_labels(scans):
    root, rows = scans
    data = read(root, manifest=write_manifest(root / "list.csv", rows), labels="none", val_fraction=0.1)
    assert data.num_classes is None
    assert len(data.splits["val"]) == 6  # two patients, still whole


# Links, and files of other kinds.


def test_links_to_folders_are_followed_each_folder_once(tmp_path):
    labelled(tmp_path / "elsewhere", "2024", "2025", "bees")
    labelled(tmp_path / "train", "ape")
    ape = tmp_path / "train" / "ape"
    (ape / "more").symlink_to(tmp_path / "elsewhere" / "2024")
    (ape / "more again").symlink_to(tmp_path / "elsewhere" / "2024")
    (tmp_path / "elsewhere" / "2024" / "next").symlink_to("../2025")
    (tmp_path / "train" / "bee").symlink_to(tmp_path / "elsewhere" / "bees")
    for name, loop in {"a": ".", "b": "..", "c": "../..", "d": "../bee/up"}.items():
        (ape / name).symlink_to(loop)
    (tmp_path / "elsewhere" / "bees" / "up").symlink_to(tmp_path / "train")
    data = read(tmp_path)
    assert data.splits["train"].dataset.targets == [0] * 6 + [1] * 2
    assert {path.rpartition("/")[2] for path in data.datasets["train"].paths} == {f"{i}.png" for i in range(6)}


def test_a_folder_that_cannot_be_listed_stops_the_run(tmp_path, monkeypatch):
    labelled(tmp_path / "train", "ape/2024", "bee")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("2024"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="2024"):
        read(tmp_path)


@pytest.mark.parametrize("extension", ["jfif", "jpe", "jp2", "tga", "dib", "mpo", "avif"])
def test_what_pillow_opens_is_read(tmp_path, extension):
    if extension == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = Image.new("RGB", (16, 16), (10, 200, 30))
    kind = {"jfif": "jpeg", "jpe": "jpeg", "jp2": "jpeg2000"}.get(extension, extension)
    two(tmp_path / "train", lambda path: image.save(f"{path}.{extension.upper()}", kind))
    assert np.abs(image_of(tmp_path).astype(int) - (10, 200, 30)).max() <= 4


def test_every_extension_that_counts_as_an_image_is_one_that_pillow_has_a_decoder_for():
    kinds = Image.registered_extensions()
    factories = {kind: factory for kind, (factory, _) in Image.OPEN.items()}
    classes = {kind: factory for kind, factory in factories.items() if isinstance(factory, type)}
    stubs = {kind for kind, factory in classes.items() if issubclass(factory, ImageFile.StubImageFile)}
    assert stubs
    for extension in image_extensions():
        assert kinds[extension] in {*Image.OPEN, "MPO"} - stubs - {"MPEG"}
    assert {*IMG_EXTENSIONS, ".gif"} <= image_extensions()  # those of torchvision


def test_other_kinds_are_counted_and_droppings_are_not(tmp_path, told):
    labelled(tmp_path / "train", "ape", "bee")
    (tmp_path / "train" / "bee" / "3.png").rename(tmp_path / "train" / "bee" / "3.JFIF")
    for name in ("ape/a.h5", "bee/b.H5", "bee/README", "bee/deep/x.heic", "bee/y.pdf", "ape/z.mpg"):
        path = tmp_path / "train" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    droppings = ("ape/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "ape/.@__thumb/0.png", "__MACOSX/0.png", "bee/._3.png")
    for name in (*droppings, "bee/Thumbs.db", "bee/.DS_Store", "#recycle/5.png", "lost+found/x", "bee/desktop.ini"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image")
    data = read(tmp_path)
    assert values(data.images("train")) == {0, 1, 2, 3}
    assert data.num_classes == 2
    assert "kinds of image files: 3 .png, 1 .jfif" in told()
    assert "left out, as Pillow does not read them: 2 .h5, 1 without an extension, 1 .heic, 1 .mpg, 1 .pdf" in told()
    assert not any(name in told() for name in ("eaDir", "MACOSX", "recycle", ".db", ".ini", "DS_Store"))


# Classes that a split lacks, and their names.


def test_a_split_without_some_classes_or_labels_is_said_and_read(tmp_path, told):
    labelled(tmp_path, "train/ape", "train/bee", "train/cow", "val/ape", "test")
    data = read(tmp_path)
    assert f"{tmp_path}: val has no images of 2 of the classes, such as 'bee'" in told()
    assert f"{tmp_path}: the images of test have no labels" in told()
    assert data.num_classes == 3
    assert data.datasets["val"].targets == [0, 0]
    assert data.datasets["test"].targets == [-1, -1]
    assert values(data.images("test")) == {8, 9}


def test_one_folder_in_test_that_is_no_class_has_no_labels(tmp_path, told):
    """As sites of competitions pack them: test/images/*."""
    labelled(tmp_path, "train/ape", "train/bee", "test/images")
    assert read(tmp_path).datasets["test"].targets == [-1, -1]
    assert f"{tmp_path / 'test'}: 'images' is no class of train, so that its images have no label" in told()
    data = read(tmp_path, classes=["ape", "bee"])
    assert len(data.splits["test"]) == 2


NAMES = ["no", "1", "null", "2024", "1.5", "on"]  # what YAML makes something else of
WORDS = "[no, 1, null, 2024, 1.5, on]"


@pytest.mark.parametrize("source", ["folders", "manifest", "file", "list"])
def test_classes_of_any_name(tmp_path, source):
    labelled(tmp_path / "train", *NAMES)
    arguments = {"folders": {}, "list": {"classes": NAMES}, "file": {"classes": str(tmp_path / "names.txt")}}
    (tmp_path / "names.txt").write_text("\ufeff" + "\n".join(NAMES))
    if source == "manifest":
        rows = [(f"train/{NAMES[i // 2]}/{i}.png", NAMES[i // 2]) for i in range(12)]
        arguments["manifest"] = {"manifest": write_manifest(tmp_path / "list.csv", rows, ("path", "label"))}
    data = read(tmp_path, **arguments[source])
    dataset = data.datasets["train"]
    assert sorted(dataset.classes) == sorted(NAMES)
    assert [dataset.classes[label] for label in dataset.targets] == [path.split("/")[-2] for path in dataset.paths]


def test_classes_that_are_words_of_yaml_need_quotes_and_numbers_none(msssl, tmp_path):
    labelled(tmp_path / "images" / "train", *NAMES, n=4)
    code, _, err = inspect(msssl, tmp_path / "images", "--data.classes", "[1, 2024, 'no', \"null\"]")
    assert code == 0, err
    assert "classes: 4, by folder" in err
    code, _, err = inspect(msssl, tmp_path / "images", "--data.classes", WORDS)
    assert code == 2
    assert err.splitlines()[-1].startswith("msssl: error: ")
    assert "classes lists False, which YAML makes of a word such as no, null or 1.0: put the name into quotes" in err


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "zoé") for form in ("NFC", "NFD"))


@pytest.fixture
def two_forms(tmp_path):
    """A class whose name macOS has written in one split and another system in the other."""
    assert COMPOSED != DECOMPOSED
    labelled(tmp_path, f"train/{COMPOSED}", "train/bee", f"test/{DECOMPOSED}", "test/bee")
    if len([*(tmp_path / "test").iterdir()]) != 2 or not (tmp_path / "test" / DECOMPOSED).is_dir():
        pytest.skip("this file system chooses the form itself")
    return tmp_path


def test_names_of_both_unicode_forms_are_one_class(two_forms):
    data = read(two_forms)
    assert data.datasets["train"].classes == ["bee", COMPOSED]
    assert data.datasets["test"].targets == [0, 0, 1, 1]
    assert values(data.images("test")) == {4, 5, 6, 7}
    labelled(two_forms / "train", DECOMPOSED)
    assert read(two_forms).datasets["train"].targets == [0] * 2 + [1] * 4
    assert read(two_forms, classes=[DECOMPOSED, "bee"]).num_classes == 2


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_manifest_finds_files_in_either_unicode_form(two_forms, form):
    save(two_forms / "train" / COMPOSED / f"{DECOMPOSED}.png", 9)
    paths = [f"train/{COMPOSED}/0.png", f"train/{COMPOSED}/{COMPOSED}.png", f"test/{COMPOSED}/4.png", "test/bee/6.png"]
    rows = [
        (unicodedata.normalize(form, path), unicodedata.normalize(form, name), "Train")
        for path, name in zip(paths, [COMPOSED, DECOMPOSED, "bee", "bee"], strict=True)
    ]
    data = read(two_forms, manifest=write_manifest(two_forms / "list.csv", rows, ("path", "label", "split")))
    assert values(data.images("train")) == {0, 9, 4, 6}
    assert data.datasets["train"].classes == ["bee", COMPOSED]
    rows.append((unicodedata.normalize("NFKD", rows[0][0]), "bee", "train"))
    with pytest.raises(ValueError, match=r"row 6: .* is also in row 2"):
        read(two_forms, manifest=write_manifest(two_forms / "list.csv", rows, ("path", "label", "split")))


def write_manifest(path, rows, header=("path", "label", "split", "group")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


@pytest.fixture
def scans(tmp_path):
    """60 images of 20 patients, 3 each; every pixel is the image's number. Every fourth patient is of class 'sick'."""
    (tmp_path / "scans").mkdir()
    rows = []
    for i in range(60):
        Image.new("L", (8, 8), i).save(tmp_path / "scans" / f"{i}.png")
        rows.append((f"scans/{i}.png", "sick" if i // 3 % 4 == 0 else "well", "", f"patient {i // 3}"))
    return tmp_path, rows


def values(images):
    return set(images[range(len(images))]["image"][:, 0, 0, 0].tolist())


def test_a_manifest_gives_labels_and_splits(scans):
    root, rows = scans
    rows = [
        (path, label, ("train", "val", "test")[i // 3 % 3], group) for i, (path, label, _, group) in enumerate(rows)
    ]
    data = read(root, manifest=write_manifest(root / "list.csv", rows))
    for place, split in enumerate(("train", "val", "test")):
        assert values(data.images(split)) == {i for i in range(60) if i // 3 % 3 == place}
    images = data.images("test")
    batch = images[range(len(images))]
    assert batch["label"].tolist() == [
        0 if int(i) // 3 % 4 == 0 else 1 for i in batch["image"][:, 0, 0, 0]
    ]  # sick, well


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_a_group_is_held_out_as_a_whole_class_by_class_and_nested(scans, fraction):
    root, rows = scans
    manifest = write_manifest(root / "list.csv", rows)
    data = read(root, manifest=manifest, val_fraction=fraction)
    train, val = values(data.images("train")), values(data.images("val"))
    assert train | val == set(range(60))
    assert not {i // 3 for i in train} & {i // 3 for i in val}
    for sick, of_class in ((True, 15), (False, 45)):
        held_out = [i for i in val if (i // 3 % 4 == 0) == sick]
        assert abs(len(held_out) - fraction * of_class) <= 1.5  # half a patient
    assert val <= values(read(root, manifest=manifest, val_fraction=min(2 * fraction, 0.9)).images("val"))
    others = [read(root, manifest=manifest, val_fraction=fraction, split_seed=seed) for seed in range(1, 5)]
    assert any(values(other.images("val")) != val for other in others)


def test_numbers_are_labels_in_their_order_and_empty_ones_none(scans):
    root, rows = scans
    rows = [(path, str(i % 12) if i < 48 else "", "", "") for i, (path, *_) in enumerate(rows)]
    data = read(root, manifest=write_manifest(root / "list.csv", rows))
    assert data.num_classes == 12
    batch = data.images("train")[range(60)]
    assert batch["label"].tolist() == [int(i) % 12 if i < 48 else -1 for i in batch["image"][:, 0, 0, 0]]


def test_paths_alone_make_a_set_without_labels(scans):
    root, rows = scans
    data = read(root, manifest=write_manifest(root / "list.csv", [row[:1] for row in rows[:9]], header=["path"]))
    assert len(data.splits["train"]) == 9
    assert data.num_classes is None


@pytest.mark.parametrize("as_file", [False, True])
def test_classes_are_picked_out_of_a_full_folder(tmp_path, as_file):
    for split in ("train", "test"):
        for label, name in enumerate(("ape", "bee", "great cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (8, 8), (label, 0, 0)).save(tmp_path / split / name / f"{i}.png")
    classes = ["great cat", "bee"]
    if as_file:
        (tmp_path / "classes.txt").write_text("great cat\nbee\n\n")
        classes = str(tmp_path / "classes.txt")
    data = read(tmp_path, classes=classes)
    assert data.num_classes == 2
    for split in ("train", "test"):
        batch = data.images(split)[range(6)]
        assert batch["image"][:, 0, 0, 0].tolist() == [1] * 3 + [2] * 3
        assert batch["label"].tolist() == [0] * 3 + [1] * 3
    for wrong in (["bee", "cog"], ["ape", "bee", "cog"], ["cog"]):
        with pytest.raises(ValueError, match="train has no images of the class 'cog', which `classes` lists"):
            read(tmp_path, classes=wrong)


# Mean and standard deviation.


def test_auto_statistics_are_those_of_the_training_images_and_stay_with_the_checkpoint(msssl, tmp_path, image_folder):
    args = ["--config", "imagefolder.yaml", *NARROW, "--data.data_dir", image_folder, "--data.views.mean=auto"]
    args += ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--data.batch_size=4", "--data.num_workers=0"]
    code, _, err = msssl("fit", *args, "--trainer.max_epochs=1", "--data.val_fraction=0.25")
    assert code == 0, err
    checkpoint = next(tmp_path.glob("runs/*/last.ckpt"))
    data = MultiViewDataModule.load_from_checkpoint(checkpoint)
    data.setup()
    pixels = data.images("train")[range(len(data.splits["train"]))]["image"].double() / 255
    assert data.views.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist())
    assert data.views.std == pytest.approx(pixels.std(dim=(0, 2, 3), unbiased=False).tolist())
    assert data.pretrained_on.tolist() == data.splits["train"].indices.tolist()
    for path in image_folder.glob("train/*/*.png"):  # other images do not change what the encoder was trained with
        Image.new("RGB", (20, 32)).save(path)
    again = MultiViewDataModule.load_from_checkpoint(checkpoint)
    again.setup()
    assert again.views.mean == data.views.mean


def test_one_statistic_alone_is_not_auto():
    with pytest.raises(ValueError, match="auto is for both"):
        MultiView(mean="auto", std=(1, 1, 1))


# Fractions.


def test_a_fraction_is_logged_with_its_counts_and_listed_in_the_checkpoint(image_folder, caplog):
    with caplog.at_level(logging.INFO, logger="msssl"):
        data = read(image_folder, fraction=0.5)
    assert "fraction 0.5: 12 of 24 images; by class: 6 6" in caplog.text
    listed = data.state_dict()["pretrained_on"]
    assert listed.tolist() == data.splits["train"].indices.tolist()
    assert torch.tensor(data.datasets["train"].targets)[listed.long()].bincount().tolist() == [6, 6]


# `msssl inspect`.


def inspect(msssl, folder, *args):
    own = ["--data.data_dir", folder, "--data.batch_size=4", "--data.num_workers=0", "--data.views.n_views=2"]
    return msssl("inspect", "--config", "imagefolder.yaml", *own, *args)


def test_inspect_tells_storage_bytes_mean_and_std_of_a_sound_set(msssl, image_folder):
    code, out, err = inspect(msssl, image_folder)
    assert code == 0, err
    assert "storage of train  memory, 40.3 kB of 24 x 24 pixels" not in out  # 24 images of 25 pixels
    assert "storage of train  memory, 45 kB of 25 x 25 pixels" in out
    assert "storage of test" in out
    assert "problem" not in out


@pytest.mark.parametrize(
    ("window", "said"),
    [((0, 65535), "almost black"), ((-60000, 4095), "almost white"), ((0, 4095), None), ((-9e4, 9e4), "of one colour")],
)
def test_a_window_that_shows_nothing_is_said(tmp_path, caplog, window, said):
    two(tmp_path / "train", lambda path: write_png(path.with_suffix(".png"), COLOUR16, 2))
    read(tmp_path, window=window, views=MultiView(mean="auto", std="auto"))
    assert ("the training images are almost" in caplog.text) == (said is not None)
    assert (said or "") in caplog.text


def test_inspect_says_that_images_are_almost_black(msssl, image_folder):
    for path in image_folder.glob("*/*/*.png"):
        Image.fromarray(np.asarray(Image.open(path)) // 16).save(path)
    _, _, err = inspect(msssl, image_folder)
    assert "the training images are almost black (mean 0.030" in err


def test_inspect_fails_where_a_split_leaks(msssl, image_folder):
    source = image_folder / "train" / "dog" / "3.png"
    Image.open(source).save(image_folder / "test" / "cat" / "copy.tiff")  # other bytes, the same pixels
    code, out, _ = inspect(msssl, image_folder)
    assert code == 1
    (line,) = [line for line in out.splitlines() if line.startswith("problem")]
    assert "1 image of train is also in test" in line
    assert str(source) in line
    assert "copy.tiff" in line


def test_copies_within_train_are_a_note(msssl, image_folder):
    shutil.rmtree(image_folder / "val", ignore_errors=True)
    for path in (image_folder / "train" / "dog").iterdir():
        if path.name != "3.png":
            shutil.copy(image_folder / "train" / "dog" / "3.png", path)
    code, out, _ = inspect(msssl, image_folder, "--data.val_fraction=0.4")
    assert "problem" not in out
    assert "1 image of train is also in val, which was held out of it" in " ".join(out.split())
    assert code == 0


@pytest.mark.parametrize("labelled", [True, False])
def test_pictures_of_runs_are_no_images(image_folder, labelled):
    images = image_folder / "train"
    if not labelled:
        for path in list(images.glob("*/*.png")):
            path.rename(images / f"{path.parent.name}-{path.name}")
        for path in images.iterdir():
            if path.is_dir():
                path.rmdir()
    expected = list_folders(str(images), None)
    for name, files in {"20260101-000000": ["config.yaml", "views.png"], "20260101-000001": []}.items():
        (images / "runs" / name).mkdir(parents=True)
        for file in files:
            (images / "runs" / name / file).touch()
    assert list_folders(str(images), None) == expected


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_inspect_lists_every_unreadable_file(msssl, image_folder, on_error):
    bad = [image_folder / "train" / "cat" / f"{i}.png" for i in range(100, 112)]
    for path in bad:
        path.write_bytes(b"not an image")
    code, out, err = inspect(msssl, image_folder, f"--data.on_error={on_error}")
    assert "12 images of train are skipped" in err
    if on_error == "skip":
        assert code == 0
        return
    assert code == 1
    assert all(str(path) in out for path in bad[:10])
    assert "2 more images cannot be read" in out
