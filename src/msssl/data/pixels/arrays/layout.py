"""Which axis of a stored array is what, and what a file says about its images before any pixel is read."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from msssl.data.pixels.high_bit_depth import PixelsError
from msssl.errors import UserError

Kind = Literal["tiff", "npy", "dicom"]
DType = Literal["uint8", "uint16", "float32"]
Array = np.ndarray[Any, Any]
Selection = tuple[int | slice, ...]
MAX_CHANNELS = 32  # an axis of more entries is never guessed to be the channels


@dataclass(frozen=True)
class Header:
    """What is known of a file before its pixels are read.

    Attributes:
        kind: of the file.
        shape: (C, H, W) of one slice.
        dtype: what its values become.
        n_slices: images in the file; 1 for an ordinary image.
        group: images that belong together: the patient of a DICOM file, else the path of a file of several slices.
        window: values that become black and white, where the file says so itself: (0, 1) for DICOM, whose values were
            then mapped to [0, 1] by its own window.
        axes: of the stored array, with the letters Z, C, H and W; empty for DICOM.
        guessed: whether the axes are a guess that the user may have to correct.
    """

    kind: Kind
    shape: tuple[int, int, int]
    dtype: DType
    n_slices: int = 1
    group: str | None = None
    window: tuple[float, float] | None = None
    axes: str = ""
    guessed: bool = False


class Region(NamedTuple):
    """A rectangle of pixels: its first row and column, and its size."""

    y: int
    x: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)

    def check_inside(self, height: int, width: int) -> "Region":
        """Itself; PixelsError where it is empty or reaches beyond an image of this size."""
        inside = 0 <= self.y < self.y + self.height <= height and 0 <= self.x < self.x + self.width <= width
        if not inside:
            raise PixelsError(
                f"it has {height} x {width} pixels: expected a region within them, not {self.height} x {self.width} "
                f"from row {self.y} and column {self.x}"
            )
        return self


@dataclass(frozen=True)
class Layout:
    """Which axis of a stored array is what.

    Args:
        axes: a letter for each axis: Z (slices) and C (channels), each any number of times, H and W, each once.
        shape: of the array.
        guessed: whether the axes are a guess.

    >>> layout = Layout("ZHWC", (7, 40, 30, 5))
    >>> layout.n_slices, layout.image_shape
    (7, (5, 40, 30))
    """

    axes: str
    shape: tuple[int, ...]
    guessed: bool = False

    @property
    def n_slices(self) -> int:
        """Number of images."""
        return self._size("Z")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self._size("C"), self._size("H"), self._size("W")

    def _size(self, letter: str) -> int:
        return math.prod(size for axis, size in zip(self.axes, self.shape, strict=True) if axis == letter)

    def select(self, index: int, region: Region | None) -> Selection:
        """What to take of each axis of the array for a region of slice `index`; all of it where there is no region.

        Raises:
            PixelsError: there is no such slice or region.
        """
        if not 0 <= index < self.n_slices:
            raise PixelsError(f"it has {self.n_slices} slices: expected a slice from 0 to {self.n_slices - 1}")
        _, height, width = self.image_shape
        rows, columns = (region or Region(0, 0, height, width)).check_inside(height, width).slices
        sizes = [size for axis, size in zip(self.axes, self.shape, strict=True) if axis == "Z"]
        of_slices = iter(np.unravel_index(index, sizes) if sizes else ())
        whole = {"C": slice(None), "H": rows, "W": columns}
        return tuple(int(next(of_slices)) if axis == "Z" else whole[axis] for axis in self.axes)

    def to_image(self, selected: Array) -> Array:
        """What was selected, as (C, h, w)."""
        axes = self.axes.replace("Z", "")
        order = [i for letter in "CHW" for i, axis in enumerate(axes) if axis == letter]
        ordered = selected.transpose(order)
        return ordered.reshape(-1, *ordered.shape[-2:])


def parse_axes(axes: str) -> str:
    """The letters that a user gave, with H for Y and W for X.

    >>> parse_axes("ZYX")
    'ZHW'

    Raises:
        UserError: another letter, or H or W missing or twice.
    """
    letters = axes.replace("Y", "H").replace("X", "W")
    if set(letters) - set("ZCHW") or letters.count("H") != 1 or letters.count("W") != 1 or letters.count("C") > 1:
        raise UserError(
            f"axes is {axes!r}: expected a letter for each axis of the stored array, Z (slices), C (channels), "
            "H and W, such as CHW, HWC or ZHW"
        )
    return letters


def layout_of(shape: tuple[int, ...], axes: str | None) -> Layout:
    """The layout of an array that does not say itself what its axes are.

    Two axes are H and W. Of three, the first or the last is the channels if it alone has at most 32 entries, which is a
    guess. Other arrays need `axes`.

    >>> layout_of((5, 400, 300), None).axes, layout_of((400, 300, 5), None).axes, layout_of((90, 400, 300), "ZHW").axes
    ('CHW', 'HWC', 'ZHW')

    Raises:
        PixelsError: the axes cannot be guessed, or there is another number of them.
    """
    if axes is not None:
        if len(axes) != len(shape):
            raise PixelsError(f"its array has the shape {shape}: expected {len(axes)} axes, for axes: {axes}")
        return Layout(axes, shape)
    if len(shape) == 2:
        return Layout("HW", shape)
    few = [i for i, size in enumerate(shape) if size <= MAX_CHANNELS]
    if len(shape) == 3 and few in ([0], [2]):
        return Layout("CHW" if few == [0] else "HWC", shape, guessed=True)
    if len(shape) < 2:
        raise PixelsError(f"its array has the shape {shape}: expected two axes or more")
    raise PixelsError(f"its array has the shape {shape}: say what each axis is, such as axes: {_suggestion(shape)}")


def _suggestion(shape: tuple[int, ...]) -> str:
    """Axes of which one might be right."""
    if len(shape) == 3:
        return "ZHW (slices), CHW or HWC (channels)"
    return "Z" * (len(shape) - 3) + "CHW, with a Z for each axis of slices and C for the channels"
