"""Decoded images in a file that is mapped into memory, shared by all processes and kept between runs."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def load_or_build(folder: Path, n_images: int, size: tuple[int, int], chunks: Iterable[Chunk]) -> Decoded:
    """Map a cache, after building it where there is none.

    One process builds while the others wait; it writes beside and renames, so that what has the final name is whole.

    Args:
        folder: of the cache.
        n_images: n.
        size: (H, W).
        chunks: all images in order; only consumed to build.

    Raises:
        OSError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    try:
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _locked(folder.parent / "lock", folder):
                if not folder.is_dir():
                    _build(folder, n_images, size, chunks)
    except OSError as error:
        raise OSError(
            f"the cache {folder} cannot be written: {error.strerror}; "
            "say where with cache_dir, or read without one: storage: stream"
        ) from error
    return _load(folder)


def _build(folder: Path, n_images: int, size: tuple[int, int], chunks: Iterable[Chunk]) -> None:
    growing = folder.with_suffix(".tmp")
    shutil.rmtree(growing, ignore_errors=True)  # of a process that was killed
    growing.mkdir()
    try:
        targets, unreadable = [], {}
        with (growing / "images.npy").open("wb") as file:  # not mapped: a full disk must raise, not kill
            header = {"descr": "|u1", "fortran_order": False, "shape": (n_images, 3, *size)}
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in chunks:
                file.write(chunk.images.numpy().data)
                targets.append(chunk.targets)
                unreadable.update(chunk.unreadable)
            file.flush()
            os.fsync(file.fileno())
        np.save(growing / "targets.npy", torch.cat(targets).numpy())
        (growing / "unreadable.json").write_text(json.dumps(unreadable))
        growing.rename(folder)
    except BaseException:
        shutil.rmtree(growing, ignore_errors=True)
        raise


def _load(folder: Path) -> Decoded:
    images = np.load(folder / "images.npy", mmap_mode="c")  # read only; "r" makes torch warn
    targets = torch.from_numpy(np.load(folder / "targets.npy"))
    unreadable = json.loads((folder / "unreadable.json").read_text())
    reasons = {int(index): reason for index, reason in unreadable.items()}
    return Decoded(torch.from_numpy(images), targets, reasons, mapped=True)


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
