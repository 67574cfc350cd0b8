"""Reads DICOM with `pydicom`: frames with the rescale and window of the file, brighter for larger values."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from msssl.data.pixels.arrays.layout import Array, DType, Header, Region
from msssl.data.pixels.arrays.values import check_shape, dtype_of, errors_of_the_file, one_line, to_dtype
from msssl.data.pixels.high_bit_depth import PixelsError
from msssl.errors import MissingPackageError

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_OF_A_FRAME = ("PixelValueTransformationSequence", "FrameVOILUTSequence")  # of enhanced objects: rescale, window


def read_header(path: Path, own_window: bool) -> Header:
    """Shape, type, patient and window, from the elements before the pixels."""
    with _pydicom() as pydicom:
        dataset = _of_frame(_read_elements(pydicom, path), 0)
        n_slices = _n_frames(dataset)
        patient = str(dataset.get("PatientID") or "").strip()
        channels = 1 if dataset.PhotometricInterpretation in _GREY else 3
        windowed = own_window and _has_window(dataset)
        return Header(
            kind="dicom",
            shape=(channels, int(dataset.Rows), int(dataset.Columns)),
            dtype="float32" if windowed else _dtype(dataset),
            n_slices=n_slices,
            group=patient or (str(path) if n_slices > 1 else None),
            window=(0, 1) if windowed else None,
        )


def read(path: Path, index: int, region: Region | None, own_window: bool) -> Array:
    """A region of a frame, (C, h, w); the frame is decoded whole."""
    with _pydicom() as pydicom:
        elements = _read_elements(pydicom, path)
        n_frames = _n_frames(elements)
        if not 0 <= index < n_frames:
            raise PixelsError(f"it has {n_frames} slices: expected a slice from 0 to {n_frames - 1}")
        dataset = _of_frame(elements, index)
        # pydicom can seek in a file only where it is not deflated.
        source = pydicom.dcmread(path) if elements.file_meta.TransferSyntaxUID.is_deflated else path
        frame = _decode(pydicom, source, index)
        if frame.shape[:2] != (dataset.Rows, dataset.Columns):
            raise PixelsError(f"its pixels have the shape {frame.shape}: expected {dataset.Rows} x {dataset.Columns}")
        if region is not None:
            frame = frame[region.check_inside(*frame.shape[:2]).slices]
        if dataset.PhotometricInterpretation in _GREY:
            return to_dtype(_grey(pydicom.pixels, frame, dataset, own_window)[None])
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            frame = _with_palette(pydicom.pixels, frame, dataset)
        return to_dtype(frame[..., :3].transpose(2, 0, 1))


@contextmanager
def _pydicom() -> Iterator[ModuleType]:
    """The package, whose errors become PixelsError, and whose warnings about unusual files are not shown."""
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise MissingPackageError("DICOM needs pydicom: pip install 'msssl[science]'") from error
    with errors_of_the_file("DICOM file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pydicom


def _read_elements(pydicom: ModuleType, path: Path) -> Any:
    """All that stands before the pixels.

    Raises:
        PixelsError: there are no pixels, or pixels of a kind that is not read.
    """
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    if "Rows" not in dataset or "Columns" not in dataset:
        kind = one_line(dataset.get("Modality") or "unknown", 16)
        raise PixelsError(f"it holds no pixels (modality {kind}): leave it out")
    check_shape((dataset.Rows, dataset.Columns))
    interpretation = dataset.get("PhotometricInterpretation")
    if interpretation not in (*_GREY, *_COLOUR, "PALETTE COLOR"):
        kind = one_line(interpretation, 16)
        raise PixelsError(f"its photometric interpretation is {kind}, which is not read: save it as RGB")
    return dataset


def _n_frames(dataset: Any) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def _of_frame(dataset: Any, index: int) -> Any:
    """The data set with the rescale and window of a frame, which enhanced objects keep in groups of their own."""
    groups = [
        *(dataset.get("SharedFunctionalGroupsSequence") or ())[:1],
        *(dataset.get("PerFrameFunctionalGroupsSequence") or ())[index : index + 1],
    ]
    for group in groups:
        for name in _OF_A_FRAME:
            for item in (group.get(name) or ())[:1]:
                dataset.update(item)
    return dataset


def _decode(pydicom: ModuleType, source: Any, index: int) -> Array:
    """A frame as it is stored, (H, W) or (H, W, 3); YBR is converted to RGB."""
    try:
        return np.asarray(pydicom.pixels.pixel_array(source, index=index))
    except RuntimeError as error:
        if "missing dependencies" in str(error):
            raise MissingPackageError(f"{one_line(error, 400)}: install one of them") from error
        raise
    except AttributeError as error:
        if "no pixel data" in str(error):
            raise PixelsError("it holds no pixels: leave it out") from error
        raise


def _dtype(dataset: Any) -> DType:
    """Of the values without a window."""
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return "uint8" if _bits_of_palette(dataset) == 8 else "uint16"
    if lut := _modality_lut(dataset):
        return "uint8" if lut.LUTDescriptor[2] <= 8 else "uint16"
    if _is_rescaled(dataset):
        return "float32"
    bits = int(dataset.BitsAllocated)
    if bits == 1:
        return "uint8"
    return dtype_of(np.dtype(f"{'i' if dataset.get('PixelRepresentation') else 'u'}{bits // 8}"))


def _grey(pixels: ModuleType, stored: Array, dataset: Any, own_window: bool) -> Array:
    """Values (h, w) after rescale, with the file's window in [0, 1]; the larger, the brighter."""
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    if dataset.BitsAllocated == 1 and not (_modality_lut(dataset) or _is_rescaled(dataset) or _has_window(dataset)):
        return stored == 0 if inverted else stored > 0
    values = _rescaled(pixels, stored, dataset)
    if own_window and _has_window(dataset):
        share = _through_window(pixels, values, dataset)
        return (1 - share if inverted else share).astype(np.float32)
    return _inverted(values, *sorted(_range(dataset))) if inverted else values


