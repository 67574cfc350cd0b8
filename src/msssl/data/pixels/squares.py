"""Data sets whose images become squares of one size."""

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from msssl.data.pixels.cache import fingerprint
from msssl.data.pixels.deep import Window
from msssl.data.pixels.images import class_names_of, labels_of, pair, strings_of, to_pixels


class Squares(Dataset[tuple[Tensor, Any]]):
    """The images of a data set as 8-bit RGB, cut to their centre squares.

    Args:
        dataset: of (PIL image or tensor, label), or of rows `{"image", "label"}`.
        name: how messages call it.
        size: side in pixels, or None to leave the sizes as they are.
        window: values that become black and white in images that are not of 8 bits.
    """

    def __init__(self, dataset: Dataset[Any], name: str, size: int | None, window: Window | None) -> None:
        self.dataset, self.name, self.size, self.window = dataset, name, size, window
        self.targets, self.classes = labels_of(dataset), class_names_of(dataset)
        self.groups, self.paths = strings_of(dataset, "groups"), strings_of(dataset, "paths")

    @property
    def fingerprint(self) -> str | None:
        """That of the data set, with the size and the window."""
        content = fingerprint(self.dataset)
        return content and f"{content} {self.size} {self.window}"

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # a map-style data set has one

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, label = pair(self.dataset[index], index, self.name)
        return to_pixels(image, f"image {index} of {self.name}", self.size, self.window), label
