"""Which slices and tiles of the listed files are images: a volume has many slices, and a large image many tiles."""

import functools
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from msssl.data.pixels.arrays.layout import Array, Header, Kind, Region
from msssl.data.pixels.arrays.read import kind_of, read_array, read_header, read_region
from msssl.data.pixels.files import open_pixels, shown
from msssl.data.pixels.high_bit_depth import PixelsError
from msssl.data.pixels.pixel_format import PixelFormat
from msssl.data.sets.manifest import Row
from msssl.errors import UserError
from msssl.progress import with_bar
from msssl.wording import counted

OWN_WINDOW = (0.0, 1.0)  # of values that a window of the file itself has mapped to [0, 1]
_NAMES = {"tiff": "TIFF", "npy": "NumPy", "dicom": "DICOM", None: "ordinary"}
log = logging.getLogger(__name__)


class Piece(NamedTuple):
    """An image: a file, a slice of a file, or a tile of one of these.

    Attributes:
        row: of the file, with its label and group.
        number: of the slice.
        tile: first row and column of the tile; None for all of the slice.
        of_many: whether the file has several slices.
    """

    row: Row
    number: int = 0
    tile: tuple[int, int] | None = None
    of_many: bool = False

    @property
    def path(self) -> str:
        """The path of the file, with slice and tile as the fragment of a URL.

        >>> Piece(Row("a.png")).path, Piece(Row("b.tif"), 3, (0, 256), True).path
        ('a.png', 'b.tif#slice=3&y=0&x=256')
        """
        parts = [f"slice={self.number}"] if self.of_many else []
        parts += [] if self.tile is None else [f"y={self.tile[0]}", f"x={self.tile[1]}"]
        return self.row.path + ("#" + "&".join(parts) if parts else "")


class Reader(NamedTuple):
    """How the pixels of files are read: as arrays, or as the images that Pillow opens.

    Attributes:
        arrays: whether they are TIFF of science, npy or DICOM.
        axes: of stored arrays, where their files do not say them.
        own_window: whether values of DICOM are mapped by the window of their file.
    """

    arrays: bool = False
    axes: str | None = None
    own_window: bool = True

    def header(self, path: str) -> Header:
        """What a file of arrays holds, without reading its pixels."""
        return read_header(path, self.axes, self.own_window)

    def read(self, piece: Piece, side: int | None, pixel_format: PixelFormat) -> Array:
        """The values (C, H, W) of a piece: uint8, uint16 or float32.

        Args:
            piece: what is read; of an ordinary image it is turned upright.
            side: of tiles in pixels.
            pixel_format: what it becomes.
        """
        path, index = piece.row.path, piece.number
        if not self.arrays:
            if piece.tile is None:
                return open_pixels(path, pixel_format)
            whole = _whole_image(path, pixel_format.of_whole(), Path(path).stat().st_mtime_ns)
            return pixel_format.finish_array(_cut(whole, piece.tile, side))
        if piece.tile is None or side is None:
            return pixel_format.from_array(read_array(path, index, self.axes, self.own_window))
        region = read_region(path, *piece.tile, side, side, index, self.axes, self.own_window)
        return pixel_format.from_array(region)


@functools.lru_cache(maxsize=1)  # its tiles are mostly read one after the other
def _whole_image(path: str, pixel_format: PixelFormat, version: int) -> Array:
    return open_pixels(path, pixel_format)


def _cut(values: Array, tile: tuple[int, int], side: int | None) -> Array:
    assert side is not None
    rows, columns = Region(*tile, side, side).check_inside(*values.shape[1:]).slices
    return values[:, rows, columns]


def reader_of(listed: Iterable[Row], axes: str | None, own_window: bool, source: str) -> Reader:
    """How the listed files are read.

    TIFFs are ordinary images where the first of them that can be opened is one image that Pillow reads.

    Args:
        listed: the files.
        axes: of stored arrays, as the user gave them.
        own_window: whether values of DICOM are mapped by the windows of their files.
        source: how messages call where the files are.

    Raises:
        ValueError: files of several kinds, or `axes` for ordinary images.
    """
    paths: dict[Kind | None, list[str]] = {}
    for row in listed:
        paths.setdefault(kind_of(row.path), []).append(row.path)
    if axes is None and "tiff" in paths and _are_photographs(paths["tiff"]):
        paths.setdefault(None, []).extend(paths.pop("tiff"))
    if len(paths) > 1:
        kinds = " and ".join(f"{len(of_kind)} {_NAMES[kind]} ({shown(of_kind[0])})" for kind, of_kind in paths.items())
        raise UserError(
            f"{source} holds images of several kinds: {kinds}; move one kind elsewhere, or list the images to read in "
            "a manifest"
        )
    (kind,) = paths
    if kind is None and axes is not None:
        raise UserError(f"axes is {axes!r}, but the images of {source} are no arrays: leave axes out")
    return Reader(kind is not None, axes, own_window)


def _are_photographs(paths: list[str]) -> bool:
    """Whether the first of these TIFFs that can be opened is one image that Pillow reads."""
    for path in paths:
        try:
            with Image.open(path) as image:
                return getattr(image, "n_frames", 1) == 1
        except Exception as error:  # many kinds
            log.debug("%s: %s", path, error)
        try:
            read_header(path)
        except (PixelsError, OSError) as error:  # damaged
            log.debug("%s: %s", path, error)
        else:
            return False
    return True


def _log_what_files_say(headers: list[Header], pieces: list[Piece]) -> None:
    """Log axes that are a guess, and one group for all images, as where patients were made anonymous."""
    for header in headers:
        if header.guessed:
            channels, height, width = header.shape
            log.warning(
                "axes: files do not say what their axes are, and %s is a guess: %s of %s, %d x %d pixels, in each "
                "file; --data.axes says otherwise",
                *(header.axes, counted(header.n_slices, "image"), counted(channels, "channel"), height, width),
            )
    if headers and headers[0].kind == "dicom" and len({piece.row.group for piece in pieces}) == 1 < len(pieces):
        log.warning("all images are of one patient by their PatientID: give groups by a manifest or group_level")


def slices_of(rows: list[Row], reader: Reader) -> tuple[list[Piece], Header | None]:
    """The slices of files of arrays, with the groups that files say, and the header of the first file.

    A file whose header cannot be read is one piece, which is reported when it is read.

    Raises:
        ValueError: some files map their values by a window of their own and others do not.
    """
    pieces: list[Piece] = []
    headers: dict[bool, tuple[str, Header]] = {}  # the first with and without a window
    for row in with_bar(rows, "Reading headers", len(rows)):
        try:
            header = reader.header(row.path)
        except (PixelsError, OSError):
            pieces.append(Piece(row))
            continue
        headers.setdefault(header.window is None, (row.path, header))
        grouped = row if row.group else row._replace(group=header.group or "")
        pieces += [Piece(grouped, index, of_many=header.n_slices > 1) for index in range(header.n_slices)]
    _log_what_files_say([header for _, header in headers.values()], pieces)
    if len(headers) == 2:
        (with_window, _), (without, _) = headers[False], headers[True]
        raise UserError(
            f"{shown(with_window)} has a window of its own and {shown(without)} has none: give window, the values that "
            "become black and white in all of them, or auto to have it found"
        )
    return pieces, next(iter(headers.values()))[1] if headers else None
