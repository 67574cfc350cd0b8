"""Opens image files that Pillow reads, and tells errors of the file from errors of the machine."""

import errno

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from msssl.data.pixels.high_bit_depth import Deep, Values, check_values, read_deep, through_window
from msssl.data.pixels.pixel_format import PixelFormat, deep_array
from msssl.errors import UserError
from msssl.views.preprocess import Window

_TURNS = {  # that make an image upright, by its orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OF_THE_FILE = {  # numbers of errors that say something about a file
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
}


def shown(path: str) -> str:
    """A path that can be printed, also where it is not UTF-8."""
    return path.encode(errors="backslashreplace").decode()


def open_pixels(path: str, pixel_format: PixelFormat) -> Values:
    """The pixels (C, H, W) of an image file, turned upright.

    JPEGs of four times the wanted size and more are decoded at a half, a quarter or an eighth of their resolution.
    """
    size = pixel_format.size
    with Image.open(path) as image:
        check_pixels(image.width, image.height)
        if image.format == "JPEG" and size is not None and min(image.size) >= 4 * size:
            image.draft(None, (2 * size, 2 * size))
        return pixels_of(image, pixel_format, upright=True)


def pixels_of(image: Image.Image, pixel_format: PixelFormat, upright: bool = False) -> Values:
    """The pixels (C, H, W) of an image: uint8, or uint16 or float32 where it has more than 8 bits a channel.

    Args:
        image: of any mode. One that was only opened is read at its own depth; Pillow has cut others to 8 bits.
        pixel_format: what it becomes.
        upright: whether it is turned as its Exif tag says.

    Raises:
        PixelsError: more than 8 bits that are to be reduced without a window, or values that are not numbers.
    """
    deep = read_deep(image)
    if deep is None or pixel_format.dtype == "uint8":
        rgb = to_rgb(image, deep, pixel_format.window)
        return pixel_format.finish([rgb], np.uint8, _turn(image, upright))
    values, turn = deep_array(deep), _turn(image, upright)
    if turn is None:
        return pixel_format.finish_array(values)
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in values]
    return pixel_format.finish(planes, values.dtype, turn)


def _turn(image: Image.Image, upright: bool) -> Image.Transpose | None:
    """What makes an image upright; asked for last, as reading the tag may load the pixels at 8 bits."""
    return _TURNS.get(_orientation(image)) if upright else None


def _orientation(image: Image.Image) -> int:
    """How the camera was held (Exif tag 0x112); 1, upright, where nothing says so.

    Only this tag is read: the others may be damaged, and the pixels are whole.
    """
    if image.format == "TIFF":  # which Pillow has turned
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception as error:  # many kinds
        if is_of_the_machine(error):
            raise
        return 1


def short_side(path: str) -> int:
    """The shorter side of an image in pixels; only its header is read."""
    with Image.open(path) as image:
        return min(image.size)


def check_pixels(width: int, height: int) -> None:
    """Raise ValueError for more pixels than `PIL.Image.MAX_IMAGE_PIXELS`."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise UserError(f"it has {width} x {height} pixels, more than Pillow's limit of {limit:,}")


def to_rgb(image: Image.Image, deep: Deep | None, window: Window | None) -> Image.Image:
    """An image in 8-bit RGB: grey repeated, transparent parts on white.

    Args:
        image: of any mode.
        deep: its values where it has more than 8 bits.
        window: those that become black and white.

    Raises:
        PixelsError: more than 8 bits and no window, or values that are not numbers.
    """
    if deep is not None:
        return through_window(deep, check_values(deep.values, window, f"mode {image.mode}"))
    image.load()
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def is_of_the_machine(error: BaseException) -> bool:
    """Whether the machine, and not the file, caused an error: no memory, a full table, a failing disk or network.

    Few errors of the operating system concern the file: it does not exist, or may not be read. Pillow's own errors have
    no number, and concern the file too. All other system errors are the machine's, as are errors caused by them.
    """
    while True:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and not _is_of_the_file(error)):
            return True
        cause = error.__cause__ or error.__context__
        if cause is None:
            return False
        error = cause


def _is_of_the_file(error: OSError) -> bool:
    return error.errno in _OF_THE_FILE or (error.errno is None and type(error) in (OSError, UnidentifiedImageError))
