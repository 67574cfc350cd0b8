"""Sets with one thing broken: what is wrong is said in one line that names it, or the rest is read without it."""

import csv
import errno
import os
import resource
import shutil
import signal
import struct
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from msssl import ImageFolder, MultiView, MultiViewDataModule
from msssl.cli.errors import failure, user_message
from msssl.data.pixels.files import is_of_the_machine
from msssl.data.pixels.item import ReadFailedError
from msssl.run.files import NotWrittenError, atomic_write, write_text
from msssl.run.run_folder import new_run_folder

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
STORAGES = ("memory", "cached", "stream")
CLASSES = ("ape", "bee")


class Case(NamedTuple):
    name: str
    make: Callable[[Path], dict[str, Any]]  # breaks one thing below a folder; the arguments of the data module
    expected: tuple[str, ...]  # parts of the message; {root} is the folder


def by_name(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def run(root, sets=None, **kwargs):
    """The data module and {split: {index: red of the first pixel}}, after a pass over every loader."""
    arguments = {"data_dir": str(root), "batch_size": 2, "num_workers": 0, **kwargs}
    data = MultiViewDataModule.from_datasets(*sets, **arguments) if sets else ImageFolder(**arguments)
    data.setup()
    loaders = {name: data.evaluation_dataloader(name) for name in data.splits if name != "train"}
    return data, {name: pixels(loader) for name, loader in {"train": data.train_dataloader(), **loaders}.items()}


def pixels(loader):
    batches = [zip(batch["index"].tolist(), batch["image"][:, 0, 0, 0].tolist(), strict=True) for batch in loader]
    return {index: value for batch in batches for index, value in batch}


def check_error(error, *expected):
    """The message is right, and the command line shows it instead of a traceback."""
    check_message(str(error), *expected)
    assert user_message(error) == " ".join(str(error).split())


def check_message(message, *expected):
    assert message.splitlines() == [message]
    for part in expected:
        assert part in message
    assert "None" not in message or "None" in "".join(expected)
    assert not message.rstrip().endswith((":", ",", "but"))  # nothing follows


def save(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 12), (value, value, value)).save(path)


def tiny(root, *splits, classes=CLASSES):
    """Three images of each class in each split; the red of each image is its index times 10."""
    for split in splits or ("train", "val", "test"):
        for i in range(3 * len(classes)):
            save(root / split / classes[i // 3] / f"{i}.png", 10 * i)
    return {}


def flat(root, split, n=6):
    for i in range(n):
        save(root / split / f"{i}.png", 10 * i)
    return {}


# One file. It stands after the images of `ape` in `train`: index 3.


def noise():
    values = np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)
    return Image.fromarray(values)


def truncated(path, monkeypatch):
    noise().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def zero_bytes(path, monkeypatch):
    path.write_bytes(b"")


def text(path, monkeypatch):
    path.write_text("not an image\n")


def directory(path, monkeypatch):
    path.mkdir()


def dead_link(path, monkeypatch):
    path.symlink_to("nowhere")


def no_permission(path, monkeypatch):
    noise().save(path)
    path.chmod(0)


def refused(path, monkeypatch):
    noise().save(path)
    real = Image.open

    def refusing(file, *args, **kwargs):
        if str(file) == str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return real(file, *args, **kwargs)

    monkeypatch.setattr(Image, "open", refusing)


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def bad_pixels(path, monkeypatch):
    noise().save(path)
    flip(path, path.read_bytes().index(b"IDAT") + 8)


def bad_checksum(path, monkeypatch):
    noise().save(path)
    flip(path, path.read_bytes().index(b"IHDR") + 4 + 13)


def sixteen_bits(path, monkeypatch):
    Image.fromarray(np.arange(144, dtype=np.uint16).reshape(12, 12) * 256).save(path)


@cache
def black(width, height):
    """A whole PNG of one bit a pixel, small on disk."""
    row = bytes(1 + -(-width // 8))
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bomb(path, monkeypatch):
    path.write_bytes(black(20000, 20000))


def half_a_bomb(path, monkeypatch):
    path.write_bytes(black(20000, 5000))


def strip(path, monkeypatch):
    path.write_bytes(black(20000, 1))


as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may read all files")
BAD_FILES = [
    pytest.param("x.jpg", truncated, "truncated", id="truncated JPEG"),
    pytest.param("x.png", truncated, "truncated", id="truncated PNG"),
    pytest.param("x.png", zero_bytes, "cannot identify", id="zero bytes"),
    pytest.param("x.png", text, "cannot identify", id="text"),
    pytest.param("x.jpg", directory, "directory", id="directory"),
    pytest.param("x.jpg", dead_link, "No such file", id="dead link"),
    pytest.param("x.png", no_permission, "Permission denied", id="no permission", marks=as_root),
    pytest.param("x.png", refused, "Permission denied", id="refused"),
    pytest.param("x.png", bomb, "pixels", id="decompression bomb"),
    pytest.param("x.png", half_a_bomb, "20000 x 5000 pixels", id="half a bomb"),
    pytest.param("x.png", bad_pixels, "broken data stream", id="bad pixels"),
    pytest.param("x.png", bad_checksum, "cannot identify", id="bad checksum"),
    pytest.param("x.png", sixteen_bits, "window", id="16 bits"),
]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("name", "damage", "reason"), BAD_FILES)
def test_a_bad_file_stops_the_run_with_its_path(tmp_path, monkeypatch, storage, name, damage, reason):
    tiny(tmp_path, "train", "val")
    path = tmp_path / "train" / "ape" / name
    damage(path, monkeypatch)
    with pytest.raises((ValueError, OSError)) as error:
        run(tmp_path, storage=storage)
    check_error(error.value, str(path), reason)
    assert not list(tmp_path.glob(".msssl/*.tmp"))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("name", "damage", "reason"), BAD_FILES)
def test_a_bad_file_is_left_out(tmp_path, monkeypatch, storage, name, damage, reason):
    tiny(tmp_path, "train", "val")
    path = tmp_path / "train" / "ape" / name
    damage(path, monkeypatch)
    data, seen = run(tmp_path, storage=storage, on_error="skip")
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 6, "probe": 6, "val": 6}
    others = {0: 0, 1: 10, 2: 20, 4: 30, 5: 40, 6: 50}
    assert seen == {"train": others, "probe": others, "val": {i: 10 * i for i in range(6)}}
    assert {split: list(found) for split, found in data.skipped.items()} == {"train": [3], "val": []}
    check_message(data.skipped["train"][3], str(path), reason)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("place", ["train/ape/!.png", "train/bee/x.png", "val/ape/!.png", "test/bee/x.png"])
