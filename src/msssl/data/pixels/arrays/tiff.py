"""Reads TIFF with `tifffile`: any number of channels, pages and bits, and only the strips or tiles that are needed."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msssl.data.pixels.arrays.layout import MAX_CHANNELS, Array, Header, Layout, Region, layout_of
from msssl.data.pixels.arrays.values import check_shape, dtype_of, errors_of_the_file, one_line, to_dtype
from msssl.data.pixels.high_bit_depth import PixelsError
from msssl.errors import MissingPackageError

_LETTERS = {"Y": "H", "X": "W", "S": "C", "C": "C"}  # of tifffile's axes; all others are slices
_UNKNOWN = set("IQ")  # axes of which the file does not say what they are
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_MAX_PIXELS_PER_BYTE = 2**16  # of a file; neither a compression nor an image that is mostly empty has more
_JPEG = (6, 7, 34892, 33007)  # compressions, whose YCbCr tifffile turns into RGB


def read_header(path: Path, axes: str | None) -> Header:
    """Shape and type of the first series at its full resolution; no pixel is read."""
    with _opened(path, axes) as stored:
        layout = stored.layout
        (channels, height, width), dtype = layout.image_shape, dtype_of(stored.dtype)
        if stored.palette is not None:
            channels, dtype = 3, "uint8"
        group = str(path) if layout.n_slices > 1 else None
        return Header(
            kind="tiff",
            shape=(channels, height, width),
            dtype=dtype,
            n_slices=layout.n_slices,
            group=group,
            axes=layout.axes,
            guessed=layout.guessed,
        )


def read(path: Path, index: int, region: Region | None, axes: str | None) -> Array:
    """A region of a slice, (C, h, w); only the pages, and of these the strips or tiles, that it touches are decoded."""
    with _opened(path, axes) as stored:
        selection = stored.layout.select(index, region)
        image = stored.layout.to_image(stored.select(selection))
        if stored.palette is not None:
            return np.ascontiguousarray(stored.palette[:, image[0]])
        return to_dtype(image)


@dataclass(frozen=True)
class _Stored:
    """The array of a TIFF.

    Attributes:
        layout: of all pages together.
        pages: in order; each holds the last axes of the array.
        dtype: of the values in memory.
        mapped: the whole array, where it lies in the file as in memory.
        palette: the colour of each value, uint8 (3, n), where values stand for colours.
    """

    layout: Layout
    pages: Any
    dtype: np.dtype[Any]
    mapped: Array | None
    palette: Array | None

    def select(self, selection: tuple[int | slice, ...]) -> Array:
        if self.mapped is not None:
            return self.mapped[selection]
        page_shape = self.pages[0].keyframe.shape
        n_leading = len(self.layout.shape) - len(page_shape)
        leading, within = selection[:n_leading], selection[n_leading:]
        numbers = np.arange(math.prod(self.layout.shape[:n_leading])).reshape(self.layout.shape[:n_leading])[leading]
        parts = [_read_page(self.pages[int(number)], within) for number in np.atleast_1d(numbers).ravel()]
        return np.stack(parts).reshape(*np.shape(numbers), *parts[0].shape)


@contextmanager
def _opened(path: Path, axes: str | None) -> Iterator[_Stored]:
    try:
        import tifffile
    except ImportError as error:
        raise MissingPackageError("TIFF needs tifffile: pip install 'msssl[science]'") from error
    try:
        with errors_of_the_file("TIFF"), tifffile.TiffFile(path) as file:
            yield _stored(path, file, axes)
    except PixelsError as error:
        if "imagecodecs" in str(error):  # tifffile names the compression
            raise MissingPackageError(f"{error.__cause__ or error}: pip install 'msssl[science]'") from error
        raise


def _stored(path: Path, file: Any, axes: str | None) -> _Stored:
    series = file.series[0]
    if series.kind == "ome" and any(page is not None and page.parent is not file for page in series):
        raise PixelsError("its images lie in several files (multi-file OME-TIFF): save each image in a file of its own")
    pages, key = series, series.keyframe
    shape, letters, offset = series.shape, series.axes, series.dataoffset
    if len(file.series) > 1 and len(series.pages) == 1 and _are_alike(file.series):
        # pages that were written one after the other
        pages = [each.pages[0] for each in file.series]
        shape, letters, offset = (len(pages), *shape), "I" + letters, None
    check_shape(shape)
    if key.dtype is None:
        raise PixelsError(
            f"its values have {one_line(key.bitspersample, 16)} bits in a form that is not read: save them as integers"
        )
    layout = _layout(shape, letters, axes)
    dtype = np.dtype(file.byteorder + key.dtype.char)
    dtype_of(dtype)
    n_bytes = path.stat().st_size
    if (
        max(math.prod(key.shaped), math.prod(key.chunks)) > _MAX_PIXELS_PER_BYTE * n_bytes
    ):  # else memory is what seems to lack
        raise PixelsError(
            f"its header says {key.imagelength} x {key.imagewidth} pixels in {n_bytes:,} bytes: it is damaged"
        )
    mapped = None
    if offset is not None:
        expected = offset + math.prod(shape) * dtype.itemsize
        if n_bytes < expected:
            raise PixelsError(f"it has {n_bytes:,} bytes, expected {expected:,}: it is truncated")
        mapped = np.memmap(path, dtype, mode="r", offset=offset, shape=shape)
    return _Stored(layout, pages, key.dtype, mapped, _palette(key, layout))


def _are_alike(series: Any) -> bool:
    return len({(each.shape, each.axes, str(each.dtype), len(each.pages)) for each in series}) == 1


def _layout(shape: tuple[int, ...], letters: str, axes: str | None) -> Layout:
    """By the file's own axes, or those that were given."""
    if axes is not None:
        return layout_of(shape, axes)
    if letters.count("Y") != 1 or letters.count("X") != 1:
        raise PixelsError(f"its axes are {letters} of shape {shape}: say what each axis is, such as axes: CHW")
    guessed = any(letter in _UNKNOWN and size > 1 for letter, size in zip(letters, shape, strict=True))
    if guessed and letters.endswith("YX") and shape[-1] <= MAX_CHANNELS < min(shape[-3:-1]):
        # (H, W, C), taken for H pages
        raise PixelsError(f"its array has the shape {shape}: say what each axis is, such as axes: HWC or ZHW")
    return Layout("".join(_LETTERS.get(letter, "Z") for letter in letters), shape, guessed)


