"""What any data set says about its images without reading them: labels, class names, groups, paths, a fingerprint."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from msssl.errors import UserError


def labels_of(dataset: Dataset[Any]) -> Tensor | None:
    """Labels (n,) of a data set without reading its images, or None.

    They are its `targets` or `labels`, as torchvision has them, or a column `label`, as Hugging Face's have it.
    """
    labels: Tensor | None = _of_parts(
        dataset, _own_labels, lambda labels, rows: labels[torch.as_tensor(rows)], torch.cat
    )
    return labels


def labels_or_minus_one(dataset: Dataset[Any]) -> Tensor:
    """Label of each image (n,), -1 for all where the data set has none."""
    labels = labels_of(dataset)
    return torch.full((len(dataset),), -1) if labels is None else labels  # type: ignore[arg-type]


def strings_of(dataset: Any, name: Literal["groups", "paths"]) -> Sequence[str] | None:
    """The strings that a data set has for its images, one each, also where it is a part or a sum of others."""
    strings: Sequence[str] | None = _of_parts(
        dataset,
        lambda own: getattr(own, name, None),
        lambda strings, rows: [strings[row] for row in rows],
        lambda parts: [string for part in parts for string in part],
    )
    return strings


def _of_parts(dataset: Any, own: Callable[[Any], Any], choose: Callable[[Any, Any], Any], join: Any) -> Any:
    """What `own` finds of a data set, through torch's `Subset` and `ConcatDataset`; None where one part has nothing."""
    if isinstance(dataset, Subset):
        of_all = _of_parts(dataset.dataset, own, choose, join)
        return None if of_all is None else choose(of_all, dataset.indices)
    if isinstance(dataset, ConcatDataset):
        parts = [_of_parts(part, own, choose, join) for part in dataset.datasets]
        return None if any(part is None for part in parts) else join(parts)
    return own(dataset)


def _own_labels(dataset: Any) -> Tensor | None:
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return _integers(dataset.tensors[1], "labels", len(dataset))
    for name in ("targets", "labels"):
        labels = getattr(dataset, name, None)
        if isinstance(labels, Tensor | np.ndarray | Sequence):
            return _integers(labels, f"{type(dataset).__name__}.{name}", len(dataset))
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


def fingerprint(dataset: Dataset[Any]) -> str | None:
    """A name for the content of a data set, without decoding it; None where there is no way to tell.

    It is the data set's own `fingerprint`, or a hash of its labels and arrays (those of torchvision's CIFAR and STL-10,
    and of a `TensorDataset`), unless it transforms them.
    """
    own = getattr(dataset, "fingerprint", None)
    if isinstance(own, str):
        return own
    arrays: Sequence[Any] = dataset.tensors if isinstance(dataset, TensorDataset) else [getattr(dataset, "data", None)]
    transformed = any(getattr(dataset, name, None) for name in ("transform", "target_transform", "transforms"))
    if transformed or not all(isinstance(array, np.ndarray | Tensor) for array in arrays):
        return None
    content = hashlib.sha256(labels_or_minus_one(dataset).numpy().data)
    for array in arrays:
        content.update(f"{array.dtype} {tuple(array.shape)}".encode())
        content.update(np.ascontiguousarray(array).view(np.uint8).data)
    return content.hexdigest()


def as_label(label: Any, name: str) -> int:
    """A label as an integer; ValueError, which calls it by this name, unless it is one of at least -1."""
    try:
        number = int(label)
        valid = number == label and number >= -1
    except (TypeError, ValueError, OverflowError):
        valid = False
    if not valid:
        raise UserError(f"{name} is {label!r}: expected an integer, -1 for none")
    return number


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
    return torch.tensor([as_label(label, f"{name}[{position}]") for position, label in enumerate(list(labels))])
