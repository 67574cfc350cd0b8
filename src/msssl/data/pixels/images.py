"""`Images`, which reads whole batches from an opened data set, and `BatchRows`, the sampler of their rows."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from msssl.batch import Batch
from msssl.data.pixels.decode import Decoded
from msssl.data.pixels.files import shown
from msssl.data.pixels.item import check_kind, read
from msssl.data.pixels.labels import labels_of, strings_of
from msssl.data.pixels.pixel_format import ImageKind


class Images(Dataset[Batch]):
    """Some rows of an opened data set, read in batches: by one look-up where it is `Decoded`, else one by one.

    Args:
        dataset: what `Storage.open` returns.
        indices: the rows to show; `index` is their position in `dataset`.
        name: how messages call it.
        kind: of all its images; by default that of the first image of a batch.
    """

    def __init__(self, dataset: Dataset[Any], indices: Tensor, name: str, kind: ImageKind | None = None) -> None:
        self.dataset = dataset
        self._kind = kind
        self.indices = indices
        self.name = name
        self._labels: tuple[Tensor | None] | None = None  # of the data set, once they are needed

    def __len__(self) -> int:
        return len(self.indices)

    def spread(self, at_most: int | None) -> "Images":
        """So many of the images, evenly spread over them; all for None."""
        if at_most is None or at_most >= len(self):
            return self
        return self.at(torch.linspace(0, len(self) - 1, at_most).long())

    def at(self, rows: Tensor) -> "Images":
        """Some of the images, by their rows (n,) or a mask."""
        return Images(self.dataset, self.indices[rows], self.name, self._kind)

    @functools.cached_property
    def _paths(self) -> Sequence[str] | None:
        return strings_of(self.dataset, "paths")

    @functools.cached_property
    def kind(self) -> ImageKind:
        """The kind of the images."""
        return self._kind or ImageKind.of(self[[0]]["image"][0])

    def describe(self, index: int) -> str:
        """The path of an image, or its position where there is none."""
        return shown(self._paths[index]) if self._paths else f"image {index} of {self.name}"

    def __getitem__(self, rows: Sequence[int]) -> Batch:
        """A batch `{"image": (N, C, H, W) as read, "label": (N,) int64, "index": (N,) int64}`."""
        index = self.indices[torch.as_tensor(rows)]
        if isinstance(self.dataset, Decoded):
            images, labels = self.dataset[index]
            return {"image": images, "label": labels, "index": index}
        if self._labels is None:
            self._labels = (labels_of(self.dataset),)
        items = [read(self.dataset, position, self.name, self._labels[0]) for position in index.tolist()]
        kind = self._kind or ImageKind.of(items[0][0])
        for position, (image, _) in zip(index.tolist(), items, strict=True):
            check_kind(image, kind, self.dataset, position, self.name)
        return {
            "image": torch.stack([image for image, _ in items]),
            "label": torch.tensor([label for _, label in items]),
            "index": index,
        }


class BatchRows(Sampler[list[int]]):
    """Sampler of whole batches: the rows of each batch, for a `DataLoader` whose `batch_size` is None."""

    def __init__(self, batches: Tensor | Sequence[Tensor] = ()) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        # Lists: each tensor would travel to a worker through a file descriptor of its own. One at a time: an epoch's
        # would take 40 bytes an image.
        return (batch.tolist() for batch in self.batches)
