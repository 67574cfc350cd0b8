"""Reads one item of any data set: checks image and label, and converts the image to an 8-bit RGB tensor."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from typing_extensions import override

from msssl.data.pixels.files import is_of_the_machine, shown, square, to_rgb
from msssl.data.pixels.high_bit_depth import Deep, PixelsError, Window, check_values, through_window
from msssl.data.pixels.labels import as_label, class_names_of, fingerprint, labels_of, strings_of
from msssl.errors import UserError

# What Pillow raises for a file that is damaged, and we for pixels that have no meaning.
_UNREADABLE = (OSError, SyntaxError, EOFError, Image.DecompressionBombError, PixelsError)
N_COMPARED = 8  # images that are read twice


class UnreadableImageError(UserError):
    """An image that cannot be read, for a reason that lies in the image: it may be left out."""


class ReadFailedError(OSError):
    """Reading failed for a reason that lies in the machine: no image may be left out for it."""


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
        image, label = _pair(dataset[index], index, name)
        pixels = _to_pixels(image, f"image {index} of {name}")  # which reads the file of one that was only opened
    except (UnreadableImageError, ReadFailedError):
        raise
    except Exception as error:
        stop_for_the_machine(error, f"image {index} of {name}")
        if isinstance(error, _UNREADABLE):
            raise UnreadableImageError(f"image {index} of {name} cannot be read: {shown(str(error))}") from error
        raise
    label = as_label(label, f"label of image {index} of {name}")
    if labels is not None and label != labels[index]:
        raise UserError(
            f"image {index} of {name} has the label {label}, but {int(labels[index])} in the data set's list of labels "
            "(`targets` or `labels`): both must be the same, also after a target_transform"
        )
    return pixels, label


def is_readable(dataset: Dataset[Any], index: int, name: str) -> bool:
    """Whether an image can be read now."""
    try:
        read(dataset, index, name)
    except UnreadableImageError:
        return False
    return True


def stop_for_the_machine(error: Exception, image: str) -> None:
    """Raise ReadFailedError, naming the image, where an error says nothing about it; return for other errors."""
    if is_of_the_machine(error):
        reason = shown(getattr(error, "strerror", None) or str(error) or type(error).__name__)
        raise ReadFailedError(
            f"{image} was not read, as the machine failed: {reason}. No image is left out for that: start again"
        ) from error


def check_size(image: Tensor, size: tuple[int, int], index: int, name: str) -> None:
    """Raise ValueError where an image (3, H, W) has not the size (H, W) of the others."""
    height, width = image.shape[1:]
    if (height, width) != size:
        raise UserError(
            f"image {index} of {name} is {height} x {width} pixels, another {size[0]} x {size[1]}: "
            "image_size makes squares of them"
        )


class Squares(Dataset[tuple[Tensor, Any]]):
    """The images of a data set as 8-bit RGB, cut to their centre squares; made by `squares_of`.

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
        image, label = _pair(self.dataset[index], index, self.name)
        return _to_pixels(image, f"image {index} of {self.name}", self.size, self.window), label


def squares_of(dataset: Dataset[Any], name: str, size: int | None, window: Window | None) -> Dataset[Any]:
    """A data set with the images that a data module asks for: itself, where it has them already, or `Squares`.

    Args:
        dataset: of (image, label); one of our own of squares says so by an attribute `has_squares`.
        name: how messages call it.
        size: side in pixels; None leaves the sizes as they are.
        window: values that become black and white in images that are not of 8 bits.
    """
    if getattr(dataset, "has_squares", False) or (size is None and window is None):
        return dataset
    if isinstance(dataset, TensorDataset):  # whose tensors stay fast
        images = dataset.tensors[0]
        if images.dtype == torch.uint8 and (size is None or images.shape[-2:] == (size, size)):
            return dataset
    return Squares(dataset, name, size, window)


def why_not_fixed(dataset: Dataset[Any], name: str) -> str | None:
    """Why the pixels of a data set may be others each time they are read, or None where they are the same.

    Some images are read twice, as only images that stay the same may be decoded once and kept. A random transform is
    detected because it uses the random numbers of torch, NumPy or Python, even if an image happens not to change; one
    with a generator of its own is detected by changed pixels. The random state is restored afterwards. A data set that
    seeds it by the image counts as unchanging.

    Args:
        dataset: of (image, label).
        name: how messages call it.
    """
    if getattr(dataset, "has_squares", False):  # which is our own
        return None
    n_images = len(dataset)  # type: ignore[arg-type]  # a map-style data set has one
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        for index in dict.fromkeys(np.linspace(0, n_images - 1, N_COMPARED).round().astype(int).tolist()):
            before = _random_state()
            first = _pixels_or_none(dataset, index, name)
            between = _random_state()
            second = _pixels_or_none(dataset, index, name)
            if before != between != _random_state():
                return f"image {index} of {name} is read with random numbers, as random transforms draw them"
            if first is not None and second is not None and not torch.equal(first, second):
                return f"image {index} of {name} had other pixels when it was read again, as random transforms make"
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
    return None


def _pixels_or_none(dataset: Dataset[Any], index: int, name: str) -> Tensor | None:
    try:
        return read(dataset, index, name)[0]
    except UnreadableImageError:  # which is reported where all images are read
        return None


def _random_state() -> tuple[bytes, bytes, int, int]:
    """That of torch, NumPy and Python in this process, to be compared."""
    _, key, position, *_ = np.random.get_state(legacy=True)  # noqa: NPY002
    return torch.get_rng_state().numpy().tobytes(), np.asarray(key).tobytes(), int(position), hash(random.getstate())


def _pair(item: Any, index: int, name: str) -> tuple[Any, Any]:
    """Image and label of an item; the label is -1 for a row without one. ValueError for another kind of item."""
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


def _to_pixels(image: Any, where: str, size: int | None = None, window: Window | None = None) -> Tensor:
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
        kind = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise UserError(
            f"{where} is {kind}: expected a PIL image or a uint8 tensor (1 or 3, H, W); other numbers need window"
        )
    rgb = to_rgb(image, window)
    return torch.from_numpy(np.asarray(rgb if size is None else square(rgb, size)).transpose(2, 0, 1).copy())
