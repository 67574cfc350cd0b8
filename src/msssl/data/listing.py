"""A user's image files: which there are, in folders or by a list, and their labels."""

import hashlib
import logging
import os
import statistics
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from msssl.data.deep import Window
from msssl.data.files import EXTENSIONS, list_images, open_square, short_side, shown
from msssl.data.images import UnreadableImageError, stop_for_the_machine
from msssl.data.manifest import Row
from msssl.data.splits import SPLITS

MAX_DEFAULT_SIZE = 64
N_MEASURED = 100  # images that the default size is taken from
LAYOUT = "ImageFolder reads DATA_DIR/train/<class>/* or DATA_DIR/train/*"
log = logging.getLogger(__name__)


class ImageFiles(Dataset[tuple[Image.Image, int]]):
    """Squares of image files, with labels.

    Args:
        rows: the files.
        classes: names of the classes, in the order of their labels.
        image_size: side in pixels; by default the median short side of 100 of the files, at most 64.
        window: values that become black and white in images of more than 8 bits.

    Attributes:
        classes: as given.
        groups: what each image must not be separated from, where the rows say so.
    """

    def __init__(self, rows: list[Row], classes: list[str], image_size: int | None, window: Window | None) -> None:
        self.classes = classes
        numbers = {name: label for label, name in enumerate(classes)}
        self.paths = [row.path for row in rows]
        self.targets = [numbers.get(row.label, -1) for row in rows]
        self.groups = [row.group or row.path for row in rows] if any(row.group for row in rows) else None
        self.window = window
        self.image_size = image_size or self._default_size()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path = self.paths[index]
        try:
            return open_square(path, self.image_size, self.window), self.targets[index]
        except Exception as error:  # Pillow's formats raise many kinds
            stop_for_the_machine(error, shown(path))
            raise UnreadableImageError(f"{shown(path)} cannot be read as an image: {shown(str(error))}") from error

    @property
    def fingerprint(self) -> str:
        """Of the files' names, sizes and times, labels, window and size; the same where the folder has moved."""
        root = len(os.path.commonpath([min(self.paths), max(self.paths)]))
        content = hashlib.sha256(repr((self.window, self.image_size)).encode())
        for path, label in zip(self.paths, self.targets, strict=True):
            try:
                stat = os.stat(path)  # noqa: PTH116  # half the time of pathlib's
                told = f"{stat.st_size} {stat.st_mtime_ns}"
            except OSError:  # a link that leads nowhere
                told = ""
            content.update(f"{path[root:]} {told} {label}\n".encode(errors="surrogateescape"))
        return content.hexdigest()

    def _default_size(self) -> int:
        sides = []
        for path in self.paths[:: -(-len(self) // N_MEASURED)]:
            try:
                sides.append(short_side(path))
            except Exception as error:  # reported where the image is read
                log.debug("%s: %s", path, error)
        size = min(int(statistics.median(sides or [MAX_DEFAULT_SIZE])), MAX_DEFAULT_SIZE)
        log.info("image_size: %d px; short sides are %s px", size, f"{min(sides)} to {max(sides)}" if sides else "?")
        return size


def list_folders(data_dir: str, classes: list[str] | None) -> dict[str, list[Row]]:
    """The images of each split in `data_dir/{train,val,test}/<class>/*`, sorted, or of `data_dir` if it has no such.

    Args:
        data_dir: the folder.
        classes: names of the class folders to read; None for all.

    Raises:
        FileNotFoundError: there is no `train`.
        ValueError: a folder without images, or only one class.
    """
    if not Path(data_dir).is_dir():
        raise FileNotFoundError(f"{data_dir} is not a folder; {LAYOUT}")
    folders = {split: Path(data_dir, split) for split in SPLITS}
    if not any(folder.is_dir() for folder in folders.values()):
        log.info("images: all of %s is for training, as it holds no folder train", data_dir)
        folders["train"] = Path(data_dir)
    if not folders["train"].is_dir():
        raise FileNotFoundError(f"{folders['train']} is not a folder; {LAYOUT}")
    return {split: _list(folder, classes) for split, folder in folders.items() if folder.is_dir()}


def _list(folder: Path, classes: list[str] | None) -> list[Row]:
    names = sorted(entry.name for entry in folder.iterdir() if _is_class(entry))
    if names and classes is not None:
        if missing := sorted(set(classes) - set(names)):
            raise ValueError(f"{folder} has no images of the class {missing[0]!r}, which `classes` lists")
        names = [name for name in names if name in classes]
    if len(names) == 1:
        raise ValueError(
            f"{folder} holds one class folder, {names[0]!r}: labels need two; "
            f"to pretrain without labels put the images into {folder} itself"
        )
    if names and (loose := [entry for entry in folder.iterdir() if entry.suffix.lower() in EXTENSIONS]):
        log.warning(
            "%s: %d images beside the class folders are not read, such as %s", folder, len(loose), loose[0].name
        )
    rows = []
    for name in names or [""]:
        found = list_images(folder / name)
        if not found:
            raise ValueError(f"{folder / name} holds no images ({', '.join(EXTENSIONS)}); {LAYOUT}")
        rows += [Row(path, name) for path in found]
    return rows


def class_names(listed: dict[str, list[Row]], wanted: list[str] | None, source: str) -> list[str]:
    """Names of the classes in the order of their labels: by number where all are numbers, else by name.

    Args:
        listed: the images of each split.
        wanted: names that must be there.
        source: how messages call where they come from.

    >>> class_names({"train": [Row("a", "10"), Row("b", "9")]}, None, "a.csv")
    ['9', '10']

    Raises:
        ValueError: a wanted class is missing, or the splits differ in their classes.
    """
    of_split = {split: {row.label for row in rows} - {""} for split, rows in listed.items()}
    names = set().union(*of_split.values())
    if len(names) == 1:
        raise ValueError(f"{source} has one class, {names.pop()!r}: labels need two; without labels leave them empty")
    if missing := sorted(set(wanted or []) - names):
        raise ValueError(f"{source} has no images of the class {missing[0]!r}, which `classes` lists")
    for split, found in of_split.items():
        lacking = sorted(names - found)
        if lacking and of_split["train"]:
            raise ValueError(f"{source}: {split} has no images of the class {lacking[0]!r}, which other splits have")
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))


def _is_class(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".") and not entry.name.lower().endswith(EXTENSIONS)
