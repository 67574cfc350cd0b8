"""Image files of any kind, as 8-bit RGB."""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

EXTENSIONS = (*IMG_EXTENSIONS, ".gif")
Window = tuple[float, float]


def list_images(folder: Path) -> list[str]:
    """Paths below a folder that end like images, sorted; directories and dead links that do so too, hidden ones not."""
    found: list[str] = []
    for root, folders, files in os.walk(folder):
        named = [name for name in (*folders, *files) if name.lower().endswith(EXTENSIONS) and name[0] != "."]
        found += [f"{root}{os.sep}{name}" for name in named]
        folders[:] = [name for name in folders if name[0] != "."]
    return sorted(found)


def shown(path: str) -> str:
    """A path that can be printed, also where it is not UTF-8."""
    return path.encode(errors="backslashreplace").decode()


def open_square(path: str, size: int, window: Window | None) -> Image.Image:
    """The centre square of an image file, resized to `size` pixels, in RGB.

    JPEGs of four times that size and more are decoded at a half, a quarter or an eighth of their resolution.
    """
    with Image.open(path) as image:
        check_pixels(image.width, image.height)
        if image.format == "JPEG" and min(image.size) >= 4 * size:
            image.draft(None, (2 * size, 2 * size))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return square(to_rgb(image, window), size)


def square(image: Image.Image, size: int) -> Image.Image:
    """The centre square of an image, resized to `size` pixels."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side))


def short_side(path: str) -> int:
    """The shorter side of an image in pixels; only its header is read."""
    with Image.open(path) as image:
        return min(image.size)


def check_pixels(width: int, height: int) -> None:
    """Raise ValueError for more pixels than `PIL.Image.MAX_IMAGE_PIXELS`."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(f"it has {width} x {height} pixels, more than Pillow's limit of {limit:,}")


def to_rgb(image: Image.Image, window: Window | None = None) -> Image.Image:
    """An image in 8-bit RGB: grey repeated, transparent parts on white.

    Args:
        image: of any mode.
        window: values that become black and white, for images of more than 8 bits.

    Raises:
        ValueError: more than 8 bits and no window.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        if window is None:
            raise ValueError(
                f"it has more than 8 bits per channel (mode {image.mode}): say which values are black "
                "and white, such as window: [0, 65535]"
            )
        low, high = window
        values = np.clip((np.asarray(image, dtype=np.float64) - low) / (high - low), 0, 1)
        return Image.fromarray((values * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