def _palette(key: Any, layout: Layout) -> Array | None:
    """The colours that values stand for; PixelsError for colours that are not read."""
    photometric = int(key.photometric)
    if photometric == _PALETTE:
        if key.colormap is None or layout.image_shape[0] != 1 or key.dtype.kind != "u":
            raise PixelsError("its values stand for colours, but its table of colours is missing: save it as RGB")
        return np.asarray(key.colormap >> 8, dtype=np.uint8)
    jpeg = photometric == _YCBCR and int(key.compression) in _JPEG
    if not jpeg and photometric not in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB):
        name = getattr(key.photometric, "name", photometric)
        raise PixelsError(f"its colours are stored as {name}: save it as RGB, or as channels of grey")
    return None


def _read_page(page: Any, within: tuple[int | slice, ...]) -> Array:
    """What `within` selects of a page."""
    if page is None:
        raise PixelsError("a page of it is missing: save it again")
    key = page.keyframe
    if key.shaped[1] != 1 or key.jpegheader is not None or key.is_contiguous or len(key.axes) != len(within):
        return np.asarray(page.asarray(out="memmap" if key.is_memmappable else None)[within])
    taken = dict(zip(key.axes, within, strict=True))
    rows, columns = (_as_slice(taken[axis], size) for axis, size in (("Y", key.imagelength), ("X", key.imagewidth)))
    part = _decode(page, rows, columns)
    # Of rows and columns only those that were selected are there; of samples, all.
    sizes = {"Y": part.shape[1], "X": part.shape[2]}
    part = part.reshape([sizes.get(axis, -1) for axis in key.axes])
    rest = [each if axis == "S" else slice(None) if isinstance(each, slice) else 0 for axis, each in taken.items()]
    return np.asarray(part[tuple(rest)])


def _as_slice(taken: int | slice, size: int) -> slice:
    return slice(*taken.indices(size)) if isinstance(taken, slice) else slice(taken, taken + 1)


def _decode(page: Any, rows: slice, columns: slice) -> Array:
    """Rows and columns of a page, (planes, h, w, samples), from the strips or tiles that they touch."""
    key, file = page.keyframe, page.parent.filehandle
    shape = (key.shaped[0], rows.stop - rows.start, columns.stop - columns.start, key.shaped[4])
    part = np.full(shape, key.nodata, key.dtype)
    for i, (offset, n_bytes) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
        _, (plane, _, y, x, _), (_, height, width, _) = key.decode(None, i)
        if not (y < rows.stop and rows.start < y + height and x < columns.stop and columns.start < x + width):
            continue
        if not offset or not n_bytes:  # none is stored: `nodata`
            continue
        if offset + n_bytes > file.size:
            raise PixelsError(f"it has {file.size:,} bytes, expected {offset + n_bytes:,} or more: it is truncated")
        file.seek(offset)
        decoded = key.decode(file.read(n_bytes), i, jpegtables=page.jpegtables, jpegheader=key.jpegheader)[0][0]
        top, left = max(y, rows.start), max(x, columns.start)
        bottom = min(y + decoded.shape[0], rows.stop)
        right = min(x + decoded.shape[1], columns.stop)
        target = part[plane, top - rows.start : bottom - rows.start, left - columns.start : right - columns.start]
        target[...] = decoded[top - y : bottom - y, left - x : right - x]
    return part
