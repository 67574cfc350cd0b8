"""Decodes all images of a data set with several processes, or only checks which of them can be read."""

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from msssl.data.pixels.item import UnreadableImageError, check_kind, read
from msssl.data.pixels.labels import labels_of, labels_or_minus_one
from msssl.data.pixels.pixel_format import ImageKind
from msssl.errors import UserError
from msssl.progress import with_bar

CHUNK_BYTES = 1 << 20  # handed over at a time
Item = TypeVar("Item")


class Decoded(Dataset[tuple[Tensor, Tensor]]):
    """All images of a data set as tensors: in memory, on the GPU, or mapped from a file.

    Args:
        images: shape (n, C, H, W), uint8, uint16 or float32.
        targets: labels, int64, shape (n,), on the same device.
        unreadable: why an image could not be read, by its position; it is black.
        paths: of the images, where the data set has them.

    Attributes:
        mapped: whether the images are in a file, and reading them may wait for the disk.
    """

    mapped = False

    def __init__(
        self, images: Tensor, targets: Tensor, unreadable: dict[int, str], paths: Sequence[str] | None = None
    ) -> None:
        self.images = images
        self.targets = targets
        self.unreadable = unreadable
        self.paths = paths

    @property
    def kind(self) -> ImageKind:
        """That of all images."""
        return ImageKind.of(self.images[0])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        if self.images.is_cuda:  # pinned, so that the host does not wait for the copy
            index = index.pin_memory().to(self.images.device, non_blocking=True)
        images = self.images
        if images.dtype == torch.uint16:  # as few operations take it on a GPU
            images = images.view(torch.int16)
        rows = images.index_select(0, index)  # whole rows: 9 times as fast as [index]
        return rows.view(self.images.dtype), self.targets[index]


class Chunk(NamedTuple):
    """Some images (k, C, H, W), labels (k,), and why some could not be read, by position in the data set."""

    images: Tensor
    targets: Tensor
    unreadable: dict[int, str]


def decode(dataset: Dataset[Any], name: str, kind: ImageKind, num_workers: int, skip: bool) -> Iterator[Chunk]:
    """All images in order, in chunks, with a progress bar.

    Args:
        dataset: of (PIL image or tensor, label).
        name: how messages call it.
        kind: of the images.
        num_workers: processes; 0 for this one.
        skip: whether an unreadable image becomes a black one; else it raises.

    Raises:
        UnreadableImageError: with its path or position.
        ReadFailedError: the machine could not read an image.
        ValueError: an item that is no (image, label), another label than that of the data set's list, or an image of
            another kind.
    """
    n_images, length = _length(dataset), max(1, CHUNK_BYTES // kind.n_bytes)
    rows = [range(start, min(start + length, n_images)) for start in range(0, n_images, length)]
    yield from in_parallel(_Chunks(dataset, name, kind, skip), rows, f"Decoding {name}", num_workers)


def check(dataset: Dataset[Any], name: str, kind: ImageKind, rows: range, num_workers: int) -> dict[int, str]:
    """Why images could not be read, by their position; reads those of `rows`, with a progress bar."""
    chunks = [rows[start : start + 64] for start in range(0, len(rows), 64)]
    reasons: dict[int, str] = {}
    for of_chunk in in_parallel(
        _Chunks(dataset, name, kind, skip=True, pixels=False), chunks, f"Checking {name}", num_workers
    ):
        reasons.update(of_chunk.unreadable)
    return reasons


def image_kind(dataset: Dataset[Any], name: str, skip: bool) -> ImageKind:
    """The kind of the first image, or with `skip` of the first one that can be read."""
    for index in range(_length(dataset)):
        try:
            image, _ = read(dataset, index, name)
        except UnreadableImageError as error:
            if not skip:
                raise
            reason = str(error)
            continue
        return ImageKind.of(image)
    raise UserError(f"none of the {_length(dataset)} images of {name} can be read, such as: {reason}")


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Chunks(Dataset[Chunk]):
    """Chunks of images by their rows, or without `pixels` only why some cannot be read."""

    def __init__(self, dataset: Dataset[Any], name: str, kind: ImageKind, skip: bool, pixels: bool = True) -> None:
        self.dataset, self.name, self.kind, self.skip, self.pixels = dataset, name, kind, skip, pixels
        self.labels, self.targets = labels_of(dataset), labels_or_minus_one(dataset)

    def __getitem__(self, rows: range) -> Chunk:
        shape = self.kind.shape if self.pixels else (0, 0, 0)
        images = torch.zeros(len(rows), *shape, dtype=self.kind.dtype)
        targets = self.targets[rows.start : rows.stop : rows.step].clone()
        pixels, labels = images.numpy(), targets.numpy()  # the same memory, filled in half the time
        unreadable = {}
        for position, index in enumerate(rows):
            try:
                image, label = read(self.dataset, index, self.name, self.labels)
                if self.pixels or ImageKind.of(image).shape[1:] == self.kind.shape[1:]:  # sizes are checked in a batch
                    check_kind(image, self.kind, self.dataset, index, self.name)
            except UnreadableImageError as error:
                if not self.skip:
                    raise
                unreadable[index] = str(error)
                continue
            labels[position] = label
            if self.pixels:
                pixels[position] = image.numpy()
        return Chunk(images, targets, unreadable)


def in_parallel(dataset: Dataset[Item], keys: list[Any], what: str, num_workers: int) -> Iterator[Item]:
    """The items of these keys, in their order, read by several processes, with a progress bar that is called `what`."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=keys,
        num_workers=min(num_workers, len(keys) - 1),
        generator=torch.Generator(),  # its base seed must not come from the global state
    )
    yield from with_bar(loader, what, len(keys))


def _length(dataset: Dataset[Any]) -> int:
    return len(dataset)  # type: ignore[arg-type]  # a map-style data set has one
