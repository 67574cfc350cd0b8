"""Decoded images in a file that is mapped into memory, shared by all processes and kept between runs."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from filelock import FileLock, Timeout

from msssl.data.pixels.decode import Chunk, Decoded
from msssl.data.pixels.item import ReadFailedError
from msssl.data.pixels.pixel_format import ImageKind

VERSION = 3  # of the files below and of how images are decoded
_DESCRIPTIONS = {torch.uint8: "|u1", torch.uint16: "<u2", torch.float32: "<f4"}  # of NumPy
log = logging.getLogger(__name__)


def path_in(cache_dir: Path, content: str, kind: ImageKind) -> Path:
    """Folder of the cache of a data set with this fingerprint, decoded to images of this kind."""
    key = hashlib.sha256(f"{VERSION} {content} {kind.shape} {kind.dtype}".encode()).hexdigest()[:16]
    return cache_dir / key


class Mapped(Decoded):
    """A data set in a file that is mapped into memory; processes that are not forked map it anew."""

    mapped = True

    def __init__(self, folder: Path, paths: Sequence[str] | None = None) -> None:
        images = np.load(folder / "images.npy", mmap_mode="c")  # read only; "r" makes torch warn
        targets = torch.from_numpy(np.load(folder / "targets.npy"))
        reasons = json.loads((folder / "unreadable.json").read_text())
        super().__init__(torch.from_numpy(images), targets, {int(i): why for i, why in reasons.items()}, paths)
        self.folder = folder

    def __reduce__(self) -> tuple[type["Mapped"], tuple[Path]]:
        return Mapped, (self.folder,)


def load_or_build(
    folder: Path,
    n_images: int,
    kind: ImageKind,
    chunks: Iterable[Chunk],
    still_unreadable: Callable[[int], bool],
    paths: Sequence[str] | None = None,
) -> Decoded:
    """Map a cache, after building it where there is none.

    One process builds while the others wait; it writes beside and renames, so that what has the final name is whole.

    Args:
        folder: of the cache.
        n_images: n.
        kind: of the images.
        chunks: all images in order; only consumed to build.
        still_unreadable: whether an image that could not be read when the cache was built still cannot; else it is
            built anew.
        paths: of the images, where there are any; not kept in the cache.

    Raises:
        OSError: the folder cannot be written, or the disk is full (nothing is left behind), or what is there is
            damaged.
    """
    if not _is_current(folder, still_unreadable):
        with _building(folder):
            if not _is_current(folder, still_unreadable):  # another process may have built it
                _build(folder, n_images, kind, chunks)
    return _load(folder, paths)


class DamagedCacheError(OSError):
    """A cache that is not what was written."""


@contextmanager
def _building(folder: Path) -> Iterator[None]:
    """One process at a time builds in a folder of caches; OSError says that it cannot be written."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("cache: waiting for the process that builds in %s", folder.parent)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    except (DamagedCacheError, ReadFailedError):
        raise
    except OSError as error:
        raise OSError(
            f"the cache {folder} cannot be written: {error.strerror or error}; "
            "say where with cache_dir, or read without one: storage: stream"
        ) from error


def _is_current(folder: Path, still_unreadable: Callable[[int], bool]) -> bool:
    """Whether there is a cache, and none of its unreadable images can be read by now."""
    return folder.is_dir() and all(map(still_unreadable, _load(folder).unreadable))


def _load(folder: Path, paths: Sequence[str] | None = None) -> Mapped:
    try:
        return Mapped(folder, paths)
    except (OSError, ValueError) as error:
        raise DamagedCacheError(f"the cache {folder} is damaged ({error}): delete it") from error


def _build(folder: Path, n_images: int, kind: ImageKind, chunks: Iterable[Chunk]) -> None:
    growing = folder.with_suffix(".tmp")
    shutil.rmtree(growing, ignore_errors=True)  # of a process that was killed
    growing.mkdir()
    try:
        targets = np.empty(n_images, dtype="<i8")
        unreadable: dict[int, str] = {}
        with _durably(growing / "images.npy") as file:
            _write_header(file, _DESCRIPTIONS[kind.dtype], (n_images, *kind.shape))
            start = 0
            for chunk in chunks:
                file.write(chunk.images.numpy().data)
                targets[start : start + len(chunk.targets)] = chunk.targets
                start += len(chunk.targets)
                unreadable.update(chunk.unreadable)
        with _durably(growing / "targets.npy") as file:
            _write_header(file, "<i8", targets.shape)
            file.write(targets.data)  # not by `np.save`, whose error on a full disk has no number
        with _durably(growing / "unreadable.json") as file:
            file.write(json.dumps(unreadable).encode())
        shutil.rmtree(folder, ignore_errors=True)  # one that had images that can be read now
        growing.rename(folder)
    except BaseException:
        shutil.rmtree(growing, ignore_errors=True)
        raise


@contextmanager
def _durably(path: Path) -> Iterator[IO[bytes]]:
    """A file to append to. It is not mapped: a full disk must raise, not kill."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _write_header(file: IO[bytes], description: str, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": description, "fortran_order": False, "shape": shape})
