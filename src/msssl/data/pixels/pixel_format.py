"""`PixelFormat`: what the images of a data module become when they are read: size, channels and number type."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from msssl.data.pixels.arrays.values import to_dtype
from msssl.data.pixels.high_bit_depth import Deep, PixelsError, Values, check_values, to_8_bits
from msssl.views.preprocess import DType, Window

_LUMA = np.array([299, 587, 114]) / 1000  # of ITU-R BT.601, as Pillow makes grey of RGB


@dataclass(frozen=True)
class PixelFormat:
    """What images become when they are read.

    Attributes:
        size: side in pixels of the centre square that is taken of each; None leaves their sizes as they are.
        channels: C. By default images of one channel are repeated to the 3 of RGB, and others stay as they are.
        dtype: `auto` keeps more than 8 bits, as uint16 or float32; `uint8` reduces them by the window.
        window: values that become black and white where `dtype` is `uint8`.
    """

    size: int | None = None
    channels: int | None = None
    dtype: DType = "auto"
    window: Window | None = None

    def finish(self, planes: list[Image.Image], dtype: Any, turn: Image.Transpose | None = None) -> Values:
        """Values (C, H, W) of this format.

        Args:
            planes: one image of RGB, or one of a single channel (mode L or F) for each channel.
            dtype: uint8, uint16 or float32.
            turn: what makes the image upright.
        """
        if turn is not None:
            planes = [plane.transpose(turn) for plane in planes]
        if self.size is not None:
            planes = [square(plane, self.size) for plane in planes]
        arrays = [np.asarray(plane) for plane in planes]
        values = arrays[0].transpose(2, 0, 1) if arrays[0].ndim == 3 else np.stack(arrays)
        if values.dtype != dtype:
            values = values.round().clip(0, np.iinfo(dtype).max).astype(dtype)
        return self._with_channels(values)

    def finish_array(self, values: Values) -> Values:
        """Values (C, H, W) of this format, of an array (C, H, W) of uint8, uint16 or float32."""
        if self.size is None or values.shape[1:] == (self.size, self.size):
            return self._with_channels(values)
        single = np.uint8 if values.dtype == np.uint8 else np.float32  # which Pillow resizes
        planes = [Image.fromarray(np.ascontiguousarray(plane, dtype=single)) for plane in values]
        return self.finish(planes, values.dtype)

    def from_array(self, values: Values) -> Values:
        """Values (C, H, W) of this format, of an array (C, H, W) that may have to be reduced to 8 bits.

        Raises:
            PixelsError: it has to be, and there is no window.
        """
        if self.dtype == "uint8" and values.dtype != np.uint8:
            values = to_8_bits(values, check_values(values, self.window, str(values.dtype)))
        return self.finish_array(values)

    def of_whole(self) -> "PixelFormat":
        """That of a whole image of which a tile is cut, which is resized afterwards."""
        return replace(self, size=None)

    def _with_channels(self, values: Values) -> Values:
        own = len(values)
        wanted = self.channels or (3 if own == 1 else own)
        if own == 1 and wanted > 1:
            return np.broadcast_to(values, (wanted, *values.shape[1:]))
        if own == 3 and wanted == 1:
            grey = np.tensordot(_LUMA, values, axes=1)[None]
            return (grey if values.dtype.kind == "f" else grey.round()).astype(values.dtype)
        if own != wanted:
            raise PixelsError(f"it has {own} channels, and channels is {wanted}")
        return values


def square(image: Image.Image, size: int) -> Image.Image:
    """The centre square of an image, resized to `size` pixels."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side))


def as_tensor(values: Values) -> Tensor:
    """The values as a tensor in one piece; a view of the array where that is possible."""
    values = np.ascontiguousarray(values)
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def deep_array(deep: Deep) -> Values:
    """Values (C, H, W) of an image of more than 8 bits as it is stored; transparent parts are white."""
    values = to_dtype(deep.values)
    if deep.alpha is not None:
        alpha = deep.alpha if values.ndim == 2 else deep.alpha[..., None]
        white = np.iinfo(np.uint16).max if values.dtype == np.uint16 else 1.0
        mixed = white + alpha * (values.astype(np.float64) - white)
        values = (mixed.round() if values.dtype == np.uint16 else mixed).astype(values.dtype)
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


class ImageKind(NamedTuple):
    """Shape (C, H, W) and number type of the images of a data set, which are all of one kind."""

    shape: tuple[int, int, int]
    dtype: torch.dtype

    @classmethod
    def of(cls, image: Tensor) -> "ImageKind":
        """That of an image (C, H, W)."""
        channels, height, width = image.shape
        return cls((channels, height, width), image.dtype)

    @property
    def n_bytes(self) -> int:
        """Of an image."""
        channels, height, width = self.shape
        return channels * height * width * self.dtype.itemsize

    @property
    def is_default(self) -> bool:
        """Whether it is RGB of 8 bits."""
        return self.shape[0] == 3 and self.dtype == torch.uint8

    def __str__(self) -> str:
        """Such as `32 x 32 pixels`, with what is not RGB of 8 bits.

        >>> str(ImageKind((5, 64, 48), torch.uint16))
        '64 x 48 pixels, 5 channels, uint16, 2 times the bytes of uint8'
        """
        channels, height, width = self.shape
        text = f"{height} x {width} pixels"
        if channels != 3:
            text += f", {channels} channel{'s' if channels > 1 else ''}"
        if self.dtype != torch.uint8:
            text += f", {str(self.dtype)[6:]}, {self.dtype.itemsize} times the bytes of uint8"
        return text
