"""What a data module reads from: some rows of any data set of (image, label), as batches of tensors."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from msssl.data.files import shown, to_rgb

_UNREADABLE = (OSError, SyntaxError, EOFError, Image.DecompressionBombError)  # what Pillow raises


class UnreadableImageError(ValueError):
    """An image that its data set could not give."""


class Decoded(Dataset[tuple[Tensor, Tensor]]):
    """A whole data set as tensors: in memory, on the GPU, or mapped from a file.

    Args:
        images: uint8, shape (n, 3, H, W).
        targets: labels, int64, shape (n,), on the same device.
        unreadable: why an image could not be read, by its position; it is black.

    Attributes:
        mapped: whether the images are in a file, and reading them may wait for the disk.
        paths: of the images, where the data set has them.
    """

    mapped = False
    paths: Sequence[str] | None = None

    def __init__(self, images: Tensor, targets: Tensor, unreadable: dict[int, str]) -> None:
        self.images = images
        self.targets = targets
        self.unreadable = unreadable

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        if self.images.is_cuda:  # pinned, so that the host does not wait for the copy
            index = index.pin_memory().to(self.images.device, non_blocking=True)
        return self.images.index_select(0, index), self.targets[index]  # whole rows: 9 times as fast as [index]


class Images(Dataset[dict[str, Tensor]]):
    """Some rows of a data set of (PIL image or uint8 tensor, label), read in batches.

    Args:
        dataset: any map-style data set, or one that is `Decoded`.
        indices: the rows to show; `index` is their position in `dataset`.
        name: how messages call it.
    """

    def __init__(self, dataset: Dataset[Any], indices: Tensor, name: str) -> None:
        self.dataset = dataset
        self.indices = indices
        self.name = name

    def __len__(self) -> int:
        return len(self.indices)

    def spread(self, at_most: int | None) -> "Images":
        """So many of the images, evenly spread over them; all for None."""
        if at_most is None or at_most >= len(self):
            return self
        rows = torch.linspace(0, len(self) - 1, at_most).long()
        return Images(self.dataset, self.indices[rows], self.name)

    def describe(self, index: int) -> str:
        """The path of an image, or its position where there is none."""
        paths = getattr(self.dataset, "paths", None)
        return shown(paths[index]) if paths else f"image {index} of {self.name}"

    def __getitem__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """A batch `{"image": (N, 3, H, W) uint8, "label": (N,) int64, "index": (N,) int64}`."""
        index = self.indices[torch.as_tensor(rows)]
        if isinstance(self.dataset, Decoded):
            images, labels = self.dataset[index]
            return {"image": images, "label": labels, "index": index}
        items = [read(self.dataset, position, self.name) for position in index.tolist()]
        _, height, width = items[0][0].shape
        for position, (image, _) in zip(index.tolist(), items, strict=True):
            check_size(image, (height, width), position, self.name)
        return {
            "image": torch.stack([image for image, _ in items]),
            "label": torch.tensor([label for _, label in items]),
            "index": index,
        }


class Rows:
    """The rows of the batches to come, as a sampler gives them."""

    def __init__(self, of: Tensor | Sequence[Tensor] = ()) -> None:
        self.of = of

    def __len__(self) -> int:
        return len(self.of)

    def __iter__(self) -> Iterator[list[int]]:
        # Lists: each tensor would travel to a worker through a file descriptor of its own. One at a time: an epoch's
        # would take 40 bytes an image.
        return (batch.tolist() for batch in self.of)


def read(dataset: Dataset[Any], index: int, name: str) -> tuple[Tensor, int]:
    """Image (3, H, W), uint8, and label of one item.

    Raises:
        UnreadableImageError: the data set could not read it.
        ValueError: the item is not a pair of an image and an integer.
    """
    try:
        item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ValueError(f"item {index} of {name} is a {type(item).__name__}: expected (image, label)")
        image = _to_tensor(item[0], index, name)  # which reads the file of one that was only opened
    except UnreadableImageError:
        raise
    except _UNREADABLE as error:
        raise UnreadableImageError(f"image {index} of {name} cannot be read: {error}") from error
    return image, _integer(item[1], f"label of image {index} of {name}")


def check_size(image: Tensor, size: tuple[int, int], index: int, name: str) -> None:
    """Raise ValueError where an image (3, H, W) has not the size (H, W) of the others."""
    found = (image.shape[1], image.shape[2])
    if found != size:
        raise ValueError(
            f"image {index} of {name} is {found[0]} x {found[1]} pixels, another {size[0]} x {size[1]}: "
            "image_size makes squares of them"
        )


def _to_tensor(image: Any, index: int, name: str) -> Tensor:
    if isinstance(image, Image.Image):
        try:
            return torch.from_numpy(np.asarray(to_rgb(image)).transpose(2, 0, 1).copy())
        except ValueError as error:
            raise ValueError(f"image {index} of {name}: {error}") from error
    pixels = isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.numel() > 0
    if pixels and len(image) in (1, 3):
        grey_repeated: Tensor = image.expand(3, -1, -1)
        return grey_repeated
    found = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
    raise ValueError(f"image {index} of {name} is {found}: expected a PIL image or a uint8 tensor (1 or 3, H, W)")


def labels_of(dataset: Dataset[Any]) -> Tensor | None:
    """Labels (n,) of a data set without reading its images (its `targets` or `labels`), or None."""
    if isinstance(dataset, Subset):
        labels = labels_of(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return _integers(dataset.tensors[1], "labels", len(dataset))
    for name in ("targets", "labels"):
        labels = getattr(dataset, name, None)
        if isinstance(labels, Tensor | np.ndarray | Sequence):
            return _integers(labels, f"{type(dataset).__name__}.{name}", len(dataset))  # type: ignore[arg-type]
    return None


def _integers(labels: Any, name: str, n_images: int) -> Tensor:
    if len(labels) != n_images:
        raise ValueError(f"{name} has {len(labels)} labels for {n_images} images")
    if getattr(labels, "ndim", 1) != 1:
        raise ValueError(f"{name} has shape {tuple(labels.shape)}: expected an integer an image")
    try:
        array = np.asarray(labels)
    except ValueError:  # lists of several lengths
        array = np.empty((0, 0))
    if array.ndim == 1 and array.dtype.kind in "iu" and array.min(initial=0) >= -1:
        return torch.from_numpy(array.astype(np.int64))
    return torch.tensor([_integer(label, f"{name}[{position}]") for position, label in enumerate(list(labels))])


def _integer(label: Any, name: str) -> int:
    try:
        number = int(label)
        valid = number == label and number >= -1
    except (TypeError, ValueError, OverflowError):
        valid = False
    if not valid:
        raise ValueError(f"{name} is {label!r}: expected an integer, -1 for none")
    return number


def labels_or_minus_one(dataset: Dataset[Any]) -> Tensor:
    """Label of each image (n,), -1 for all where the data set has none."""
    labels = labels_of(dataset)
    return torch.full((len(dataset),), -1) if labels is None else labels  # type: ignore[arg-type]