def test_a_bad_file_of_any_split_and_place(tmp_path, monkeypatch, storage, place):
    tiny(tmp_path)
    text(tmp_path / place, monkeypatch)
    data, seen = run(tmp_path, storage=storage, on_error="skip")
    split = place.split("/")[0]
    left_out = 0 if "!" in place else 6
    assert list(data.skipped[split]) == [left_out]
    assert {name: len(values) for name, values in seen.items()} == {"train": 6, "probe": 6, "val": 6, "test": 6}
    assert left_out not in seen[split]
    with pytest.raises((ValueError, OSError)) as error:  # also where a cache remembers it
        run(tmp_path, storage=storage)
    check_error(error.value, str(tmp_path / place))


def test_the_command_line_shows_one_line_of_a_worker(tmp_path, monkeypatch):
    tiny(tmp_path, "train", "val")
    path = tmp_path / "train" / "ape" / "x.png"
    text(path, monkeypatch)
    with pytest.raises(ValueError, match="in DataLoader worker") as error:
        run(tmp_path, storage="stream", num_workers=1)
    check_message(user_message(error.value), str(path), "cannot identify")


def test_a_file_that_can_be_read_again_comes_back(tmp_path, monkeypatch):
    tiny(tmp_path, "train", "val")
    refused(tmp_path / "train" / "ape" / "x.png", monkeypatch)
    data, _ = run(tmp_path, storage="cached", on_error="skip")
    assert list(data.skipped["train"]) == [3]
    monkeypatch.undo()  # as by chmod: neither size nor time change
    data, seen = run(tmp_path, storage="cached", on_error="skip")
    assert not data.skipped["train"]
    assert len(seen["probe"]) == 7


# Errors of the machine.

OF_THE_MACHINE = ("EMFILE", "ENFILE", "EIO", "ENOMEM", "ESTALE", "ETIMEDOUT", "EINTR", "ENOTCONN", "EAGAIN", "ENODEV")


def numbered(name):
    return OSError(getattr(errno, name), os.strerror(getattr(errno, name)))


ERRORS = {name: numbered(name) for name in OF_THE_MACHINE} | {
    "no memory": MemoryError(),
    "timeout": TimeoutError("timed out"),
    "connection": ConnectionResetError("reset by peer"),
    "no network": URLError("unreachable"),
}


