"""Opens image files as 8-bit RGB, and tells errors of the file from errors of the machine."""

import errno

from PIL import ExifTags, Image, UnidentifiedImageError

from msssl.data.pixels.high_bit_depth import Window, check_values, read_deep, through_window
from msssl.errors import UserError

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


def open_square(path: str, size: int, window: Window | None) -> Image.Image:
    """The centre square of an image file, turned upright and resized to `size` pixels, in RGB.

    JPEGs of four times that size and more are decoded at a half, a quarter or an eighth of their resolution.
    """
    with Image.open(path) as image:
        check_pixels(image.width, image.height)
        if image.format == "JPEG" and min(image.size) >= 4 * size:
            image.draft(None, (2 * size, 2 * size))
        rgb = to_rgb(image, window)
        turn = _TURNS.get(_orientation(image))
        return square(rgb if turn is None else rgb.transpose(turn), size)


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
        raise UserError(f"it has {width} x {height} pixels, more than Pillow's limit of {limit:,}")


def to_rgb(image: Image.Image, window: Window | None = None) -> Image.Image:
    """An image in 8-bit RGB: grey repeated, transparent parts on white.

    Args:
        image: of any mode. One that was only opened is read at its own depth; Pillow has cut others to 8 bits.
        window: values that become black and white, for images of more than 8 bits.

    Raises:
        PixelsError: more than 8 bits and no window, or values that are not numbers.
    """
    deep = read_deep(image)
    if deep is not None:
        window = check_values(deep.values, window, f"mode {image.mode}")
        return through_window(deep, window)
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