def _rescaled(pixels: ModuleType, stored: Array, dataset: Any) -> Array:
    lut = _modality_lut(dataset)
    if lut is None:
        return np.asarray(pixels.apply_modality_lut(stored, dataset))
    depth = lut.LUTDescriptor[2]
    lut.LUTDescriptor[2] = 8 if depth <= 8 else 16  # the types that pydicom has for its values
    values = pixels.apply_modality_lut(stored.astype(np.int64), dataset)  # it computes in the type of what it is given
    lut.LUTDescriptor[2] = depth
    return np.asarray(values)


def _through_window(pixels: ModuleType, values: Array, dataset: Any) -> Array:
    """The share of the output range of pydicom's function, in [0, 1]."""
    lut = _voi_lut(dataset)
    if lut is None:
        low, high = _range(dataset)
        return np.asarray((pixels.apply_voi_lut(values, dataset) - low) / (high - low))
    n_entries, first, depth = lut.LUTDescriptor
    # Values beyond the table have its first or last entry. pydicom would count them, and long tables, modulo 2^depth.
    lut.LUTDescriptor[2] = 16
    inside = np.clip(values, first, first + (n_entries or 2**16) - 1)
    return np.asarray(pixels.apply_voi_lut(inside, dataset) / (2**depth - 1))


def _range(dataset: Any) -> tuple[float, float]:
    """The values that the least and the largest possible stored value become by rescale."""
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if lut := _modality_lut(dataset):
        low, high = 0, 2 ** lut.LUTDescriptor[2] - 1
    if not _is_rescaled(dataset):
        return low, high
    slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
    return low * slope + intercept, high * slope + intercept


def _inverted(values: Array, low: float, high: float) -> Array:
    """Bright for dark: the possible range is turned over, so that it stays the same."""
    least, most = values.min().item(), values.max().item()
    if least < low or most > high:
        raise PixelsError(f"its values are {least} to {most}: expected {low} to {high}, by the bits that it states")
    wide = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
    return (low + high - wide).astype(values.dtype)


def _modality_lut(dataset: Any) -> Any:
    return (dataset.get("ModalityLUTSequence") or (None,))[0]


def _voi_lut(dataset: Any) -> Any:
    item = (dataset.get("VOILUTSequence") or (None,))[0]
    return item if item is not None and "LUTDescriptor" in item and "LUTData" in item else None


def _is_rescaled(dataset: Any) -> bool:
    return "RescaleSlope" in dataset and "RescaleIntercept" in dataset


def _has_window(dataset: Any) -> bool:
    """Whether the file says what is black and white; in colour that has no meaning."""
    if dataset.PhotometricInterpretation not in _GREY:
        return False
    bounds = (dataset.get("WindowCenter"), dataset.get("WindowWidth"))
    return _voi_lut(dataset) is not None or None not in bounds


def _bits_of_palette(dataset: Any) -> int:
    """Bits that an entry takes, whatever its description says."""
    n_entries, _, bits = dataset.RedPaletteColorLookupTableDescriptor
    table = dataset.get("RedPaletteColorLookupTableData")
    return int(bits) if table is None else 8 * (len(table) // (n_entries or 2**16))


def _with_palette(pixels: ModuleType, stored: Array, dataset: Any) -> Array:
    n_entries, first, _ = dataset.RedPaletteColorLookupTableDescriptor
    inside = np.clip(stored.astype(np.int64), first, first + (n_entries or 2**16) - 1)
    return np.asarray(pixels.apply_color_lut(inside, dataset))