def failing_on(number, error, monkeypatch):
    """Has Pillow fail with an error at the fifth image that it opens."""
    real, calls = Image.open, iter(range(10**6))

    def failing(file, *args, **kwargs):
        if next(calls) == number:
            raise error
        return real(file, *args, **kwargs)

    monkeypatch.setattr(Image, "open", failing)


class OpenedImages(Dataset):
    """Files of one's own, opened but not read; with a fingerprint, so that they can be cached."""

    def __init__(self, folder):
        self.files = sorted(folder.glob("*.png"))
        self.targets = [i % 2 for i in range(len(self.files))]
        self.fingerprint = "opened"

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return Image.open(self.files[index]), self.targets[index]


@pytest.mark.parametrize("own", [False, True], ids=["a folder", "a data set of one's own"])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_the_machine_leaves_no_image_out(tmp_path, monkeypatch, name, storage, own):
    flat(tmp_path, "train")
    arguments = {"sets": [OpenedImages(tmp_path / "train")]} if own else {"image_size": 12}
    arguments |= {"storage": storage, "on_error": "skip", "val_fraction": 0.0}
    with monkeypatch.context() as patch:
        failing_on(5, ERRORS[name], patch)
        with pytest.raises(
            ReadFailedError, match=r"was not read, as the machine failed: .*No image is left out"
        ) as error:
            run(tmp_path, **arguments)
    check_message(failure(error.value), "of train" if own else f"{tmp_path}/train/", "machine")
    data, _ = run(tmp_path, **arguments)  # when it is well again
    assert len(data.splits["train"]) == 6
    assert not any(data.skipped.values())


def test_the_command_line_shows_one_line_of_a_workers_machine(tmp_path, monkeypatch):
    flat(tmp_path, "train", 8)
    failing_on(3, numbered("EIO"), monkeypatch)
    with pytest.raises(ReadFailedError, match="in DataLoader worker") as error:
        run(tmp_path, storage="stream", image_size=12, num_workers=1, val_fraction=0.0)
    check_message(failure(error.value), f"{tmp_path}/train/", "Input/output error")


@pytest.mark.parametrize("name", ["ENOENT", "EACCES", "EPERM", "EISDIR", "ELOOP"])
def test_errors_of_a_file_are_not_the_machines(name):
    assert not is_of_the_machine(numbered(name))
    assert not is_of_the_machine(UnidentifiedImageError("cannot identify image file"))
    wrapped = ValueError("a reader's own")
    wrapped.__cause__ = numbered("EIO")
    assert is_of_the_machine(wrapped)


def odd_name(path, monkeypatch):
    try:
        save(path.with_name("x\udce9.png"))  # not UTF-8, as from an old archive
    except OSError:
        pytest.skip("file names are UTF-8 here")


def transparent_palette(path, monkeypatch):
    Image.new("P", (12, 12)).save(path, transparency=0)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("harmless", [strip, odd_name, transparent_palette])
def test_an_odd_file_is_read(tmp_path, monkeypatch, storage, harmless):
    tiny(tmp_path, "train", "val")
    harmless(tmp_path / "train" / "ape" / "x.png", monkeypatch)
    data, seen = run(tmp_path, storage=storage)
    assert len(seen["probe"]) == len(data.splits["train"]) == 7
    assert data.image_size == 12


class Recorder(LightningModule):
    def training_step(self, batch, batch_idx):
        assert 3 not in batch["index"]

    def configure_optimizers(self):
        return None


@pytest.mark.parametrize("name", ["x.png", "x\udce9.png"], ids=["a name", "a name that is not UTF-8"])
def test_skipped_files_are_listed_in_the_folder_of_the_run(tmp_path, monkeypatch, name):
    tiny(tmp_path / "images", "train")
    path = tmp_path / "images" / "train" / "ape" / name
    text(path, monkeypatch)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, default_root_dir=tmp_path / "run", **quiet)
    data = ImageFolder(str(tmp_path / "images"), batch_size=2, num_workers=0, val_fraction=0.0, on_error="skip")
    trainer.fit(Recorder(), data)
    with (tmp_path / "run" / "skipped.csv").open(newline="", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"data set": "train", "index": "3", "reason": data.skipped["train"][3]}]
    check_message(rows[0]["reason"], str(path).encode(errors="backslashreplace").decode(), "cannot identify")


# A whole set.


