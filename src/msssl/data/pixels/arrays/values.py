"""Stored numbers of any type become uint8, uint16 or float32; what that would falsify is an error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from msssl.data.pixels.arrays.layout import Array, DType
from msssl.data.pixels.high_bit_depth import PixelsError, check_finite
from msssl.errors import UserError

EXACT = 2**24  # up to here float32 holds every integer


def dtype_of(stored: np.dtype[Any]) -> DType:
    """What values of a type become: uint8 and uint16 stay, bool is 0 and 255 in uint8, other numbers are float32.

    >>> [dtype_of(np.dtype(name)) for name in ("bool", ">u2", "int16", "float64")]
    ['uint8', 'uint16', 'float32', 'float32']

    Raises:
        PixelsError: they are no real numbers.
    """
    if stored.kind not in "buif":
        what = "complex numbers" if stored.kind == "c" else "Python objects" if stored.hasobject else f"type {stored}"
        raise PixelsError(f"its values are no real numbers, but {what}: save them as integers or floats")
    if stored.kind == "b" or (stored.kind == "u" and stored.itemsize == 1):
        return "uint8"
    return "uint16" if stored.kind == "u" and stored.itemsize == 2 else "float32"


def check_shape(shape: tuple[int, ...]) -> None:
    """PixelsError for an array without a value."""
    if 0 in shape:
        raise PixelsError(f"its array has the shape {shape}: it is empty")


def to_dtype(values: Array) -> Array:
    """Values of any real type as `dtype_of` says, in the machine's order of bytes; a new array.

    Raises:
        PixelsError: values that are NaN or infinite, beyond the range of float32, or integers that float32 cannot hold.
    """
    dtype = dtype_of(values.dtype)
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    check_finite(values)
    if values.dtype.kind in "iu" and values.dtype.itemsize >= 4 and (n_wrong := _n_inexact(values)):
        raise PixelsError(
            f"{n_wrong} of its {values.size} values are integers beyond {EXACT:,} that float32 cannot hold: "
            "subtract an offset, or divide them"
        )
    with np.errstate(over="ignore"):
        converted = np.array(values, dtype=dtype, order="C")
    if values.dtype.kind == "f" and (n_wrong := int(values.size - np.isfinite(converted).sum())):
        raise PixelsError(f"{n_wrong} of its {values.size} values are beyond the range of float32: divide them")
    return converted


def _n_inexact(values: Array) -> int:
    """How many integers have more than 24 significant bits."""
    beyond = values[(values > EXACT) | (values < -EXACT)].astype(values.dtype.newbyteorder("="))
    odd = beyond // (beyond & -beyond)
    return int(((odd > EXACT) | (odd < -EXACT)).sum())


@contextmanager
def errors_of_the_file(kind: str) -> Iterator[None]:
    """Turns what a library raises for a damaged file of a kind into PixelsError, in one line."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise PixelsError(f"it is damaged or no valid {kind}: {one_line(error)}") from error
    except Exception as error:  # many kinds
        raise PixelsError(f"it is damaged or no valid {kind}: {one_line(error)}") from error


def one_line(text: object, length: int = 200) -> str:
    """What a library or a file says in one line, which may come from damaged bytes.

    >>> one_line(ValueError("no pixels:   none"), length=5)
    'no pi...'
    """
    words = "".join(letter if letter.isprintable() else " " for letter in str(text)).split()
    line = " ".join(words) or type(text).__name__
    return line if len(line) <= length else f"{line[:length]}..."
