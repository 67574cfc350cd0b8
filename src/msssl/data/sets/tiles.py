"""Cuts large images into tiles: where they lie, and which of them show nothing but background."""

import hashlib
import json
import logging
import math
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from msssl.data.pixels.arrays.layout import Array
from msssl.data.pixels.decode import in_parallel
from msssl.data.pixels.files import is_of_the_machine
from msssl.data.pixels.pixel_format import PixelFormat
from msssl.data.sets.pieces import Piece, Reader
from msssl.run.files import write_text
from msssl.wording import counted

VERSION = 1  # of the rule below, and of the files that keep what it found
LEAST, MOST = 0.001, 0.999  # shares of a tile's values below which its darkest and brightest ones lie
AT_ONCE = 1 << 29  # bytes of an array that is read whole; of larger ones each tile is read by itself
log = logging.getLogger(__name__)


class Tiles(NamedTuple):
    """How images are cut.

    Attributes:
        side: of a tile in pixels.
        contrast: tiles whose grey values have a standard deviation below this share of the image's range are left out.
    """

    side: int
    contrast: float

    def starts(self, length: int) -> list[int]:
        """First rows of the tiles of an image with so many rows: evenly spread, so that they reach both edges.

        >>> Tiles(256, 0.0).starts(600), Tiles(256, 0.0).starts(512)
        ([0, 172, 344], [0, 256])
        """
        number = math.ceil(length / self.side)
        return [round(i * (length - self.side) / max(1, number - 1)) for i in range(number)]


def tiles_of(
    pieces: list[Piece], reader: Reader, tiles: Tiles, name: str, cache_dir: Path, num_workers: int
) -> list[Piece]:
    """The tiles of images that show something, in their order.

    All images are read once for this; the result is kept in `cache_dir`. An image that cannot be read, or is smaller
    than a tile, is one piece, which is reported when it is read.

    Args:
        pieces: images, or slices of files.
        reader: of the files.
        tiles: how they are cut.
        name: how the progress bar calls the images.
        cache_dir: where the result is kept.
        num_workers: processes that read.
    """
    kept = cache_dir / f"tiles-{_key(pieces, reader, tiles)}.json"
    try:
        places = json.loads(kept.read_text())
    except (OSError, ValueError):
        surveys = _Surveys(pieces, reader, tiles)
        places = list(in_parallel(surveys, [*range(len(pieces))], f"Tiles of {name}", num_workers))
        try:
            write_text(kept, json.dumps(places))
        except OSError as error:  # they are found anew at the next start
            log.info("tiles of %s: not kept (%s)", name, error)
    found = [
        piece._replace(tile=(y, x)) if (y, x) != (-1, -1) else piece
        for piece, of_piece in zip(pieces, places, strict=True)
        for y, x in of_piece["kept"]
    ]
    left_out = sum(of_piece["left_out"] for of_piece in places)
    log.info(
        "tiles of %s: %d of %d pixels in %s; %d are background (standard deviation below %g of the range) "
        "and are left out",
        *(name, len(found), tiles.side, counted(len(pieces), "image"), left_out, tiles.contrast),
    )
    return found


def _key(pieces: list[Piece], reader: Reader, tiles: Tiles) -> str:
    content = hashlib.sha256(f"{VERSION} {reader} {tiles}".encode())
    for piece in pieces:
        try:
            stat = Path(piece.row.path).stat()
            version = f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:
            version = ""
        content.update(f"{piece.path} {version}\n".encode(errors="surrogateescape"))
    return content.hexdigest()[:16]


class _Surveys(Dataset[dict[str, Any]]):
    """For each image the tiles to keep, as [row, column] of their first pixel, and how many are left out."""

    def __init__(self, pieces: list[Piece], reader: Reader, tiles: Tiles) -> None:
        self.pieces, self.reader, self.tiles = pieces, reader, tiles

    def __getitem__(self, number: int) -> dict[str, Any]:
        piece = self.pieces[number]
        try:
            return self._survey(piece)
        except Exception as error:  # of many kinds, and raised again where the image is read
            if is_of_the_machine(error):
                raise
            return {"kept": [(-1, -1)], "left_out": 0}

    def _survey(self, piece: Piece) -> dict[str, Any]:
        side, plain, whole = self.tiles.side, PixelFormat(), None
        if self.reader.arrays:
            header = self.reader.header(piece.row.path)
            shape = header.shape
            if math.prod(shape) * np.dtype(header.dtype).itemsize <= AT_ONCE:
                whole = self.reader.read(piece, None, plain)
        else:
            whole = self.reader.read(piece, None, plain)
            shape = (len(whole), *whole.shape[1:])
        _, height, width = shape
        if min(height, width) < side:
            return {"kept": [(0, 0)], "left_out": 0}  # an error where it is read, as it is smaller than a tile
        places = list(product(self.tiles.starts(height), self.tiles.starts(width)))
        if self.tiles.contrast == 0:
            return {"kept": places, "left_out": 0}
        measures = []
        for y, x in places:
            if whole is None:
                tile = self.reader.read(piece._replace(tile=(y, x)), side, plain)
            else:
                tile = whole[:, y : y + side, x : x + side]
            measures.append(_measures(tile))
        deviations, darkest, brightest = np.array(measures).T
        largest = 255.0 if tile.dtype == np.uint8 else brightest.max() - darkest.min()
        shows = deviations >= self.tiles.contrast * max(largest, np.finfo(np.float32).tiny)
        shows[deviations.argmax()] = True  # so that no image disappears
        return {
            "kept": [place for place, keep in zip(places, shows, strict=True) if keep],
            "left_out": int((~shows).sum()),
        }


def _measures(values: Array) -> tuple[float, float, float]:
    """Standard deviation of the grey values of a tile (C, H, W), and two between which nearly all of them lie."""
    grey = values.mean(axis=0, dtype=np.float64)
    darkest, brightest = np.quantile(grey, (LEAST, MOST))
    return float(grey.std()), float(darkest), float(brightest)