class Items(Dataset):
    """Items of one's own, with `targets` where given."""

    def __init__(self, items, targets=None):
        self.items = items
        if targets is not None:
            self.targets = targets

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Endless(IterableDataset):
    def __iter__(self):
        yield from pairs()


def pairs(n=8):
    return [(Image.new("RGB", (12, 12), (10 * i, 0, 0)), i % 2) for i in range(n)]


def with_item(item, **kwargs):
    """A set of eight whose item 3 is another one."""
    return lambda root: {"sets": [Items([*pairs()[:3], item, *pairs()[4:]])], "val_fraction": 0.0, **kwargs}


def with_label(label):
    return with_item((pairs()[3][0], label))


def with_targets(targets):
    return lambda root: {"sets": [Items(pairs(), targets)]}


def with_target(label, kind=list):
    return with_targets(kind([0, 1, 0, label, 0, 1, 0, 1]))


def with_tensors(images, labels):
    return lambda root: {"sets": [TensorDataset(images, labels)]}


BLACK = torch.zeros(8, 3, 12, 12, dtype=torch.uint8)
LABELS = torch.arange(8) % 2


def with_arguments(**kwargs):
    return lambda root: tiny(root) | kwargs


def with_class(split, name, n=1):
    """A class in one split only."""

    def make(root):
        tiny(root)
        for i in range(n):
            save(root / split / name / f"{i}.png")
        return {}

    return make


def empty_class(root):
    (root / "train" / "cow").mkdir(parents=True)
    return tiny(root)


def no_images(root):
    (root / "train").mkdir()
    return {}


def file_as_data_dir(root):
    save(root / "0.png")
    return {"data_dir": str(root / "0.png")}


def one_class(root):
    return tiny(root, classes=["ape"])


def two_validation_folders(root):
    save(root / "Validation" / "ape" / "0.png")
    return tiny(root)


def of_another_kind(root):
    (root / "train").mkdir()
    for name in ("0.heic", "1.heic", "2.HEIC", "README"):
        (root / "train" / name).write_text("")
    return {}


def flat_split(split):
    return lambda root: tiny(root, "train") | flat(root, split)


def nothing_readable(root):
    flat(root, "train")
    for path in (root / "train").iterdir():
        path.write_text("not an image")
    return {"on_error": "skip"}


def class_unreadable(root):
    tiny(root)
    for path in (root / "train" / "ape").iterdir():
        path.write_text("not an image")
    return {"on_error": "skip"}


def file_as_cache(root):
    (root / "cache").write_text("")
    return tiny(root) | {"cache_dir": str(root / "cache"), "storage": "cached"}


def below_a_file(root):
    return file_as_cache(root) | {"cache_dir": str(root / "cache" / "below")}


def damaged_cache(root):
    arguments = tiny(root) | {"storage": "cached"}
    run(root, **arguments)
    for path in root.glob(".msssl/*/images.npy"):
        path.write_bytes(path.read_bytes()[:1000])
    return arguments


def listed(root, changed=(), encoding="utf-8", **kwargs):
    """A manifest of eight images, with some of its rows changed; the header is row 1."""
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    rows = {1: "path,label,split,group"}
    rows |= {i + 2: f"{i}.png,{CLASSES[i % 2]},{split},p{i}" for i, split in enumerate(splits)} | dict(changed)
    for i in range(8):
        save(root / f"{i}.png", 10 * i)
    (root / "list.csv").write_text("".join(f"{row}\n" for row in rows.values() if row is not None), encoding)
    return {"manifest": str(root / "list.csv"), **kwargs}


def with_rows(changed, **kwargs):
    return lambda root: listed(root, changed, **kwargs)


def manifest_of(content):
    """A manifest of these bytes."""

    def make(root):
        arguments = listed(root)
        (root / "list.csv").write_bytes(content)
        return arguments

    return make


def class_file(content, classes=CLASSES, encoding="utf-8"):
    def make(root):
        (root / "classes.txt").write_text(content, encoding)
        return tiny(root, classes=classes) | {"classes": str(root / "classes.txt")}

    return make


UNLABELLED = {row: f"{row - 2}.png,,train,p{row - 2}" for row in range(2, 6)}
NO_TRAINING = {row: f"{row - 2}.png,{CLASSES[row % 2]},val,p{row - 2}" for row in range(2, 6)}
ONE_LABEL = {row: f"{row - 2}.png,ape,{'train' if row < 6 else 'val'},p{row}" for row in range(2, 10)}
MANIFEST = "{root}/list.csv"

