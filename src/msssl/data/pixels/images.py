"""What a data module reads from: some rows of any data set of (image, label), as batches of tensors."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from msssl.data.pixels.deep import Deep, PixelsError, Window, check_values, through_window
from msssl.data.pixels.files import is_of_the_machine, shown, square, to_rgb
from msssl.errors import UserError

# What Pillow raises for a file that is damaged, and we for pixels that have no meaning.
_UNREADABLE = (OSError, SyntaxError, EOFError, Image.DecompressionBombError, PixelsError)


class UnreadableImageError(UserError):
    """An image that cannot be read, for a reason that lies in the image: it may be left out."""


class ReadFailedError(OSError):
    """Reading failed for a reason that lies in the machine: no image may be left out for it."""


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
        self._labels: tuple[Tensor | None] | None = None  # of the data set, once they are needed

    def __len__(self) -> int:
        return len(self.indices)

    def spread(self, at_most: int | None) -> "Images":
        """So many of the images, evenly spread over them; all for None."""
        if at_most is None or at_most >= len(self):
            return self
        rows = torch.linspace(0, len(self) - 1, at_most).long()
        return Images(self.dataset, self.indices[rows], self.name)

    @functools.cached_property
    def _paths(self) -> Sequence[str] | None:
        return strings_of(self.dataset, "paths")

    def describe(self, index: int) -> str:
        """The path of an image, or its position where there is none."""
        return shown(self._paths[index]) if self._paths else f"image {index} of {self.name}"

    def __getitem__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """A batch `{"image": (N, 3, H, W) uint8, "label": (N,) int64, "index": (N,) int64}`."""
        index = self.indices[torch.as_tensor(rows)]
        if isinstance(self.dataset, Decoded):
            images, labels = self.dataset[index]
            return {"image": images, "label": labels, "index": index}
        if self._labels is None:
            self._labels = (labels_of(self.dataset),)
        items = [read(self.dataset, position, self.name, self._labels[0]) for position in index.tolist()]
        _, height, width = items[0][0].shape
        for position, (image, _) in zip(index.tolist(), items, strict=True):
            check_size(image, (height, width), position, self.name)
        return {
            "image": torch.stack([image for image, _ in items]),
            "label": torch.tensor([label for _, label in items]),
            "index": index,
        }


class BatchRows:
    """The rows of the batches to come, as a sampler gives them."""

    def __init__(self, batches: Tensor | Sequence[Tensor] = ()) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        # Lists: each tensor would travel to a worker through a file descriptor of its own. One at a time: an epoch's
        # would take 40 bytes an image.
        return (batch.tolist() for batch in self.batches)


def read(dataset: Dataset[Any], index: int, name: str, labels: Tensor | None = None) -> tuple[Tensor, int]:
    """Image (3, H, W), uint8, and label of one item.

    Args:
        dataset: of (image, label) or rows `{"image", "label"}`.
        index: of the item.
        name: how messages call the data set.
        labels: of all items (n,), where the data set says them apart from its images.

    Raises:
        UnreadableImageError: the image cannot be read.
        ReadFailedError: the machine failed to read it.
        ValueError: the item is not an image and an integer, or the label is not the one in `labels`.
    """
    try:
        image, label = pair(dataset[index], index, name)
        pixels = to_pixels(image, f"image {index} of {name}")  # which reads the file of one that was only opened
    except (UnreadableImageError, ReadFailedError):
        raise
    except Exception as error:
        stop_for_the_machine(error, f"image {index} of {name}")
        if isinstance(error, _UNREADABLE):
            raise UnreadableImageError(f"image {index} of {name} cannot be read: {shown(str(error))}") from error
        raise
    label = _integer(label, f"label of image {index} of {name}")
    if labels is not None and label != labels[index]:
        raise UserError(
            f"image {index} of {name} has the label {label}, but {int(labels[index])} in the data set's list of labels "
            "(`targets` or `labels`): both must be the same, also after a target_transform"
        )
    return pixels, label


def stop_for_the_machine(error: Exception, image: str) -> None:
    """Raise ReadFailedError, naming the image, where an error says nothing about it; return for other errors."""
    if is_of_the_machine(error):
        reason = shown(getattr(error, "strerror", None) or str(error) or type(error).__name__)
        raise ReadFailedError(
            f"{image} was not read, as the machine failed: {reason}. No image is left out for that: start again"
        ) from error


def pair(item: Any, index: int, name: str) -> tuple[Any, Any]:
    """Image and label of an item; the label is -1 for a row without one.

    Raises:
        ValueError: it is neither a pair nor a row.
    """
    if isinstance(item, Mapping):
        if "image" in item:
            label = item.get("label")
            return item["image"], -1 if label is None else label
        keys = ", ".join(map(repr, item)) or "none"
        raise UserError(
            f"item {index} of {name} is a {type(item).__name__} with the keys {keys}: expected 'image' and 'label'"
        )
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    raise UserError(
        f"item {index} of {name} is a {type(item).__name__}: expected (image, label), or a row with the keys 'image' "
        "and 'label'"
    )


def to_pixels(image: Any, where: str, size: int | None = None, window: Window | None = None) -> Tensor:
    """An image as RGB, uint8, shape (3, H, W).

    Args:
        image: a PIL image, or a tensor (1 or 3, H, W): uint8, or with a window other numbers.
        where: how messages call it.
        size: side of the centre square that is taken of it; None leaves it as it is.
        window: values that become black and white in an image that is not of 8 bits.

    Raises:
        PixelsError: more than 8 bits and no window, or values that are not numbers.
        ValueError: it is something else.
    """
    if isinstance(image, Tensor) and image.ndim == 3 and image.numel() and len(image) in (1, 3):
        channels = image.expand(3, -1, -1)
        values = channels.permute(1, 2, 0).numpy()
        if image.dtype == torch.uint8 and (size is None or image.shape[1:] == (size, size)):
            return channels
        if image.dtype == torch.uint8:
            image = Image.fromarray(np.ascontiguousarray(values))
        elif window is not None:
            image = through_window(Deep(values), check_values(values, window, str(image.dtype)))
    if not isinstance(image, Image.Image):
        found = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise UserError(
            f"{where} is {found}: expected a PIL image or a uint8 tensor (1 or 3, H, W); other numbers need window"
        )
    rgb = to_rgb(image, window)
    return torch.from_numpy(np.asarray(rgb if size is None else square(rgb, size)).transpose(2, 0, 1).copy())


def check_size(image: Tensor, size: tuple[int, int], index: int, name: str) -> None:
    """Raise ValueError where an image (3, H, W) has not the size (H, W) of the others."""
    found = (image.shape[1], image.shape[2])
    if found != size:
        raise UserError(
            f"image {index} of {name} is {found[0]} x {found[1]} pixels, another {size[0]} x {size[1]}: "
            "image_size makes squares of them"
        )


def labels_of(dataset: Dataset[Any]) -> Tensor | None:
    """Labels (n,) of a data set without reading its images, or None.

    They are its `targets` or `labels`, as torchvision has them, or a column `label`, as Hugging Face's have it.
    """
    if isinstance(dataset, Subset):
        labels = labels_of(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        parts = [labels_of(part) for part in dataset.datasets]
        return None if any(labels is None for labels in parts) else torch.cat(parts)  # type: ignore[arg-type]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return _integers(dataset.tensors[1], "labels", len(dataset))
    for name in ("targets", "labels"):
        labels = getattr(dataset, name, None)
        if isinstance(labels, Tensor | np.ndarray | Sequence):
            return _integers(labels, f"{type(dataset).__name__}.{name}", len(dataset))  # type: ignore[arg-type]
    if _has_column(dataset, "label"):
        column = list(dataset["label"])  # by name, as Hugging Face's data sets allow
        return _integers([-1 if label is None else label for label in column], "the column 'label'", len(column))
    return None


def class_names_of(dataset: Any) -> Sequence[str] | None:
    """Names of the classes where a data set has them: its `classes`, or those of a Hugging Face `ClassLabel`."""
    if isinstance(dataset, Subset):
        return class_names_of(dataset.dataset)
    own = getattr(dataset, "classes", None)
    return own if own or not _has_column(dataset, "label") else getattr(dataset.features["label"], "names", None)


def strings_of(dataset: Any, name: Literal["groups", "paths"]) -> Sequence[str] | None:
    """The strings that a data set has for its images, one each, also where it is a part or a sum of others."""
    if isinstance(dataset, Subset):
        of_all = strings_of(dataset.dataset, name)
        return of_all and [of_all[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [strings_of(part, name) for part in dataset.datasets]
        return None if None in parts else [string for part in parts for string in part or ()]
    own: Sequence[str] | None = getattr(dataset, name, None)
    return own


def _has_column(dataset: Any, name: str) -> bool:
    features = getattr(dataset, "features", None)
    return isinstance(features, Mapping) and name in features


def _integers(labels: Any, name: str, n_images: int) -> Tensor:
    if len(labels) != n_images:
        raise UserError(f"{name} has {len(labels)} labels for {n_images} images")
    if getattr(labels, "ndim", 1) != 1:
        raise UserError(f"{name} has shape {tuple(labels.shape)}: expected an integer an image")
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
        raise UserError(f"{name} is {label!r}: expected an integer, -1 for none")
    return number


def labels_or_minus_one(dataset: Dataset[Any]) -> Tensor:
    """Label of each image (n,), -1 for all where the data set has none."""
    labels = labels_of(dataset)
    return torch.full((len(dataset),), -1) if labels is None else labels  # type: ignore[arg-type]
