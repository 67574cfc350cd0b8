"""Reads arrays of NumPy: `.npy`, of which only the part that is needed, and the only array of an `.npz`."""

import zipfile
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np

from msssl.data.pixels.arrays.layout import Array, Header, Layout, Region, layout_of
from msssl.data.pixels.arrays.values import check_shape, dtype_of, errors_of_the_file, to_dtype
from msssl.data.pixels.high_bit_depth import PixelsError

NAME = "npy or npz file"


class _Stored(NamedTuple):
    """What the header of an array says, and where its values begin in the file."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    start: int

    @property
    def n_bytes(self) -> int:
        return self.start + int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def read_header(path: Path, axes: str | None) -> Header:
    """Shape and type of the array; no value is read."""
    with errors_of_the_file(NAME), path.open("rb") as file:
        if _is_archive(file):
            with zipfile.ZipFile(file) as archive, archive.open(info := _only_array(archive)) as member:
                stored = _header(member, info.file_size)
        else:
            stored = _header(file, path.stat().st_size)
    layout = layout_of(stored.shape, axes)
    group = str(path) if layout.n_slices > 1 else None
    return Header(
        kind="npy",
        shape=layout.image_shape,
        dtype=dtype_of(stored.dtype),
        n_slices=layout.n_slices,
        group=group,
        axes=layout.axes,
        guessed=layout.guessed,
    )


def read(path: Path, index: int, region: Region | None, axes: str | None) -> Array:
    """A region of a slice, (C, h, w). Of an `.npy` nothing else is read, of an `.npz` the array is decoded whole."""
    with errors_of_the_file(NAME), path.open("rb") as file:
        if _is_archive(file):
            with zipfile.ZipFile(file) as archive:
                return _take(_decoded(archive), index, region, axes)
        stored = _header(file, path.stat().st_size)
        order: Literal["F", "C"] = "F" if stored.fortran_order else "C"
        mapped = np.memmap(path, stored.dtype, mode="r", offset=stored.start, shape=stored.shape, order=order)
        return _take(mapped, index, region, axes)


def _take(values: Array, index: int, region: Region | None, axes: str | None) -> Array:
    layout: Layout = layout_of(values.shape, axes)
    return to_dtype(layout.to_image(values[layout.select(index, region)]))


def _is_archive(file: IO[bytes]) -> bool:
    """Whether it is an npz, whatever its name."""
    start = file.read(2)
    file.seek(0)
    return start == b"PK"


def _decoded(archive: zipfile.ZipFile) -> Array:
    info = _only_array(archive)
    with archive.open(info) as member:
        _header(member, info.file_size)
    with archive.open(info) as member:
        return np.asarray(np.lib.format.read_array(member, allow_pickle=False))


def _only_array(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    if len(infos) != 1:
        names = ", ".join(info.filename.removesuffix(".npy") for info in infos) or "none"
        raise PixelsError(f"it holds {len(infos)} arrays ({names}): save one array in each file")
    return infos[0]


def _header(file: IO[bytes], n_bytes: int) -> _Stored:
    """What an array of a file of `n_bytes` is, if it can become an image.

    Raises:
        PixelsError: its values are no real numbers, there are none, or the file is too short for them.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):  # 3.0 is for the names of structured types
        raise PixelsError(f"its format has the version {version[0]}.{version[1]}: expected 1.0 or 2.0")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    stored = _Stored(*read(file), file.tell())
    dtype_of(stored.dtype)
    check_shape(stored.shape)
    if n_bytes < stored.n_bytes:
        raise PixelsError(f"it has {n_bytes:,} bytes, expected {stored.n_bytes:,}: it is truncated")
    return stored