BAD_SETS = [
    # Folders.
    Case("empty class folder", empty_class, ("{root}/train/cow",)),
    Case("a class only in val", with_class("val", "cow"), ("{root}", "train has no images", "'cow'")),
    Case("one class", one_class, ("{root}/train", "'ape'")),
    Case("one image", lambda root: flat(root, "train", 1), ("batch_size is 2", "1 image")),
    Case("two folders of a split", two_validation_folders, ("{root}/val ", "{root}/Validation", "both")),
    Case("images of another kind", of_another_kind, ("{root}/train holds no images, but 3 .heic, 1 without",)),
    Case(
        "group_level: too deep",
        with_arguments(group_level=2),
        ("group_level is 2", "train/ape/0.png", "1 folder below"),
    ),
    Case("group_level: in two splits", with_arguments(group_level=1), ("'ape'", "{root}/train/ape", "{root}/val/ape")),
    Case("no images", no_images, ("{root}/train holds no images",)),
    Case("no data_dir", lambda root: {"data_dir": f"{root}/gone"}, ("{root}/gone",)),
    Case("a file as data_dir", file_as_data_dir, ("{root}/0.png",)),
    Case("no image can be read", nothing_readable, ("none of the 6 images of train",)),
    Case("no image of a class can be read", class_unreadable, ("train", "class 0")),
    # Data sets of one's own.
    Case("targets: string", with_target("ape"), ("targets[3]", "'ape'")),
    Case("targets: 0.5", with_target(0.5), ("targets[3]", "0.5")),
    Case("targets: None", with_target(None), ("targets[3]", "None")),
    Case("targets: NaN", with_target(float("nan")), ("targets[3]", "nan")),
    Case("targets: array of 0.5", with_target(0.5, np.array), ("targets[3]", "0.5")),
    Case("targets: tensor of 0.5", with_target(0.5, torch.tensor), ("targets[3]", "0.5")),
    Case("targets: array of strings", with_targets(np.array([*"abababab"])), ("targets[0]", "'a'")),
    Case("targets: one-hot lists", with_targets([[0, 1]] * 8), ("targets[0]", "[0, 1]")),
    Case("targets: one-hot tensor", with_targets(torch.eye(8)), ("targets", "8, 8")),
    Case("targets: 5 for 8", with_targets([0, 1, 0, 1, 0]), ("targets", "5 labels", "8 images")),
    Case("item label: string", with_label("ape"), ("image 3 of train", "'ape'")),
    Case("item label: 0.5", with_label(0.5), ("image 3 of train", "0.5")),
    Case("item label: None", with_label(None), ("image 3 of train", "None")),
    Case("item label: NaN", with_label(float("nan")), ("image 3 of train", "nan")),
    Case("item label: infinite", with_label(float("inf")), ("image 3 of train", "inf")),
    Case("item label: one-hot", with_label(torch.tensor([0, 1])), ("image 3 of train", "[0, 1]")),
    Case("tensor labels of 0.5", with_tensors(BLACK, LABELS * 0.5), ("0.5",)),
    Case("tensor labels one-hot", with_tensors(BLACK, torch.eye(2)[LABELS]), ("shape (8, 2)",)),
    Case("tensor labels of -2", with_tensors(BLACK, LABELS * -2), ("-2",)),
    Case("item: no label", with_item((pairs()[3][0],)), ("item 3 of train", "(image, label)")),
    Case("item: three parts", with_item((*pairs()[3], 0)), ("item 3 of train", "(image, label)")),
    Case("item: dictionary", with_item({"img": pairs()[3][0]}), ("item 3 of train", "dict", "'img'", "'image'")),
    Case("item: None", with_item(None), ("item 3 of train", "NoneType")),
    Case("two sizes", with_item((Image.new("RGB", (8, 10)), 1)), ("image 3 of train", "10 x 8", "12 x 12")),
    Case(
        "two sizes, streamed",
        with_item((Image.new("RGB", (8, 10)), 1), storage="stream"),
        (" of train", "10 x 8", "12 x 12"),
    ),
    Case("channels last", with_tensors(BLACK.permute(0, 2, 3, 1), LABELS), ("of train", "uint8 (12, 12, 3)")),
    Case("complex images", with_tensors(BLACK * 1j, LABELS), ("of train", "complex64 (3, 12, 12)")),
    Case("images without pixels", with_tensors(BLACK[:, :, :0], LABELS), ("of train", "0, 12")),
    Case("array as image", with_item((np.zeros((12, 12, 3), np.uint8), 1)), ("image 3 of train", "ndarray")),
    Case(
        "item: another label than its target",
        lambda root: {"sets": [Items([(image, label + 5) for image, label in pairs()], [0, 1] * 4)]},
        ("image 0 of train", "label 5", "but 0 ", "target_transform"),
    ),
    Case(
        "item: another label than its target, streamed and skipped",
        lambda root: {
            "sets": [Items([(image, label + 5) for image, label in pairs()], [0, 1] * 4)],
            "storage": "stream",
            "on_error": "skip",
        },
        ("image 0 of train", "label 5", "but 0 "),
    ),
    Case(
        "item: one other label",
        lambda root: {"sets": [Items(pairs(), [0, 1, 0, 0, 0, 1, 0, 1])]},
        ("image 3 of", "label 1", "but 0 "),
    ),
    Case(
        "item: one other label, streamed",
        lambda root: {"sets": [Items(pairs(), [0, 1, 0, 0, 0, 1, 0, 1])], "storage": "stream", "val_fraction": 0.0},
        ("image 3 of train", "label 1", "but 0 "),
    ),
    Case("item: an empty row", with_item({}), ("item 3 of train", "none")),
    Case(
        "NaN in a tensor",
        lambda root: {"sets": [TensorDataset(BLACK.float() / 0, LABELS)], "window": (0, 1)},
        ("of train", "NaN"),
    ),
    Case("16 bits in an item", with_item((Image.new("I;16", (12, 12)), 1)), ("image 3 of train", "torch.uint16")),
    Case("iterable", lambda root: {"sets": [Endless()]}, ("Endless",)),
    Case(
        "a label only in val",
        lambda root: {"sets": [TensorDataset(BLACK, LABELS), TensorDataset(BLACK, LABELS + 5)]},
        ("train", "5"),
    ),
    Case("empty val", lambda root: {"sets": [Items(pairs()), Items([])]}, ("no val images",)),
    # Manifests.
    Case("manifest: no file", lambda root: tiny(root) | {"manifest": f"{root}/gone.csv"}, ("{root}/gone.csv",)),
    Case("manifest: zero bytes", manifest_of(b""), (MANIFEST, "path, label")),
    Case("manifest: header only", manifest_of(b"path,label,split\n"), (MANIFEST, "no training images")),
    Case("manifest: not UTF-8", manifest_of("path,label\n0.png,\xe9\n".encode("latin-1")), (MANIFEST, "UTF-8")),
    Case("manifest: semicolons", manifest_of(b"path;label\n0.png;ape\n"), (MANIFEST, "'path;label'")),
    Case("manifest: open quote", with_rows({4: '"2.png,ape,train,p2'}), (MANIFEST, "row")),
    Case("manifest: no column path", with_rows({1: "file,label,split,group"}), (MANIFEST, "'path'", "'file'")),
    Case("manifest: column lable", with_rows({1: "path,lable,split,group"}), (MANIFEST, "'label'", "'lable'")),
    Case("manifest: column twice", with_rows({1: "path,label,split,group,label"}), (MANIFEST, "'label'")),
    Case("manifest: path above", with_rows({3: "../1.png,bee,train,p1"}), (MANIFEST, "row 3", "../1.png", "{root}")),
    Case("manifest: absolute path", with_rows({3: "/tmp/1.png,bee,train,"}), (MANIFEST, "row 3", "/tmp/1.png")),
    Case("manifest: path twice", with_rows({4: "0.png,ape,train,p0"}), (MANIFEST, "row 4", "0.png", "row 2")),
    Case("manifest: same path", with_rows({4: "./0.png,ape,train,p0"}), (MANIFEST, "row 4", "0.png", "row 2")),
    Case("manifest: path in two splits", with_rows({6: "0.png,ape,val,p4"}), (MANIFEST, "row 6", "0.png", "row 2")),
    Case("manifest: group in two splits", with_rows({6: "4.png,ape,val,p0"}), (MANIFEST, "row 6", "'p0'", "row 2")),
    Case("manifest: unknown split", with_rows({6: "4.png,ape,dev,p4"}), (MANIFEST, "row 6", "'dev'", "val, test")),
    Case(
        "manifest: two names of a split",
        with_rows({7: "5.png,bee,Validation,p5"}),
        (MANIFEST, "row 7", "'validation'", "row 6", "'val'"),
    ),
    Case("manifest: empty path", with_rows({4: ",ape,train,p2"}), (MANIFEST, "row 4", "path")),
    Case("manifest: no training rows", with_rows(NO_TRAINING), (MANIFEST, "no training images")),
    Case("manifest: no such image", with_rows({4: "gone.png,ape,train,p2"}), ("{root}/gone.png", "No such file")),
    Case("manifest: one class", with_rows(ONE_LABEL), (MANIFEST, "'ape'")),
    Case("manifest: classes without training rows", with_rows(UNLABELLED, classes=["ape", "bee"]), (MANIFEST, "train")),
    # Arguments.
    Case("classes: no file", lambda root: tiny(root) | {"classes": f"{root}/gone.txt"}, ("{root}/gone.txt",)),
    Case("classes: empty file", class_file(""), ("{root}/classes.txt",)),
    Case("classes: not UTF-8", class_file("é\nbee", encoding="latin-1"), ("{root}/classes.txt", "UTF-8")),
    Case("classes: the word no", with_arguments(classes=[False, "bee"]), ("False", "quotes")),
    Case("classes: the word null", with_arguments(classes=["ape", None]), ("None", "quotes")),
    Case("labels: unknown", with_arguments(labels="yes"), ("labels is 'yes'", "none")),
    Case("labels: none, and classes", with_arguments(labels="none", classes=["ape"]), ("classes", "labels is none")),
    Case("group_level: 0", with_arguments(group_level=0), ("group_level is 0",)),
    Case("group_level and a manifest", lambda root: listed(root) | {"group_level": 1}, ("group_level", "column group")),
    Case("classes: empty list", with_arguments(classes=[]), ("classes",)),
    Case("classes: unknown", with_arguments(classes=["ape", "bee", "yak"]), ("{root}", "'yak'", "classes")),
    Case("window reversed", with_arguments(window=(200, 100)), ("window is (200, 100)",)),
    Case("window of no width", with_arguments(window=(5, 5)), ("window is (5, 5)",)),
    Case("image_size 0", with_arguments(image_size=0), ("image_size is 0",)),
    Case("fraction 0", with_arguments(fraction=0.0), ("fraction is 0.0",)),
    Case("fraction leaves a class empty", with_arguments(fraction=0.1), ("fraction 0.1", "class 0", "3")),
    Case("val_fraction 1", with_arguments(val_fraction=1.0), ("val_fraction is 1.0",)),
    Case(
        "val_fraction leaves a class empty",
        lambda root: tiny(root, "train") | {"val_fraction": 0.9},
        ("val_fraction 0.9", "class 0", "3"),
    ),
    Case("batch_size 1", with_arguments(batch_size=1), ("batch_size is 1",)),
    Case("num_workers -1", with_arguments(num_workers=-1), ("num_workers", "-1")),
    Case("storage: unknown", with_arguments(storage="disk"), ("storage", "'disk'", "stream")),
    Case("on_error: unknown", with_arguments(on_error="ignore"), ("on_error", "'ignore'", "skip")),
    Case("auto for one", lambda root: {"views": MultiView(mean="auto", std=(1, 1, 1))}, ("auto", "(1, 1, 1)")),
    # Caches.
    Case(
        "cached without fingerprint",
        lambda root: {"sets": [Items(pairs())], "storage": "cached"},
        ("train", "Items", "`fingerprint`"),
    ),
    Case("a file as cache_dir", file_as_cache, ("{root}/cache", "exists")),
    Case("cache_dir below a file", below_a_file, ("{root}/cache/below", "Not a directory")),
    Case("damaged cache", damaged_cache, ("{root}/.msssl/",)),
]


