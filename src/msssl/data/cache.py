"""Decoded images in a file that is mapped into memory, shared by all processes and kept between runs."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from msssl.data.decode import Chunk
from msssl.data.images import Decoded

VERSION = 1  # of the files below and of how images are decoded
log = logging.getLogger(__name__)


def fingerprint(dataset: Dataset[Any]) -> str | None:
    """A name for the content of a data set, found without decoding it; None where there is no way to tell.

    It is the data set's own `fingerprint`, or a hash of its arrays (those of torchvision's CIFAR and STL-10, and of a
    `TensorDataset`).
    """
    own = getattr(dataset, "fingerprint", None)
    if isinstance(own, str):
        return own
    arrays: Sequence[Any] = dataset.tensors if isinstance(dataset, TensorDataset) else [getattr(dataset, "data", None)]
    if not all(isinstance(array, np.ndarray | Tensor) for array in arrays):
        return None
    content = hashlib.sha256()
    for name in ("targets", "labels"):
        content.update(repr(getattr(dataset, name, None)).encode())
    for array in arrays:
        content.update(f"{array.dtype} {tuple(array.shape)}".encode())
        content.update(np.ascontiguousarray(array).view(np.uint8).data)
    return content.hexdigest()


def path_in(cache_dir: Path, content: str, size: tuple[int, int]) -> Path:
    """Folder of the cache of a data set with this fingerprint, decoded at a size (H, W)."""
    key = hashlib.sha256(f"{VERSION} {content} {size}".encode()).hexdigest()[:16]
    return cache_dir / key


def load_or_build(
    folder: Path,
    n_images: int,
    size: tuple[int, int],
    chunks: Iterable[Chunk],
    still_unreadable: Callable[[int], bool],
) -> Decoded:
    """Map a cache, after building it where there is none.

    One process builds while the others wait; it writes beside and renames, so that what has the final name is whole.

    Args:
        folder: of the cache.
        n_images: n.
        size: (H, W).
        chunks: all images in order; only consumed to build.
        still_unreadable: whether an image that could not be read when the cache was built still cannot; else it is
            built anew.

    Raises:
        OSError: the folder cannot be written, or the disk is full (nothing is left behind), or what is there is
            damaged.
    """
    try:
        if not _is_current(folder, still_unreadable):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _locked(folder.parent / "lock", folder):
                if not _is_current(folder, still_unreadable):
                    _build(folder, n_images, size, chunks)
    except OSError as error:
        raise OSError(
            f"the cache {folder} cannot be written: {error.strerror or error}; "
            "say where with cache_dir, or read without one: storage: stream"
        ) from error
    try:
        return _load(folder)
    except (OSError, ValueError) as error:
        raise OSError(f"the cache {folder} is damaged ({error}): delete it") from error


def _is_current(folder: Path, still_unreadable: Callable[[int], bool]) -> bool:
    return folder.is_dir() and all(map(still_unreadable, _unreadable(folder)))


def _build(folder: Path, n_images: int, size: tuple[int, int], chunks: Iterable[Chunk]) -> None:
    growing = folder.with_suffix(".tmp")
    shutil.rmtree(growing, ignore_errors=True)  # of a process that was killed
    growing.mkdir()
    try:
        targets = np.empty(n_images, dtype="<i8")
        unreadable: dict[int, str] = {}
        with _durably(growing / "images.npy", "|u1", (n_images, 3, *size)) as file:
            start = 0
            for chunk in chunks:
                file.write(chunk.images.numpy().data)
                targets[start : start + len(chunk.targets)] = chunk.targets
                start += len(chunk.targets)
                unreadable.update(chunk.unreadable)
        with _durably(growing / "targets.npy", "<i8", targets.shape) as file:
            file.write(targets.data)
        (growing / "unreadable.json").write_text(json.dumps(unreadable))
        shutil.rmtree(folder, ignore_errors=True)  # one that had images that can be read now
        growing.rename(folder)
    except BaseException:
        shutil.rmtree(growing, ignore_errors=True)
        raise


def _load(folder: Path) -> Decoded:
    images = np.load(folder / "images.npy", mmap_mode="c")  # read only; "r" makes torch warn
    targets = torch.from_numpy(np.load(folder / "targets.npy"))
    return Decoded(torch.from_numpy(images), targets, _unreadable(folder), mapped=True)


def _unreadable(folder: Path) -> dict[int, str]:
    return {int(index): reason for index, reason in json.loads((folder / "unreadable.json").read_text()).items()}


@contextmanager
def _durably(path: Path, kind: str, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """An array's file, to append its bytes to. It is not mapped: a full disk must raise, not kill."""
    with path.open("wb") as file:
        header = {"descr": kind, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _locked(path: Path, folder: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("cache: waiting for the process that builds in %s", folder.parent)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
