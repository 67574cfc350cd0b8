"""Reads one item of any data set: checks image and label, and converts the image to a tensor."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from typing_extensions import override

from msssl.data.pixels.arrays.values import to_dtype
from msssl.data.pixels.files import is_of_the_machine, pixels_of, shown
from msssl.data.pixels.high_bit_depth import PixelsError
from msssl.data.pixels.labels import as_label, class_names_of, fingerprint, labels_of, strings_of
from msssl.data.pixels.pixel_format import ImageKind, PixelFormat, as_tensor
from msssl.errors import UserError

# What Pillow raises for a file that is damaged, and we for pixels that have no meaning.
_UNREADABLE = (OSError, SyntaxError, EOFError, Image.DecompressionBombError, PixelsError)
N_COMPARED = 8  # images that are read twice


class UnreadableImageError(UserError):
    """An image that cannot be read, for a reason that lies in the image: it may be left out."""


class ReadFailedError(OSError):
    """Reading failed for a reason that lies in the machine: no image may be left out for it."""


def read(dataset: Dataset[Any], index: int, name: str, labels: Tensor | None = None) -> tuple[Tensor, int]:
    """Image (C, H, W) of uint8, uint16 or float32, and label of one item.

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
        if not getattr(dataset, "is_formatted", False):
            image = _to_pixels(image, f"image {index} of {name}")  # which reads the file of one that was only opened
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
    return image, label


def is_readable(dataset: Dataset[Any], index: int, name: str, kind: ImageKind) -> bool:
    """Whether an image can be read now, and is of the kind of the others."""
    try:
        check_kind(read(dataset, index, name)[0], kind, dataset, index, name)
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


def check_kind(image: Tensor, kind: ImageKind, dataset: Dataset[Any], index: int, name: str) -> None:
    """Raise ValueError where an image (C, H, W) is not of the kind of the others.

    Raises:
        UnreadableImageError: it has other channels or another number type, and may be left out for that.
        ValueError: it has another size.
    """
    own = ImageKind.of(image)
    if own.shape[1:] != kind.shape[1:]:
        (_, height, width), (_, other_height, other_width) = own.shape, kind.shape
        raise UserError(
            f"image {index} of {name} is {height} x {width} pixels, another {other_height} x {other_width}: "
            "image_size makes squares of them"
        )
    place = (strings_of(dataset, "paths") or {index: f"image {index} of {name}"})[index]
    if own.shape != kind.shape:
        raise UnreadableImageError(
            f"{shown(place)} cannot be used: it has {own.shape[0]} channels, another image {kind.shape[0]}; channels 3 "
            "makes RGB of grey, and channels 1 grey of RGB"
        )
    if own.dtype != kind.dtype:
        raise UnreadableImageError(
            f"{shown(place)} cannot be used: it is of {own.dtype}, another image of {kind.dtype}; dtype uint8, with a "
            "window for those of more than 8 bits, makes both the same"
        )


class Formatted(Dataset[tuple[Tensor, Any]]):
    """The images of a data set in another format; made by `formatted`.

    Args:
        dataset: of (PIL image or tensor, label), or of rows `{"image", "label"}`.
        name: how messages call it.
        pixel_format: what its images become.
    """

    is_formatted = True

    def __init__(self, dataset: Dataset[Any], name: str, pixel_format: PixelFormat) -> None:
        self.dataset, self.name, self.pixel_format = dataset, name, pixel_format
        self.targets, self.classes = labels_of(dataset), class_names_of(dataset)
        self.groups, self.paths = strings_of(dataset, "groups"), strings_of(dataset, "paths")

    @property
    def fingerprint(self) -> str | None:
        """That of the data set, with the format."""
        content = fingerprint(self.dataset)
        return content and f"{content} {self.pixel_format}"

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # a map-style data set has one

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, label = _pair(self.dataset[index], index, self.name)
        return _to_pixels(image, f"image {index} of {self.name}", self.pixel_format), label


def formatted(dataset: Dataset[Any], name: str, pixel_format: PixelFormat) -> Dataset[Any]:
    """A data set with the images that a data module asks for: itself, where it has them already, or `Formatted`.

    Args:
        dataset: of (image, label); one of our own that has them says so by an attribute `is_formatted`.
        name: how messages call it.
        pixel_format: what is asked for.
    """
    if getattr(dataset, "is_formatted", False) or pixel_format == PixelFormat():
        return dataset
    if isinstance(dataset, TensorDataset):  # whose tensors stay fast
        images, size = dataset.tensors[0], pixel_format.size
        fits = size is None or images.shape[-2:] == (size, size)
        fits &= pixel_format.channels is None or pixel_format.channels == images.shape[1] != 1
        if images.dtype == torch.uint8 and fits:
            return dataset
    return Formatted(dataset, name, pixel_format)


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
    if getattr(dataset, "is_formatted", False) and not isinstance(dataset, Formatted):  # which is our own
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


def _to_pixels(image: Any, where: str, pixel_format: PixelFormat | None = None) -> Tensor:
    """An image as a tensor (C, H, W) of uint8, uint16 or float32.

    Args:
        image: a PIL image, or a tensor (C, H, W) of numbers.
        where: how messages call it.
        pixel_format: what it becomes.

    Raises:
        PixelsError: more than 8 bits that are to be reduced without a window, or values that are not numbers.
        ValueError: it is something else.
    """
    pixel_format = pixel_format or PixelFormat()
    if isinstance(image, Image.Image):
        return as_tensor(pixels_of(image, pixel_format))
    if not isinstance(image, Tensor) or not _is_image(image):
        kind = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise UserError(f"{where} is {kind}: expected a PIL image, or a tensor (C, H, W)")
    values = image.numpy()
    return as_tensor(pixel_format.from_array(values if values.dtype == np.uint8 else to_dtype(values)))


def _is_image(image: Tensor) -> bool:
    """Whether a tensor can be (C, H, W); one of (H, W, 3) is not."""
    if image.ndim != 3 or image.numel() == 0 or image.is_complex():
        return False
    first, second, last = image.shape
    return first <= 4 or last not in (1, 3, 4) or second <= last