@by_name(BAD_SETS)
def test_a_bad_set_is_named(tmp_path, case):
    with pytest.raises((ValueError, OSError)) as error:
        run(tmp_path, **case.make(tmp_path))
    check_error(error.value, *[part.format(root=tmp_path) for part in case.expected])


def two_dots(root):
    save(root / "..a" / "0.png")
    return listed(root, {2: "..a/0.png,ape,train,p0"})


def emptied(folder):
    """A folder that has lost its images."""

    def make(root):
        tiny(root)
        for path in (root / folder).rglob("*.png"):
            path.unlink()
        return {}

    return make


GOOD_SETS = [
    Case("folders", with_arguments(), ()),
    Case("manifest", listed, ()),
    Case("items", lambda root: {"sets": [Items(pairs(), [0, 1] * 4)]}, ()),
    Case("items with labels 1.0", with_label(1.0), ()),
    Case("a class only in train", with_class("train", "cow", n=2), ()),
    Case("flat test beside labelled train", flat_split("test"), ()),
    Case("flat val beside labelled train", flat_split("val"), ()),
    Case("an empty class folder in test", emptied("test/bee"), ()),
    Case("an empty test folder", emptied("test"), ()),
    Case("manifest: a class missing in val", with_rows({7: "5.png,ape,val,p5"}), ()),
    Case("manifest: a name with two dots", two_dots, ()),
    Case("classes: a name with a space", class_file("great ape\nbee\n", ("great ape", "bee")), ()),
]


