"""Reads images of more than 8 bits per channel at full depth, and maps a window of their values to 8 bits if asked to.

Pillow opens such images in grey as they are, but keeps only the upper byte of each value in colour, or with alpha.
"""

import sys
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from msssl.errors import UserError
from msssl.views.preprocess import Window

Values = np.ndarray[Any, Any]
_OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}  # of the bytes of 16 bits

_CUT = (
    "it has more than 8 bits per channel in a form that can only be read at 8 ({}): "
    "save it as RGB in PNG or TIFF, with the channels of a pixel side by side"
)


class PixelsError(UserError):
    """Pixels that cannot be trained on; the message does not name the image."""


class Deep(NamedTuple):
    """Values (H, W) or (H, W, 3) of any number type, and where they are not transparent: (H, W) in [0, 1]."""

    values: Values
    alpha: Values | None = None


def read_deep(image: Image.Image) -> Deep | None:
    """The values of an image of more than 8 bits a channel, or None for one of 8 bits.

    Raises:
        PixelsError: Pillow has no way to read this kind without cutting its values.
    """
    tile = image.tile[0] if getattr(image, "tile", None) else None  # type: ignore[attr-defined]  # of a file not loaded
    codec = tile.codec_name if tile else ""
    arguments: tuple[Any, ...] = () if tile is None else (tile.args if isinstance(tile.args, tuple) else (tile.args,))
    raw_mode = next((argument for argument in arguments if isinstance(argument, str)), "")
    if codec in ("ppm", "ppm_plain") and arguments[-1] > 255:
        return Deep(_pnm_values(image))
    if image.mode.startswith(("I", "F")):
        return _grey(image, raw_mode)
    if ";16" in raw_mode:
        return _colour(image, raw_mode)
    if codec == "SGI16" or (codec == "jpeg2000" and _jpeg_2000_bits(image) > 8) or _has_planes_of_16_bits(image):
        raise PixelsError(_CUT.format(image.format))
    return None


def through_window(deep: Deep, window: Window) -> Image.Image:
    """The values between those of the window as an 8-bit RGB image: the first is black, the second white."""
    values = _in_unit_range(deep.values, window)
    if values.ndim == 2:
        values = values[..., None].repeat(3, axis=2)
    if deep.alpha is not None:  # on white
        values = 1 - deep.alpha[..., None] * (1 - values)
    return Image.fromarray((values * 255).round().astype(np.uint8))


def to_8_bits(values: Values, window: Window) -> Values:
    """Values of any shape as uint8: the first of the window becomes 0, the second 255."""
    scaled: Values = (_in_unit_range(values, window) * 255).round().astype(np.uint8)
    return scaled


def _in_unit_range(values: Values, window: Window) -> Values:
    low, high = window
    scaled: Values = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    return scaled


def check_finite(values: Values) -> None:
    """Raise PixelsError, with their number, for values that are NaN or infinite."""
    if values.dtype.kind == "f" and (n_wrong := int(values.size - np.isfinite(values).sum())):
        raise PixelsError(f"{n_wrong} of its {values.size} values are NaN or infinite: replace them")


def check_values(values: Values, window: Window | None, kind: str) -> Window:
    """The window, if there is one and all values are finite.

    Args:
        values: of an image.
        window: the one that was asked for.
        kind: of the image, for the message.

    Raises:
        PixelsError: there is no window (the message has the range of the values, and a window for them), or a value
            is NaN or infinite.
    """
    check_finite(values)
    if window is not None:
        return window
    low, high = values.min().item(), values.max().item()
    suggested = f"[{_short(low)}, {_short(high if high > low else low + 1)}]"
    if low >= 0 and high <= 1 and values.dtype.kind == "f":
        suggested = "[0, 1]"
    elif low >= 0 and values.dtype.kind in "iu":
        suggested = f"[0, {2 ** max(8, int(high).bit_length()) - 1}]"
    raise PixelsError(
        f"it has more than 8 bits per channel ({kind}, values {_short(low)} to {_short(high)}): "
        f"say which values are black and white, such as window: {suggested}"
    )


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _grey(image: Any, raw_mode: str) -> Deep:
    if raw_mode and image.tile[0].codec_name == "libtiff":
        # It hands over the machine's order of bytes, whatever that of the file; Pillow forgets so for these.
        native = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}.get(raw_mode, raw_mode)
        image.tile = _tiles(image, native)
    values = np.asarray(image)
    if raw_mode == "I;32N":  # unsigned
        values = values.view(np.uint32)
    transparent = image.info.get("transparency")
    return Deep(values, None if not isinstance(transparent, int) else (values != transparent).astype(np.float64))


