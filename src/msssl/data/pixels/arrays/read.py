"""The way into this folder: what kind a file is of, its header, one slice of it, or a region of one."""

from pathlib import Path

from msssl.data.pixels.arrays import dicom, npy, tiff
from msssl.data.pixels.arrays.layout import Array, Header, Kind, Region, parse_axes
from msssl.data.pixels.high_bit_depth import PixelsError
from msssl.errors import UserError

_KINDS: dict[str, Kind] = {
    ".tif": "tiff",
    ".tiff": "tiff",
    ".npy": "npy",
    ".npz": "npy",
    ".dcm": "dicom",
    ".dicom": "dicom",
    ".ima": "dicom",  # of Siemens
}
_CONTENT = {  # by how a file begins
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"II+\0": "a TIFF",
    b"MM\0+": "a TIFF",
    b"\x93NUMPY": "a NumPy array",
    b"PK": "a zip archive",
    b"\xff\xd8\xff": "a JPEG",
    b"\x89PNG": "a PNG",
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"RIFF": "a WebP",
    b"%PDF": "a PDF",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive",
    b"<": "a text in HTML or XML",
}
_EXPECTED = {"tiff": ("a TIFF",), "npy": ("a NumPy array", "a zip archive"), "dicom": ("a DICOM file",)}
_PREAMBLE = 128  # bytes before DICOM's own mark


def kind_of(path: str | Path) -> Kind | None:
    """The kind of a file, by its extension; None for an ordinary image, which Pillow reads.

    A file without an extension, or with a number as in `1.2.840.10008.17`, is looked into: archives of hospitals name
    DICOM files so. Their table of contents, `DICOMDIR`, is no image.

    >>> kind_of("cells.ome.tif"), kind_of("cells.png")
    ('tiff', None)
    """
    path = Path(path)
    extension = path.suffix.lower()
    if extension and not extension[1:].isdecimal():
        return _KINDS.get(extension)
    if path.name.upper() == "DICOMDIR" or not path.is_file():
        return None
    return "dicom" if _content(path) == "a DICOM file" else None


def read_header(path: str | Path, axes: str | None = None, own_window: bool = True) -> Header:
    """What a file holds, without reading its pixels.

    Args:
        path: of a file of one of the kinds of `kind_of`.
        axes: what each axis of the stored array is, such as CHW, HWC, ZHW or ZCHW; by default what the file says.
        own_window: whether values of DICOM are mapped by the window of the file, where it has one.

    Raises:
        PixelsError: what is in the file is no image; the message does not name the file.
        OSError: it cannot be read.
        MissingPackageError: the package for this kind is not installed.
    """
    kind, path, axes = _checked(path, axes)
    if kind == "dicom":
        return dicom.read_header(path, own_window)
    return tiff.read_header(path, axes) if kind == "tiff" else npy.read_header(path, axes)


def read_array(path: str | Path, index: int = 0, axes: str | None = None, own_window: bool = True) -> Array:
    """Slice `index` of a file, (C, H, W), of the type that its header says.

    Arguments and errors are those of `read_header`; values that are NaN or infinite are PixelsError too.
    """
    return _read(path, index, None, axes, own_window)


def read_region(  # the four numbers of a rectangle
    path: str | Path,
    y: int,
    x: int,
    height: int,
    width: int,
    index: int = 0,
    axes: str | None = None,
    own_window: bool = True,
) -> Array:
    """A rectangle of slice `index` of a file, (C, height, width), from row `y` and column `x`.

    Of an `.npy` and an uncompressed TIFF only its values are read, and of a compressed TIFF the strips or tiles that it
    touches. A DICOM frame and an `.npz` are decoded whole. Errors are those of `read_array`.
    """
    return _read(path, index, Region(y, x, height, width), axes, own_window)


def _read(path: str | Path, index: int, region: Region | None, axes: str | None, own_window: bool) -> Array:
    kind, path, axes = _checked(path, axes)
    if kind == "dicom":
        return dicom.read(path, index, region, own_window)
    return tiff.read(path, index, region, axes) if kind == "tiff" else npy.read(path, index, region, axes)


def _checked(path: str | Path, axes: str | None) -> tuple[Kind, Path, str | None]:
    """Kind, path and axes, after a look at how the file begins."""
    path = Path(path)
    kind = kind_of(path)
    if kind is None:
        raise UserError(f"{path}: expected TIFF, npy, npz or DICOM")
    if kind == "dicom" and axes is not None:
        raise UserError(f"axes is {axes!r}, but {path} is DICOM, which says itself what its axes are: leave axes out")
    content = _content(path)
    if content not in _EXPECTED[kind]:
        raise PixelsError(f"it is {content or 'of an unknown kind'} by its content: expected {_EXPECTED[kind][0]}")
    return kind, path, None if axes is None else parse_axes(axes)


def _content(path: Path) -> str | None:
    """What a file is, by its first bytes; None where they are of no kind that is known here."""
    with path.open("rb") as file:
        head = file.read(_PREAMBLE + 4)
    if not head:
        return "an empty file"
    if head[_PREAMBLE:] == b"DICM":
        return "a DICOM file"
    return next((kind for mark, kind in _CONTENT.items() if head.startswith(mark)), None)