@by_name(GOOD_SETS)
def test_a_good_set_is_read(tmp_path, case):
    data, seen = run(tmp_path, **case.make(tmp_path))
    assert set(seen["train"]) == set(seen["probe"])
    assert len(data.splits["train"]) in (4, 6, 7, 8)


# A full disk.


@contextmanager
def largest_file(n_bytes):
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def small(n, size):
    return TensorDataset(torch.zeros(n, 3, size, size, dtype=torch.uint8), torch.arange(n) % 2)


@pytest.mark.parametrize(
    ("dataset", "limit"),
    [(small(8, 12), 1000), (small(2, 1000), 1000), (small(200, 1), 1000), (small(2000, 1), 8000)],
    ids=["in few images", "in the images", "in few labels", "in the labels"],  # a label takes 8 bytes, an image 3
)
def test_a_full_disk_leaves_nothing_behind(tmp_path, dataset, limit):
    arguments = {"sets": [dataset], "storage": "cached", "cache_dir": str(tmp_path / "cache"), "val_fraction": 0.0}
    with pytest.raises(OSError, match="cannot be written") as error, largest_file(limit):
        run(tmp_path, **arguments)
    check_error(error.value, str(tmp_path / "cache"), "File too large")
    assert {path.name for path in (tmp_path / "cache").iterdir()} <= {"lock"}
    _, seen = run(tmp_path, **arguments)  # when there is room
    assert len(seen["probe"]) == len(dataset)