def _colour(image: Any, raw_mode: str) -> Deep:
    """Decodes twice, once for each byte of the values."""
    kind = raw_mode.partition(";")[0]
    if kind not in ("RGB", "RGBX", "RGBA", "RGBa", "LA") or _has_planes_of_16_bits(image):
        raise PixelsError(_CUT.format(f"{image.format}, {raw_mode}"))
    position, file = image.tell(), image.fp
    file.seek(0)
    content = file.read()
    if kind == "LA":  # four bytes a pixel
        parts = _decoded(content, position, "RGBA").astype(np.uint16)
        return Deep(parts[..., 0] << 8 | parts[..., 1], (parts[..., 2] << 8 | parts[..., 3]) / 65535)
    raw_mode = raw_mode.replace("RGBa", "RGBA")  # as they are, where they are multiplied by alpha
    upper = _decoded(content, position, raw_mode)
    lower = _decoded(content, position, raw_mode[:-1] + _OTHER_ORDER[raw_mode[-1]])
    channels = upper.astype(np.uint16) << 8 | lower
    values: Values = channels[..., :3]
    if kind in ("RGBA", "RGBa"):
        share = channels[..., 3] / 65535
        if kind == "RGBa":
            values = values / np.maximum(share, 1 / 65535)[..., None]
        return Deep(values, share)
    transparent = image.info.get("transparency")
    return Deep(values, None if transparent is None else (values != transparent).any(axis=2).astype(np.float64))


def _decoded(content: bytes, position: int, raw_mode: str) -> Values:
    """The pixels of a file when its bytes are taken for those of another mode."""
    image: Any
    with Image.open(BytesIO(content)) as image:
        image.seek(position)
        image.tile = _tiles(image, raw_mode)
        return np.asarray(image)


def _tiles(image: Any, raw_mode: str) -> list[Any]:
    """Where the pixels are in the file, to be read in another mode."""
    return [
        tile._replace(args=raw_mode if isinstance(tile.args, str) else (raw_mode, *tile.args[1:]))
        for tile in image.tile
    ]


def _pnm_values(image: Any) -> Values:
    """Two bytes a value, the upper one first; Pillow scales them."""
    codec, _, offset, _ = image.tile[0]
    if codec == "ppm_plain":
        raise PixelsError(_CUT.format("PNM as text"))
    image.fp.seek(offset)
    shape = (image.height, image.width, 3) if image.mode == "RGB" else (image.height, image.width)
    n_bytes = 2 * int(np.prod(shape))
    content = image.fp.read(n_bytes)
    if len(content) < n_bytes:
        raise PixelsError(f"it has {len(content)} bytes of pixels, expected {n_bytes}: it is truncated")
    return np.frombuffer(content, ">u2").reshape(shape)


def _jpeg_2000_bits(image: Any) -> int:
    """Bits of the first channel, from the header of the code stream."""
    image.fp.seek(0)
    header = image.fp.read(1 << 16)
    start = header.find(b"\xff\x4f\xff\x51")
    return 8 if start < 0 else (header[start + 42] & 0x7F) + 1


def _has_planes_of_16_bits(image: Any) -> bool:
    tags = getattr(image, "tag_v2", None) or {}
    return tags.get(284) == 2 and max(tags.get(258, (8,))) > 8  # planar configuration, bits per sample
