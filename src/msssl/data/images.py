"""What a data module reads from: any data set of (image, label), as tensors, with its index."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.transforms.v2 import functional as F


class Images(Dataset[dict[str, Any]]):
    """Some rows of a data set of (PIL image or uint8 tensor, label), each `{"image", "label", "index"}`.

    Args:
        dataset: any map-style data set.
        indices: the rows to show; `index` is their position in `dataset`.
        name: how messages call it.
    """

    def __init__(self, dataset: Dataset[Any], indices: Tensor, name: str) -> None:
        self.dataset = dataset
        self.indices = indices
        self.name = name

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> dict[str, Any]:
        index = int(self.indices[row])
        item = self.dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ValueError(f"item {index} of {self.name} is a {type(item).__name__}: expected (image, label)")
        image, label = item
        return {"image": self._to_tensor(image, index), "label": int(label), "index": index}

    def _to_tensor(self, image: Any, index: int) -> Tensor:
        if isinstance(image, Image.Image):
            tensor: Tensor = F.pil_to_tensor(to_rgb(image))
            return tensor
        if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) in (1, 3):
            return image.expand(3, -1, -1)  # grey repeated
        found = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(
            f"image {index} of {self.name} is {found}: expected a PIL image or a uint8 tensor (1 or 3, H, W)"
        )


class Paired(Dataset[dict[str, Any]]):
    """Rows (row, probe row) of two sets: an item of the first, with `"probe": {"image", "label"}` of the second."""

    def __init__(self, images: Images, probe: Images) -> None:
        self.images = images
        self.probe = probe

    def __getitem__(self, rows: tuple[int, int]) -> dict[str, Any]:
        probe = self.probe[rows[1]]
        return {**self.images[rows[0]], "probe": {"image": probe["image"], "label": probe["label"]}}


def to_rgb(image: Image.Image) -> Image.Image:
    """An image in 8-bit RGB; ValueError for more bits, which a plain conversion would cut off."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"it has more than 8 bits per channel (mode {image.mode}): convert it to 8 bits first")
    return image.convert("RGB")


def labels_of(dataset: Dataset[Any]) -> Tensor | None:
    """Labels (n,) of a data set without reading its images (its `targets` or `labels`), or None."""
    if isinstance(dataset, Subset):
        labels = labels_of(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return dataset.tensors[1].long()
    for name in ("targets", "labels"):
        labels = getattr(dataset, name, None)
        if isinstance(labels, Tensor | np.ndarray | Sequence):
            return torch.as_tensor(labels, dtype=torch.long)
    return None


def labels_or_minus_one(dataset: Dataset[Any]) -> Tensor:
    """Label of each image (n,), -1 for all where the data set has none."""
    labels = labels_of(dataset)
    return torch.full((len(dataset),), -1) if labels is None else labels  # type: ignore[arg-type]
