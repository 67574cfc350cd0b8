"""`ImageFiles`, a data set of image files with labels; also finds a default image size and the class names."""

import hashlib
import logging
import os
import statistics
from collections import Counter

from torch import Tensor
from torch.utils.data import Dataset

from msssl.data.pixels.files import short_side, shown
from msssl.data.pixels.item import UnreadableImageError, stop_for_the_machine
from msssl.data.pixels.pixel_format import PixelFormat, as_tensor
from msssl.data.sets.manifest import Row
from msssl.data.sets.pieces import Piece, Reader
from msssl.errors import UserError

MAX_DEFAULT_SIZE = 64
N_NAMED = 5  # classes that the log names
N_MEASURED = 100  # images that the default size is taken from
log = logging.getLogger(__name__)


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """The images of files, with labels.

    Args:
        pieces: the files, or their slices or tiles.
        classes: names of the classes, in the order of their labels.
        pixel_format: what the images become.
        reader: of the files.
        side: of tiles in pixels, where the pieces are tiles.

    Attributes:
        classes: as given.
        groups: what each image must not be separated from, where the rows say so.
    """

    is_formatted = True

    def __init__(
        self,
        pieces: list[Piece],
        classes: list[str],
        pixel_format: PixelFormat,
        reader: Reader | None = None,
        side: int | None = None,
    ) -> None:
        self.classes = classes
        numbers = {name: label for label, name in enumerate(classes)}
        self.pieces = pieces
        self.paths = [piece.path for piece in pieces]
        self.targets = [numbers.get(piece.row.label, -1) for piece in pieces]
        grouped = any(piece.row.group or piece.of_many or piece.tile for piece in pieces)
        self.groups = [piece.row.group or piece.row.path for piece in pieces] if grouped else None
        self.pixel_format = pixel_format
        self.reader = reader or Reader()
        self.side = side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        piece, path = self.pieces[index], self.paths[index]
        try:
            return as_tensor(self.reader.read(piece, self.side, self.pixel_format)), self.targets[index]
        except Exception as error:  # Pillow's formats raise many kinds
            stop_for_the_machine(error, shown(path))
            raise UnreadableImageError(f"{shown(path)} cannot be read as an image: {shown(str(error))}") from error

    @property
    def fingerprint(self) -> str:
        """Of the files' names, sizes and times, labels and format; the same where the folder has moved."""
        root = len(os.path.commonpath([min(self.paths), max(self.paths)]))
        content = hashlib.sha256(repr((self.pixel_format, self.reader, self.side)).encode())
        versions: dict[str, str] = {}
        for piece, path, label in zip(self.pieces, self.paths, self.targets, strict=True):
            if piece.row.path not in versions:
                versions[piece.row.path] = _version(piece.row.path)
            content.update(f"{path[root:]} {versions[piece.row.path]} {label}\n".encode(errors="surrogateescape"))
        return content.hexdigest()


def _version(path: str) -> str:
    """Size and time of a file; empty for a link that leads nowhere."""
    try:
        stat = os.stat(path)  # noqa: PTH116  # half the time of pathlib's
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


def default_size(paths: list[str], reader: Reader) -> int:
    """Side in pixels that suits these files: the median short side of 100 of them, at most 64."""
    sides = []
    for path in paths[:: -(-len(paths) // N_MEASURED)]:
        try:
            sides.append(min(reader.header(path).shape[1:]) if reader.arrays else short_side(path))
        except Exception as error:  # reported where the image is read
            log.debug("%s: %s", path, error)
    size = min(int(statistics.median(sides or [MAX_DEFAULT_SIZE])), MAX_DEFAULT_SIZE)
    log.info("image_size: %d px; short sides are %s px", size, f"{min(sides)} to {max(sides)}" if sides else "?")
    return size


def class_names(listed: dict[str, list[Row]], wanted: list[str] | None, source: str) -> list[str]:
    """Names of the classes in the order of their labels: by number where all are numbers, else by name.

    Args:
        listed: the images of each split.
        wanted: names that must be there.
        source: how messages call where they come from.

    >>> class_names({"train": [Row("a", "10"), Row("b", "9")]}, None, "a.csv")
    ['9', '10']

    Raises:
        ValueError: there is one class, or a wanted class or one of another split has no training images.
    """
    of_split = {split: {row.label for row in rows} - {""} for split, rows in listed.items()}
    names = set().union(*of_split.values())
    if len(names) == 1:
        raise UserError(f"{source} has one class, {names.pop()!r}: labels need two; without labels leave them empty")
    if missing := sorted(set(wanted or []) - names):
        raise UserError(f"{source} has no images of the class {missing[0]!r}, which `classes` lists")
    for split, its_names in of_split.items():
        lacking = sorted(names - its_names)
        if not lacking or not of_split["train"]:
            continue
        if split == "train":
            raise UserError(f"{source}: train has no images of the class {lacking[0]!r}, which other splits have")
        if its_names:
            log.warning(
                "%s: %s has no images of %d of the classes, such as %r", source, split, len(lacking), lacking[0]
            )
        else:
            log.warning("%s: the images of %s have no labels", source, split)
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))


def log_classes(names: list[str], rows: list[Row], origin: str) -> None:
    """Say which classes there are, and how large the smallest and the largest are.

    Args:
        names: of the classes.
        rows: the training images.
        origin: what names them.
    """
    if not names:
        return
    first = ", ".join(map(shown, names[:N_NAMED])) + (", ..." if len(names) > N_NAMED else "")
    counts = Counter(row.label for row in rows if row.label)
    sizes = sorted((counts[name], shown(name)) for name in names)
    (least, smallest), (most, largest) = sizes[0], sizes[-1]
    spread = f"{least} ({smallest}) to {most} ({largest}) training images each" if counts else "none of them in train"
    log.info("classes: %d, by %s: %s; %s", len(names), origin, first, spread)