# Places where nothing can be written.


def parent_is_a_file(root):
    (root / "file").write_text("")
    return root / "file" / "result.txt", "ot a directory"


def is_a_directory(root):
    (root / "result.txt").mkdir()
    return root / "result.txt", "Is a directory"


def no_such_place(root):
    return Path("/proc/nowhere/result.txt"), "No such file or directory"


UNWRITABLE = pytest.mark.parametrize("place", [parent_is_a_file, is_a_directory, no_such_place])


@UNWRITABLE
def test_a_result_that_cannot_be_written_is_one_line(place, tmp_path):
    path, reason = place(tmp_path)
    with pytest.raises(NotWrittenError) as error:
        write_text(path, "text")
    check_message(failure(error.value), f"{path} cannot be written: ", reason)
    assert not list(tmp_path.rglob("*.tmp"))


def write_half_of(path):
    with atomic_write(path) as growing:
        growing.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as `write` does, which does not know the name


def test_a_full_disk_keeps_the_result_before(tmp_path):
    path = tmp_path / "result.txt"
    write_text(path, "before")
    with pytest.raises(NotWrittenError) as error:
        write_half_of(path)
    reason = "No space left on device; what was there before is as it was"
    assert failure(error.value) == f"{path} cannot be written: {reason}"
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", [parent_is_a_file, no_such_place])
def test_a_root_of_runs_that_cannot_be_made_is_one_line(place, tmp_path):
    path, reason = place(tmp_path)
    with pytest.raises(OSError, match="default_root_dir") as error:
        new_run_folder(path)
    check_error(error.value, f"trainer.default_root_dir is {path}", reason)


def test_what_the_system_refuses_to_a_library_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        shutil.copyfile(tmp_path / "absent", tmp_path / "copy")
    error.value.__traceback__ = error.value.__traceback__.tb_next  # without this file, which is not a library's
    assert user_message(error.value) == f"{tmp_path / 'absent'}: No such file or directory"


def test_what_the_system_refuses_to_any_code_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        (tmp_path / "absent").read_text()
    assert user_message(error.value) == f"{tmp_path / 'absent'}: No such file or directory"


def test_errors_of_ones_own_code_keep_their_traceback():
    for kind in (ValueError, RuntimeError, TypeError, KeyError):
        assert user_message(kind("of a loss")) is None
