"""TIFF, npy, npz and DICOM against NumPy, tifffile and pydicom; files that are damaged or odd are one clear line."""

import contextlib
import io
import re
import subprocess
import sys
import zipfile
import zlib
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from science_files import dicom, lookup, palette

from msssl.data.pixels.arrays.read import kind_of, read_array, read_header, read_region
from msssl.data.pixels.high_bit_depth import PixelsError
from msssl.errors import MissingPackageError, UserError

GENERATOR = np.random.default_rng(26)
SHAPE = (5, 37, 43)  # C, H, W
REGIONS = [(0, 0, 37, 43), (0, 0, 1, 1), (36, 42, 1, 1), (5, 7, 20, 30), (15, 15, 2, 2)]


def numbers(shape, dtype):
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return GENERATOR.integers(2, size=shape).astype(bool)
    if dtype.kind == "f":
        return GENERATOR.normal(size=shape).astype(dtype)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return GENERATOR.integers(max(low, -(2**24)), min(high, 2**24), size=shape, endpoint=True).astype(dtype)


def expected_of(values):
    """The values as they must be read: the rule, written anew."""
    if values.dtype == bool:
        return np.where(values, 255, 0).astype(np.uint8)
    small = values.dtype.kind == "u" and values.dtype.itemsize <= 2
    return values.astype(values.dtype.newbyteorder("=") if small else np.float32)


def check(path, slices, axes=None, **header):
    """All slices (n, C, H, W), their header, and regions of the last one."""
    found = read_header(path, axes)
    assert (found.n_slices, found.shape, found.dtype) == (len(slices), slices.shape[1:], str(slices.dtype))
    assert {name: getattr(found, name) for name in header} == header
    for i in {0, len(slices) // 2, len(slices) - 1}:
        image = read_array(path, i, axes)
        assert image.dtype == slices.dtype
        assert image.dtype.isnative
        assert image.flags.c_contiguous
        assert image.flags.writeable
        np.testing.assert_array_equal(image, slices[i])
    for y, x, height, width in REGIONS:
        part = read_region(path, y, x, height, width, len(slices) - 1, axes)
        np.testing.assert_array_equal(part, slices[-1][:, y : y + height, x : x + width])
        assert part.dtype == slices.dtype


class TestNpy:
    @pytest.mark.parametrize(
        "dtype",
        ["bool", "u1", "i1", "<u2", ">u2", "i2", "u4", ">i4", "i8", "u8", "f2", "<f4", ">f4", "f8", "longdouble"],
    )
    def test_types(self, tmp_path, dtype):
        values = numbers(SHAPE, dtype)
        np.save(tmp_path / "a.npy", values)
        check(tmp_path / "a.npy", expected_of(values)[None], kind="npy", group=None, window=None, guessed=True)

    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize(
        ("shape", "axes", "to_slices"),
        [
            ((37, 43), None, lambda a: a[None, None]),
            ((5, 37, 43), None, lambda a: a[None]),
            ((37, 43, 5), None, lambda a: a.transpose(2, 0, 1)[None]),
            ((37, 43, 5), "HWC", lambda a: a.transpose(2, 0, 1)[None]),
            ((37, 5, 43), "YCX", lambda a: a.transpose(1, 0, 2)[None]),
            ((43, 37), "WH", lambda a: a.T[None, None]),
            ((4, 37, 43), "ZHW", lambda a: a[:, None]),
            ((37, 43, 4), "HWZ", lambda a: a.transpose(2, 0, 1)[:, None]),
            ((37, 4, 43), "HZW", lambda a: a.transpose(1, 0, 2)[:, None]),
            ((6, 5, 37, 43), "ZCHW", lambda a: a),
            ((5, 6, 37, 43), "CZYX", lambda a: a.swapaxes(0, 1)),
            ((6, 37, 43, 5), "ZHWC", lambda a: a.transpose(0, 3, 1, 2)),
            ((2, 3, 5, 37, 43), "ZZCHW", lambda a: a.reshape(6, 5, 37, 43)),
            ((2, 37, 3, 43), "ZHZW", lambda a: a.transpose(0, 2, 1, 3).reshape(6, 1, 37, 43)),
        ],
    )
    def test_axes(self, tmp_path, shape, axes, to_slices, order):
        values = numbers(shape, "u2")
        np.save(tmp_path / "a.npy", np.asarray(values, order=order))
        np.savez_compressed(tmp_path / "a.npz", np.asarray(values, order=order))
        slices = to_slices(values)
        for path in (tmp_path / "a.npy", tmp_path / "a.npz"):
            group = str(path) if len(slices) > 1 else None
            check(path, slices, axes, guessed=len(shape) == 3 and axes is None, group=group)

    def test_content_decides_between_npy_and_npz(self, tmp_path):
        values = numbers(SHAPE, "u2")
        np.savez(tmp_path / "a.npz", values)
        check((tmp_path / "a.npz").rename(tmp_path / "b.npy"), values[None])

    def test_only_a_part_of_a_large_file_is_read(self, tmp_path):
        """A file of a terabyte, of which the disk holds nothing."""
        stored = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", "<u2", (2**13, 2**13, 2**13))
        stored[17, 4000:4010, 5000:5020] = expected = numbers((10, 20), "u2")
        stored.flush()
        part = read_region(tmp_path / "a.npy", 4000, 5000, 10, 20, index=17, axes="ZHW")
        np.testing.assert_array_equal(part, expected[None])

    @pytest.mark.parametrize("value", [2**24, -(2**24), 2**25, 2**24 + 2, 2**62, -(2**63), 3 * 2**40])
    def test_integers_that_float32_holds(self, tmp_path, value):
        np.save(tmp_path / "a.npy", np.full((4, 4), value, np.int64))
        assert (read_array(tmp_path / "a.npy").astype(object) == value).all()

    @pytest.mark.parametrize("value", [2**24 + 1, -(2**24) - 1, 2**25 + 2, 2**53 + 1, 2**63 - 1])
    def test_integers_that_float32_cannot_hold(self, tmp_path, value):
        values = np.zeros((4, 4), np.int64)
        values[1, :2] = value
        np.save(tmp_path / "a.npy", values)
        with pytest.raises(
            PixelsError, match=r"^2 of its 16 values are integers beyond 16,777,216 that float32 cannot"
        ):
            read_array(tmp_path / "a.npy")

    def test_a_long_unsigned_integer(self, tmp_path):
        np.save(tmp_path / "a.npy", np.full((4, 4), 2**64 - 1, np.uint64))
        with pytest.raises(PixelsError, match="16 of its 16 values are integers beyond"):
            read_array(tmp_path / "a.npy")
        np.save(tmp_path / "a.npy", np.full((4, 4), 2**63, np.uint64))
        assert (read_array(tmp_path / "a.npy") == 2**63).all()

    def test_values_of_the_region_alone_are_checked(self, tmp_path):
        values = numbers((37, 43), "f4")
        values[0, 0] = np.nan
        np.save(tmp_path / "a.npy", values)
        np.testing.assert_array_equal(read_region(tmp_path / "a.npy", 1, 1, 30, 30)[0], values[1:31, 1:31])
        with pytest.raises(PixelsError, match=r"^1 of its 1591 values are NaN or infinite"):
            read_array(tmp_path / "a.npy")


@pytest.fixture
def tifffile():
    return pytest.importorskip("tifffile")


class TestTiff:
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("dtype", ["bool", "u1", "u2", "i2", "u4", "f2", "f4", "f8"])
    def test_types(self, tmp_path, tifffile, dtype, order):
        values = numbers((37, 43), dtype)
        tifffile.imwrite(tmp_path / "a.tif", values, byteorder=order)
        check(tmp_path / "a.tif", expected_of(values)[None, None], kind="tiff", group=None, guessed=False)

    @pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd"])
    @pytest.mark.parametrize("tile", [None, (16, 16), (32, 16)])
    @pytest.mark.parametrize("planar", ["contig", "separate"])
    def test_channels(self, tmp_path, tifffile, planar, tile, compression):
        if compression not in (None, "zlib"):
            pytest.importorskip("imagecodecs")
        values = numbers(SHAPE, "u2")
        stored = values if planar == "separate" else values.transpose(1, 2, 0)
        rows = None if tile else 5
        arguments = {"planarconfig": planar, "tile": tile, "rowsperstrip": rows, "compression": compression}
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", **arguments)
        check(tmp_path / "a.tif", values[None], guessed=False)

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4", "f8"])
    def test_predictors(self, tmp_path, tifffile, dtype, order):
        pytest.importorskip("imagecodecs")
        values = numbers((37, 43), dtype)
        arguments = {"compression": "zlib", "predictor": True, "rowsperstrip": 8, "byteorder": order}
        tifffile.imwrite(tmp_path / "a.tif", values, **arguments)
        check(tmp_path / "a.tif", expected_of(values)[None, None])

    @pytest.mark.parametrize("compression", [None, "zlib"])
    @pytest.mark.parametrize(
        ("shape", "axes", "to_slices", "arguments", "guessed"),
        [
            ((6, 37, 43), None, lambda a: a[:, None], {}, True),
            ((6, 37, 43), None, lambda a: a[:, None], {"metadata": None}, True),
            ((6, 37, 43), "CHW", lambda a: a[None], {}, False),
            ((5, 37, 43), None, lambda a: a[None], {"metadata": {"axes": "CYX"}}, False),
            ((6, 37, 43), None, lambda a: a[:, None], {"metadata": {"axes": "ZYX"}}, False),
            ((4, 37, 43, 3), None, lambda a: a.transpose(0, 3, 1, 2), {"photometric": "rgb"}, True),
            ((4, 37, 43, 3), "ZHWC", lambda a: a.transpose(0, 3, 1, 2), {"photometric": "rgb"}, False),
            ((4, 3, 37, 43), None, lambda a: a, {"photometric": "rgb", "planarconfig": "separate"}, True),
            # pages of another kind than images
            ((37, 43, 5), "HWC", lambda a: a.transpose(2, 0, 1)[None], {"photometric": "minisblack"}, False),
            ((37, 4, 43), "HZW", lambda a: a.transpose(1, 0, 2)[:, None], {"photometric": "minisblack"}, False),
            ((37, 43, 4), "HWZ", lambda a: a.transpose(2, 0, 1)[:, None], {"photometric": "minisblack"}, False),
            ((3, 37, 43), "ZHW", lambda a: a[:, None], {"photometric": "rgb", "planarconfig": "separate"}, False),
        ],
    )
    def test_pages(self, tmp_path, tifffile, shape, axes, to_slices, arguments, guessed, compression):
        values = numbers(shape, "u2")
        tifffile.imwrite(tmp_path / "a.tif", values, compression=compression, **arguments)
        slices = to_slices(values)
        group = str(tmp_path / "a.tif") if len(slices) > 1 else None
        check(tmp_path / "a.tif", slices, axes, guessed=guessed, group=group)

    @pytest.mark.parametrize("metadata", [None, {}])
    @pytest.mark.parametrize("compression", [None, "zlib"])
    def test_pages_that_were_appended(self, tmp_path, tifffile, metadata, compression):
        values = numbers((4, 37, 43), "u2")
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            for page in values:
                writer.write(page, contiguous=False, metadata=metadata, compression=compression, rowsperstrip=9)
        check(tmp_path / "a.tif", values[:, None], guessed=True)

    def test_imagej_hyperstack(self, tmp_path, tifffile):
        values = numbers((2, 3, 4, 37, 43), "u2")
        tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, metadata={"axes": "TZCYX"})
        check(tmp_path / "a.tif", values.reshape(6, 4, 37, 43), guessed=False, axes="ZZCHW")

    @pytest.mark.parametrize("arguments", [{}, {"compression": "zlib", "tile": (16, 16)}])
    @pytest.mark.parametrize("axes", ["ZCYX", "CZYX"])
    def test_ome(self, tmp_path, tifffile, axes, arguments):
        values = numbers((3, 4, 37, 43), "u2")
        tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata={"axes": axes}, **arguments)
        check(tmp_path / "a.ome.tif", values if axes == "ZCYX" else values.swapaxes(0, 1), guessed=False)

    def test_first_series_at_full_resolution(self, tmp_path, tifffile):
        """Of a pyramid, and of a file with a thumbnail after the image."""
        values = numbers((37, 43), "u2")
        with tifffile.TiffWriter(tmp_path / "a.tif", ome=True) as writer:
            writer.write(values, subifds=1, tile=(16, 16))
            writer.write(values[::2, ::2], subfiletype=1, tile=(16, 16))
        check(tmp_path / "a.tif", values[None, None])
        with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
            writer.write(values)
            writer.write(values[::4, ::4])
        check(tmp_path / "b.tif", values[None, None])

    @pytest.mark.parametrize("bits", [2, 4, 12])
    def test_packed_bits(self, tmp_path, tifffile, bits):
        pytest.importorskip("imagecodecs")
        values = GENERATOR.integers(2**bits, size=(37, 44)).astype("u1" if bits < 8 else "u2")
        tifffile.imwrite(tmp_path / "a.tif", values, bitspersample=bits)
        np.testing.assert_array_equal(read_array(tmp_path / "a.tif"), values[None])
        assert read_header(tmp_path / "a.tif").dtype == str(values.dtype)

    @pytest.mark.parametrize("arguments", [{}, {"compression": "zlib", "tile": (16, 16)}])
    def test_big_tiff(self, tmp_path, tifffile, arguments):
        values = numbers((37, 43), "u2")
        tifffile.imwrite(tmp_path / "a.tif", values, bigtiff=True, **arguments)
        check(tmp_path / "a.tif", values[None, None])

    def test_tiles_of_three_dimensions(self, tmp_path, tifffile):
        values = numbers((6, 37, 43), "u2")
        arguments = {"volumetric": True, "tile": (4, 16, 16), "photometric": "minisblack", "compression": "zlib"}
        tifffile.imwrite(tmp_path / "a.tif", values, **arguments)
        check(tmp_path / "a.tif", values[:, None])

    def test_jpeg_in_tiff(self, tmp_path, tifffile):
        pytest.importorskip("imagecodecs")
        values = np.linspace(0, 255, 37 * 43 * 3).reshape(37, 43, 3).astype("u1")
        tifffile.imwrite(tmp_path / "a.tif", values, compression="jpeg", tile=(16, 16))
        slices = tifffile.imread(tmp_path / "a.tif").transpose(2, 0, 1)[None]
        assert np.abs(slices[0].transpose(1, 2, 0) - values.astype(float)).mean() < 5  # RGB, not YCbCr
        check(tmp_path / "a.tif", slices)

    def test_jpeg_with_tables_apart(self, tmp_path, tifffile):
        """As libtiff writes it."""
        pytest.importorskip("imagecodecs")
        values = np.linspace(0, 255, 37 * 43).reshape(37, 43).astype("u1")
        Image.fromarray(values).save(tmp_path / "a.tif", compression="jpeg", strip_size=43 * 8)
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            assert len(file.pages[0].dataoffsets) > 1
            assert file.pages[0].jpegtables
        with Image.open(tmp_path / "a.tif") as image:
            check(tmp_path / "a.tif", np.asarray(image)[None, None])

    def test_palette_is_the_colours_that_pillow_shows(self, tmp_path, tifffile):
        values = numbers((37, 43), "u1")
        colours = numbers((3, 256), "u2")
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="palette", colormap=colours)
        with Image.open(tmp_path / "a.tif") as image:
            check(tmp_path / "a.tif", np.asarray(image.convert("RGB")).transpose(2, 0, 1)[None])

    def test_values_are_as_they_are_stored(self, tmp_path, tifffile):
        """Also where 0 is white, and alpha is a channel."""
        values = numbers((37, 43), "u1")
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
        check(tmp_path / "a.tif", values[None, None])
        values = numbers((37, 43, 4), "u1")
        tifffile.imwrite(tmp_path / "b.tif", values, photometric="rgb", extrasamples=["unassalpha"])
        check(tmp_path / "b.tif", values.transpose(2, 0, 1)[None])

    def test_tiles_that_are_not_stored_have_the_value_of_no_data(self, tmp_path, tifffile):
        values = numbers((32, 48), "u2")
        tiles = [values[:16, :16], None, values[:16, 32:], None, values[16:, 16:32], None]
        arguments = {"shape": values.shape, "dtype": "u2", "tile": (16, 16), "compression": "zlib"}
        encoded = (b"" if tile is None else zlib.compress(tile.tobytes()) for tile in tiles)
        tags = [(42113, "s", 0, "7", False)]  # GDAL's
        tifffile.imwrite(tmp_path / "a.tif", encoded, extratags=tags, **arguments)
        expected = values.copy()
        expected[:16, 16:32] = expected[16:, :16] = expected[16:, 32:] = 7
        np.testing.assert_array_equal(read_array(tmp_path / "a.tif")[0], expected)
        np.testing.assert_array_equal(read_region(tmp_path / "a.tif", 10, 10, 20, 30)[0], expected[10:30, 10:40])

    def test_a_region_decodes_only_the_tiles_that_it_touches(self, tmp_path, tifffile, monkeypatch):
        values = numbers((96, 96), "u2")
        tifffile.imwrite(tmp_path / "a.tif", values, tile=(16, 16), compression="zlib")
        read_bytes = []
        read = tifffile.FileHandle.read
        monkeypatch.setattr(tifffile.FileHandle, "read", lambda self, n=-1: read_bytes.append(n) or read(self, n))
        np.testing.assert_array_equal(read_region(tmp_path / "a.tif", 30, 15, 3, 2)[0], values[30:33, 15:17])
        assert sum(read_bytes[-4:]) > 4 * 300
        assert sum(n > 300 for n in read_bytes) <= 4 + 1  # and the header


@pytest.fixture
def pydicom():
    return pytest.importorskip("pydicom")


def of_pydicom(path, index=None, window=True):
    """Values by pydicom alone, its window scaled to [0, 1] by the range that it maps to."""
    import pydicom
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

    dataset = pydicom.dcmread(path)
    stored = pixel_array(dataset, index=index)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return apply_color_lut(stored, dataset).transpose(2, 0, 1)
    if stored.ndim == 3:
        return stored.transpose(2, 0, 1)
    values = apply_modality_lut(stored, dataset)
    if not window:
        return values[None]
    with np.errstate(over="ignore"):  # of the sigmoid
        shown = apply_voi_lut(values, dataset).astype(np.float64)
    # The range is where a window of next to nothing leads.
    ends = dataset.copy()
    if "VOILUTSequence" in dataset:
        low, high = 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:
        ends.VOILUTFunction = "LINEAR_EXACT"
        ends.WindowCenter, ends.WindowWidth = 0, 1e-9
        low, high = apply_voi_lut(np.array([-1e6, 1e6]), ends)
    share = (shown - low) / (high - low)
    return (1 - share if dataset.PhotometricInterpretation == "MONOCHROME1" else share)[None]


WINDOW = {"WindowCenter": 100, "WindowWidth": 150}
RESCALE = {"RescaleSlope": 2.5, "RescaleIntercept": -100}


class TestDicom:
    @pytest.mark.parametrize(("dtype", "bits"), [("u1", 8), ("u2", 12), ("u2", 16), ("i2", 12), ("i2", 16), ("i1", 8)])
    def test_grey(self, tmp_path, pydicom, dtype, bits):
        low, high = (0, 2**bits) if dtype[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1))
        stored = GENERATOR.integers(low, high, size=(37, 43)).astype(dtype)
        dicom(tmp_path / "a.dcm", stored, bits=bits)
        check(tmp_path / "a.dcm", expected_of(stored)[None, None], kind="dicom", group="patient 7", window=None)
        dicom(tmp_path / "b.dcm", stored, "MONOCHROME1", bits=bits)
        inverted = (low + high - 1 - stored.astype(int)).astype(dtype)
        check(tmp_path / "b.dcm", expected_of(inverted)[None, None])

    @pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
    @pytest.mark.parametrize(
        "elements",
        [
            WINDOW,
            WINDOW | RESCALE,
            RESCALE | {"WindowCenter": [40, 600], "WindowWidth": [400, 1500]},
            WINDOW | {"RescaleSlope": -0.5, "RescaleIntercept": 200},
            WINDOW | {"VOILUTFunction": "SIGMOID"},
            WINDOW | {"VOILUTFunction": "LINEAR_EXACT"},
        ],
        ids=["window", "rescaled", "two windows", "negative slope", "sigmoid", "linear exact"],
    )
    @pytest.mark.parametrize(("dtype", "bits"), [("u1", 8), ("u2", 12), ("i2", 16)])
    def test_window(self, tmp_path, pydicom, dtype, bits, elements, interpretation):
        low, high = (0, 2**bits) if dtype[0] == "u" else (-(2**15), 2**15)
        stored = GENERATOR.integers(low, high, size=(37, 43)).astype(dtype)
        path = dicom(tmp_path / "a.dcm", stored, interpretation, bits=bits, **elements)
        expected = of_pydicom(path).astype(np.float32)
        check(path, expected[None], window=(0, 1))
        assert 0 <= expected.min() < expected.max() <= 1
        plain = read_array(path, own_window=False)
        reference = of_pydicom(path, window=False)
        if interpretation == "MONOCHROME1":
            slope, intercept = elements.get("RescaleSlope", 1), elements.get("RescaleIntercept", 0)
            reference = (low + high - 1) * slope + 2 * intercept - reference.astype(np.float64)
        np.testing.assert_array_equal(plain, reference.astype(plain.dtype))
        header = read_header(path, own_window=False)
        assert (header.dtype, header.window) == (str(plain.dtype), None)

    @pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
    @pytest.mark.parametrize(("depth", "n", "first"), [(8, 256, 0), (12, 4096, 0), (16, 3000, 500)])
    def test_voi_lut(self, tmp_path, pydicom, depth, n, first, interpretation):
        stored = GENERATOR.integers(0, 256 if n == 256 else 4096, size=(37, 43)).astype("u2")
        table = GENERATOR.integers(2**depth, size=n)
        path = dicom(tmp_path / "a.dcm", stored, interpretation, bits=12, VOILUTSequence=[lookup(table, first, depth)])
        check(path, of_pydicom(path).astype(np.float32)[None], window=(0, 1))

    def test_a_long_voi_lut_of_8_bits(self, tmp_path, pydicom):
        """pydicom counts its entries modulo 256."""
        stored = GENERATOR.integers(4096, size=(37, 43)).astype("u2")
        table = GENERATOR.integers(256, size=3000)
        path = dicom(tmp_path / "a.dcm", stored, bits=12, VOILUTSequence=[lookup(table, 500, 8)])
        expected = table[np.clip(stored.astype(int) - 500, 0, 2999)] / 255
        check(path, expected.astype(np.float32)[None, None])

    def test_values_far_beyond_a_voi_lut_have_its_last_entry(self, tmp_path, pydicom):
        """pydicom counts them modulo 65,536."""
        stored = GENERATOR.integers(4096, size=(37, 43)).astype("u2")
        table = GENERATOR.integers(4096, size=500)
        elements = {"VOILUTSequence": [lookup(table, 300, 12)], "RescaleSlope": 100, "RescaleIntercept": 0}
        path = dicom(tmp_path / "a.dcm", stored, bits=12, **elements)
        expected = table[np.clip(100 * stored.astype(int) - 300, 0, 499)] / 4095
        check(path, expected.astype(np.float32)[None, None])

    @pytest.mark.parametrize("depth", [8, 12, 16])
    def test_modality_lut(self, tmp_path, pydicom, depth):
        stored = GENERATOR.integers(256, size=(37, 43)).astype("u1")
        table = GENERATOR.integers(2**depth, size=200)
        expected = table[np.clip(stored.astype(int) - 20, 0, 199)].astype("u1" if depth == 8 else "u2")
        path = dicom(tmp_path / "a.dcm", stored, ModalityLUTSequence=[lookup(table, 20, depth)])
        check(path, expected[None, None])
        path = dicom(tmp_path / "b.dcm", stored, "MONOCHROME1", ModalityLUTSequence=[lookup(table, 20, depth)])
        check(path, (2**depth - 1 - expected)[None, None])
        if depth != 12:  # which pydicom does not read
            np.testing.assert_array_equal(of_pydicom(path, window=False)[0], expected)
            path = dicom(tmp_path / "c.dcm", stored, ModalityLUTSequence=[lookup(table, 20, depth)], **WINDOW)
            check(path, of_pydicom(path).astype(np.float32)[None])

    @pytest.mark.parametrize("planar", [0, 1])
    @pytest.mark.parametrize("dtype", ["u1", "u2"])
    def test_rgb(self, tmp_path, pydicom, dtype, planar):
        stored = numbers((37, 43, 3), dtype)
        path = dicom(tmp_path / "a.dcm", stored, "RGB", planar=planar, **WINDOW)  # which means nothing in colour
        check(path, stored.transpose(2, 0, 1)[None], window=None)
        np.testing.assert_array_equal(of_pydicom(path), stored.transpose(2, 0, 1))

    def test_ybr(self, tmp_path, pydicom):
        stored = numbers((37, 43, 3), "u1")
        path = dicom(tmp_path / "a.dcm", stored, "YBR_FULL")
        check(path, of_pydicom(path)[None])
        y, cb, cr = np.moveaxis(stored.astype(float), 2, 0)  # ITU-T T.871, section 7
        rgb = [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)]
        assert np.abs(read_array(path) - np.clip(rgb, 0, 255)).max() <= 1

    @pytest.mark.parametrize(("entries", "index"), [("u1", "u1"), ("u2", "u1"), ("u2", "u2")])
    def test_palette(self, tmp_path, pydicom, entries, index):
        tables = numbers((3, 256), entries)
        stored = GENERATOR.integers(256, size=(37, 43)).astype(index)
        path = dicom(tmp_path / "a.dcm", stored, "PALETTE COLOR", **palette(tables))
        check(path, tables[:, stored][None])
        np.testing.assert_array_equal(of_pydicom(path), tables[:, stored])

    def test_values_beyond_a_palette_have_its_last_colour(self, tmp_path, pydicom):
        tables = numbers((3, 200), "u1")
        stored = GENERATOR.integers(1000, size=(37, 43)).astype("u2")
        path = dicom(tmp_path / "a.dcm", stored, "PALETTE COLOR", **palette(tables, first=30))
        check(path, tables[:, np.clip(stored.astype(int) - 30, 0, 199)][None])

    @pytest.mark.parametrize("colour", [False, True])
    def test_frames(self, tmp_path, pydicom, colour):
        stored = numbers((6, 37, 43, 3), "u1") if colour else numbers((6, 37, 43), "u2")
        path = dicom(tmp_path / "a.dcm", stored, "RGB" if colour else "MONOCHROME2", n_frames=6)
        check(path, stored.transpose(0, 3, 1, 2) if colour else stored[:, None], group="patient 7")
        path = dicom(tmp_path / "b.dcm", stored, "RGB" if colour else "MONOCHROME2", n_frames=6, PatientID="")
        assert read_header(path).group == str(path)

    def test_no_patient_and_one_slice_is_no_group(self, tmp_path, pydicom):
        assert read_header(dicom(tmp_path / "a.dcm", numbers((37, 43), "u1"), PatientID=None)).group is None

    def test_rescale_and_window_of_each_frame(self, tmp_path, pydicom):
        """As enhanced CT and MR have them."""

        def group(**elements):
            transformation, window, group = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
            for name, value in elements.items():
                setattr(window if name.startswith("Window") else transformation, name, value)
            if transformation:
                group.PixelValueTransformationSequence = [transformation]
            if window:
                group.FrameVOILUTSequence = [window]
            return group

        stored = GENERATOR.integers(4096, size=(3, 37, 43)).astype("u2")
        path = dicom(
            tmp_path / "a.dcm",
            stored,
            n_frames=3,
            bits=12,
            SharedFunctionalGroupsSequence=[group(**WINDOW)],
            PerFrameFunctionalGroupsSequence=[group(RescaleSlope=i + 1, RescaleIntercept=-100 * i) for i in range(3)],
        )
        for i in range(3):
            rescaled = {"RescaleSlope": i + 1, "RescaleIntercept": -100 * i}
            alone = dicom(tmp_path / "b.dcm", stored[i], bits=12, **WINDOW, **rescaled)
            np.testing.assert_array_equal(read_array(path, i), of_pydicom(alone).astype(np.float32))
            values = stored[i].astype(np.float64) * (i + 1) - 100 * i
            np.testing.assert_array_equal(read_array(path, i, own_window=False)[0], values.astype(np.float32))

    @pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
    def test_one_bit(self, tmp_path, pydicom, interpretation):
        stored = numbers((3, 40, 48), bool)
        packed = np.packbits(stored.ravel(), bitorder="little").tobytes()
        elements = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "PixelData": packed}
        path = dicom(tmp_path / "a.dcm", stored, interpretation, n_frames=3, **elements)
        shown = stored if interpretation == "MONOCHROME2" else ~stored
        assert (read_header(path).dtype, read_header(path).n_slices) == ("uint8", 3)
        for i in range(3):
            np.testing.assert_array_equal(read_array(path, i)[0], np.where(shown[i], 255, 0))

    @pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"])
    def test_uncompressed_transfer_syntaxes(self, tmp_path, pydicom, syntax):
        stored = numbers((37, 43), "u2")
        check(dicom(tmp_path / "a.dcm", stored, syntax=syntax), stored[None, None])

    def test_compressed_without_loss(self, tmp_path, pydicom):
        stored = numbers((4, 37, 43), "u2")
        path = dicom(tmp_path / "a.dcm", stored, n_frames=4)
        dataset = pydicom.dcmread(path)
        dataset.compress("1.2.840.10008.1.2.5")  # RLE
        dataset.save_as(path)
        check(path, stored[:, None])

    @pytest.mark.parametrize(
        ("syntax", "kind"), [("1.2.840.10008.1.2.4.50", "jpeg"), ("1.2.840.10008.1.2.4.90", "jpeg2000")]
    )
    @pytest.mark.parametrize("colour", [False, True])
    def test_compressions_of_pillow(self, tmp_path, pydicom, syntax, kind, colour):
        """Frames are what Pillow makes of them."""
        stored = numbers((2, 40, 48, 3) if colour else (2, 40, 48), "u1")
        files = [io.BytesIO() for _ in stored]
        for file, image in zip(files, stored, strict=True):
            Image.fromarray(image).save(
                file, kind, **({"subsampling": 0} if kind == "jpeg" else {"irreversible": False})
            )
        interpretation = ("YBR_FULL" if kind == "jpeg" else "RGB") if colour else "MONOCHROME2"
        path = dicom(tmp_path / "a.dcm", stored, interpretation, n_frames=2)
        dataset = pydicom.dcmread(path)
        dataset.PixelData = pydicom.encaps.encapsulate([file.getvalue() for file in files])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path)
        expected = np.stack([np.asarray(Image.open(file)) for file in files])
        check_within = 1 if kind == "jpeg" and colour else 0  # whose YBR pydicom converts itself
        for i in range(2):
            image = expected[i].transpose(2, 0, 1) if colour else expected[i][None]
            assert np.abs(read_array(path, i).astype(int) - image).max() <= check_within
        np.testing.assert_array_equal(read_region(path, 3, 5, 7, 9, 1), read_array(path, 1)[:, 3:10, 5:14])

    def test_a_compression_that_no_package_reads(self, tmp_path, pydicom, monkeypatch):
        path = dicom(tmp_path / "a.dcm", numbers((37, 43), "u2"))
        dataset = pydicom.dcmread(path)
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xc3" + bytes(60)])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.80"  # JPEG-LS
        dataset.save_as(path)
        decoder = pydicom.pixels.get_decoder(dataset.file_meta.TransferSyntaxUID)
        if decoder.is_available:
            pytest.skip("a package that decodes JPEG-LS is installed")
        with pytest.raises(MissingPackageError, match=r"^[^\n]*missing dependencies: [^\n]*: install one of them$"):
            read_array(path)


VALUES = np.arange(37 * 43).reshape(37, 43)


def npy(path, values):
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=True)


def cut(path, n_bytes):
    path.write_bytes(path.read_bytes()[:n_bytes])


def patch(path, old, new):
    content = path.read_bytes()
    assert content.count(old) >= 1
    path.write_bytes(content.replace(old, new, 1))


def with_nan(dtype):
    values = VALUES.astype(dtype)
    values[3, :4] = [np.nan, np.inf, -np.inf, 1]
    return values


def tiff(path, values, **arguments):
    import tifffile

    tifffile.imwrite(path, values, **arguments)


def cut_tiff(path, n_bytes, **arguments):
    tiff(path, VALUES.astype("u2"), **arguments)
    cut(path, n_bytes)


def tiff_of_colours(path, photometric, n=3):
    tiff(path, np.zeros((16, 16, n), "u1"), photometric=photometric)


def damaged_tiff(path, **arguments):
    tiff(path, VALUES.astype("u2"), **arguments)
    content = bytearray(path.read_bytes())
    content[-300:] = bytes(300)
    path.write_bytes(content)


def multi_file(path):
    import tifffile

    for name in ("one", "two"):
        tifffile.imwrite(path.with_name(f"{name}.tif"), VALUES.astype("u2"), metadata=None)
    planes = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="{name}.tif">urn:uuid:{z}</UUID></TiffData>'
        for z, name in enumerate((path.stem, "two"))
    )
    text = f"""<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0"><Image ID="Image:0"><Pixels
ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="43" SizeY="37" SizeZ="2" SizeC="1" SizeT="1"><Channel
ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>"""
    tifffile.imwrite(path, VALUES.astype("u2"), metadata=None, description=text)


def dicom_of(path, **arguments):
    dicom(path, VALUES.astype("u2"), **arguments)


def cut_dicom(path, n_bytes):
    dicom_of(path)
    cut(path, n_bytes)


def not_a_frame(path):
    dicom_of(path)
    patch(path, b"\x28\x00\x10\x00US\x02\x00\x25\x00", b"\x28\x00\x10\x00US\x02\x00\x26\x00")


def damaged_npz(path):
    np.savez_compressed(path, VALUES)
    content = bytearray(path.read_bytes())
    content[200:230] = bytes(30)
    path.write_bytes(content)


def cut_in_npz(path):
    """An archive that is whole, of an array that is not."""
    npy(path, VALUES)
    content = path.read_bytes()[:1000]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", content)


JPEG = b"\xff\xd8\xff\xe0" + bytes(200)
BAD = {
    "empty.npy": (lambda p: p.touch(), "^it is an empty file by its content: expected a NumPy array"),
    "empty.npz": (lambda p: p.touch(), "^it is an empty file by its content: expected a NumPy array"),
    "empty.tif": (lambda p: p.touch(), "^it is an empty file by its content: expected a TIFF"),
    "empty.dcm": (lambda p: p.touch(), "^it is an empty file by its content: expected a DICOM file"),
    "jpeg.tif": (lambda p: p.write_bytes(JPEG), "^it is a JPEG by its content: expected a TIFF"),
    "jpeg.dcm": (lambda p: p.write_bytes(JPEG), "^it is a JPEG by its content: expected a DICOM file"),
    "png.tiff": (lambda p: Image.new("L", (8, 8)).save(p, "png"), "^it is a PNG by its content: expected a TIFF"),
    "page.npy": (lambda p: p.write_text("<html>404</html>"), "^it is a text in HTML or XML by its content"),
    "text.npy": (lambda p: p.write_text("1, 2"), "^it is of an unknown kind by its content: expected a NumPy array"),
    "no_preamble.dcm": (lambda p: p.write_bytes(b"\x08\0\x05\0CS" + bytes(300)), "^it is of an unknown kind by its"),
    "folder.tif": (lambda p: p.mkdir(), "Is a directory"),
    "missing.tif": (lambda p: None, "No such file or directory"),
    "missing.npy": (lambda p: None, "No such file or directory"),
    # NumPy
    "nan.npy": (lambda p: npy(p, with_nan("f8")), "^3 of its 1591 values are NaN or infinite: replace them$"),
    "nan.npz": (lambda p: np.savez(p, with_nan("f2")), "^3 of its 1591 values are NaN or infinite: replace them$"),
    "too_large.npy": (lambda p: npy(p, VALUES * 1e300), "^1590 of its 1591 values are beyond the range of float32"),
    "integers.npy": (lambda p: npy(p, VALUES + 2**40), "^1590 of its 1591 values are integers beyond 16,777,216"),
    "complex.npy": (lambda p: npy(p, VALUES + 1j), "^its values are no real numbers, but complex numbers"),
    "objects.npy": (lambda p: npy(p, VALUES.astype(object)), "^its values are no real numbers, but Python objects"),
    "objects.npz": (lambda p: np.savez(p, VALUES.astype(object)), "^its values are no real numbers, but Python"),
    "text_array.npy": (lambda p: npy(p, VALUES.astype(str)), "^its values are no real numbers, but type <U"),
    "dates.npy": (lambda p: npy(p, VALUES.astype("M8[s]")), "^its values are no real numbers, but type datetime64"),
    "records.npy": (lambda p: npy(p, np.zeros((9, 9), "u1,f4")), "^its values are no real numbers, but type "),
    "names.npy": (lambda p: npy(p, np.zeros((9, 9), [("\u4e00", "u1")])), r"^its format has the version 3\.0"),
    "scalar.npy": (lambda p: npy(p, np.float32(3)), r"^its array has the shape \(\): expected two axes or more"),
    "row.npy": (lambda p: npy(p, np.zeros(9)), r"^its array has the shape \(9,\): expected two axes or more"),
    "zero.npy": (lambda p: npy(p, np.zeros((5, 0, 9))), r"^its array has the shape \(5, 0, 9\): it is empty"),
    "no_axes.npy": (
        lambda p: npy(p, np.zeros((40, 41, 42))),
        r"^its array has the shape \(40, 41, 42\): say what each",
    ),
    "small.npy": (
        lambda p: npy(p, np.zeros((5, 6, 7))),
        r"^its array has the shape \(5, 6, 7\): say what each axis is",
    ),
    "middle.npy": (lambda p: npy(p, np.zeros((40, 3, 42))), r"^its array has the shape \(40, 3, 42\): say what each"),
    "four.npy": (
        lambda p: npy(p, np.zeros((2, 3, 40, 42))),
        r"\(2, 3, 40, 42\): say what each axis is, such as axes: ZCHW",
    ),
    "cut.npy": (lambda p: (npy(p, VALUES), cut(p, 5000)), "^it has 5,000 bytes, expected 12,856: it is truncated"),
    "header.npy": (lambda p: (npy(p, VALUES), cut(p, 60)), "^it is damaged or no valid npy or npz file: EOF"),
    "no_header.npy": (lambda p: (npy(p, VALUES), patch(p, b"{'descr'", b"]]]]]]]]")), "^it is damaged or no valid npy"),
    "huge.npy": (
        lambda p: (npy(p, VALUES), patch(p, b"(37, 43), }", b"(10**9, 9)}")),
        "^it is damaged or no valid npy",
    ),
    "long.npy": (
        lambda p: (npy(p, VALUES), patch(p, b"(37, 43), }  ", b"(9**99, 43)} ")),
        "^it is damaged or no valid npy",
    ),
    "two.npz": (
        lambda p: np.savez(p, image=VALUES, mask=VALUES),
        r"^it holds 2 arrays \(image, mask\): save one array",
    ),
    "none.npz": (lambda p: np.savez(p), r"^it holds 0 arrays \(none\): save one array"),
    "cut.npz": (
        lambda p: (np.savez(p, VALUES), cut(p, 5000)),
        "^it is damaged or no valid npy or npz file: File is not a zip",
    ),
    "damaged.npz": (damaged_npz, "^it is damaged or no valid npy or npz file: "),
    "cut_inside.npz": (cut_in_npz, "^it has 1,000 bytes, expected 12,856: it is truncated"),
    # TIFF
    "nan.tif": (lambda p: tiff(p, with_nan("f4")), "^3 of its 1591 values are NaN or infinite: replace them$"),
    "complex.tif": (lambda p: tiff(p, (VALUES + 1j).astype("c8")), "^its values are no real numbers, but complex"),
    "integers.tif": (lambda p: tiff(p, (VALUES + 2**30).astype("u4")), "values are integers beyond 16,777,216"),
    "cut.tif": (lambda p: cut_tiff(p, 2000), r"^it has 2,000 bytes, expected [\d,]+: it is truncated"),
    "cut_header.tif": (lambda p: cut_tiff(p, 6), "^it is damaged or no valid TIFF: "),
    "cut_tags.tif": (lambda p: cut_tiff(p, 60), "^it is damaged or no valid TIFF: "),
    "cut_strips.tif": (
        lambda p: cut_tiff(p, 900, compression="zlib", rowsperstrip=8),
        "^it has 900 bytes, expected [\\d,]+ or more: it is truncated",
    ),
    "cut_tiles.tif": (
        lambda p: cut_tiff(p, 900, compression="zlib", tile=(16, 16)),
        "^it has 900 bytes, expected [\\d,]+ or more: it is truncated",
    ),
    "damaged.tif": (lambda p: damaged_tiff(p, compression="zlib"), "^it is damaged or no valid TIFF: "),
    "marks.tif": (lambda p: p.write_bytes(b"II*\0" + bytes(100)), "^it is damaged or no valid TIFF: "),
    "noise.tif": (
        lambda p: p.write_bytes(b"II*\0\x08\0\0\0" + np.random.default_rng(0).bytes(500)),
        "^it is damaged or no valid TIFF: ",
    ),
    "bomb.tif": (
        lambda p: (tiff(p, VALUES.astype("u2"), compression="zlib"), patch(p, b"\x2b\0\0\0", b"\x2b\0\0\x7f")),
        r"^its header says 37 x 2130706475 pixels in [\d,]+ bytes: it is damaged",
    ),
    "lab.tif": (lambda p: tiff_of_colours(p, "cielab"), "^its colours are stored as CIELAB: save it as RGB"),
    "cmyk.tif": (lambda p: tiff_of_colours(p, "separated", 4), "^its colours are stored as SEPARATED: save it as RGB"),
    "rows.tif": (
        lambda p: tiff(p, np.zeros((90, 80, 5), "u1"), photometric="minisblack"),
        r"^its array has the shape \(90, 80, 5\): say what each axis is, such as axes: HWC or ZHW",
    ),
    "several.ome.tif": (multi_file, "^its images lie in several files"),
    # DICOM
    "report.dcm": (
        lambda p: dicom_of(p, Modality="SR", Rows=None, Columns=None, PixelData=None),
        r"^it holds no pixels \(modality SR\): leave it out",
    ),
    "no_pixels.dcm": (lambda p: dicom_of(p, PixelData=None), "^it holds no pixels: leave it out"),
    "cut.dcm": (lambda p: cut_dicom(p, 2000), "^it is damaged or no valid DICOM file: "),
    "cut_elements.dcm": (lambda p: cut_dicom(p, 420), "^it holds no pixels"),
    "preamble.dcm": (
        lambda p: p.write_bytes(bytes(128) + b"DICM"),
        "^it holds no pixels",
    ),
    "noise.dcm": (
        lambda p: p.write_bytes(bytes(128) + b"DICM" + np.random.default_rng(0).bytes(500)),
        "^it holds no pixels",
    ),
    "more_rows.dcm": (not_a_frame, "^it is damaged or no valid DICOM file: cannot reshape array of size 1591"),
    "no_bits.dcm": (
        lambda p: dicom_of(p, BitsAllocated=None),
        "^it is damaged or no valid DICOM file: .*'Bits Allocated'",
    ),
    "no_kind.dcm": (
        lambda p: dicom_of(p, PhotometricInterpretation=None),
        "^its photometric interpretation is None, which is not read",
    ),
    "hsv.dcm": (
        lambda p: dicom_of(p, interpretation="HSV"),
        "^its photometric interpretation is HSV, which is not read",
    ),
    "no_width.dcm": (
        lambda p: dicom_of(p, WindowCenter=5, WindowWidth=0),
        r"^it is damaged or no valid DICOM file: The \(0028,1051\) Window Width must be",
    ),
    "lut.dcm": (
        lambda p: dicom_of(p, interpretation="MONOCHROME1", ModalityLUTSequence=[lookup(range(2000), 0, 8)]),
        "^it is damaged or no valid DICOM file: ",
    ),
    "lut_12.dcm": (
        lambda p: dicom_of(p, interpretation="MONOCHROME1", ModalityLUTSequence=[lookup(range(9000, 9999), 0, 12)]),
        "^its values are 9000 to 9998: expected 0 to 4095, by the bits that it states",
    ),
    "no_rows.dcm": (lambda p: dicom_of(p, Rows=0), r"^its array has the shape \(0, 43\): it is empty"),
    "no_palette.dcm": (
        lambda p: dicom_of(p, interpretation="PALETTE COLOR"),
        "^it is damaged or no valid DICOM file: ",
    ),
    "syntax.dcm": (
        lambda p: (dicom_of(p), patch(p, b"10008.1.2.1\0", b"10008.1.2.9\0")),
        "^it is damaged or no valid DICOM file: ",
    ),
}


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_clear_line(tmp_path, name):
    write, message = BAD[name]
    for kind, package in ((".tif", "tifffile"), (".dcm", "pydicom")):
        if name.endswith(kind):
            pytest.importorskip(package)
    write(tmp_path / name)
    with pytest.raises((PixelsError, OSError)) as raised:
        read_array(tmp_path / name)
    assert re.search(message, str(raised.value))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300
    with contextlib.suppress(PixelsError, OSError):
        read_header(tmp_path / name)


def test_kinds(tmp_path):
    assert [kind_of(name) for name in ("a.TIF", "a.ome.tiff", "a.npy", "a.NPZ", "a.dcm", "a.dicom", "a.IMA")] == [
        *("tiff", "tiff", "npy", "npy", "dicom", "dicom", "dicom")
    ]
    assert [kind_of(name) for name in ("a.png", "a.jpg", "a.csv", "not_there")] == [None] * 4
    for name in ("IM0001", "1.2.840.10008.17", "DICOMDIR", "a.png"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    found = {name: kind_of(tmp_path / name) for name in ("IM0001", "1.2.840.10008.17", "DICOMDIR", "a.png")}
    assert found == {"IM0001": "dicom", "1.2.840.10008.17": "dicom", "DICOMDIR": None, "a.png": None}
    (tmp_path / "README").write_text("none")
    assert kind_of(tmp_path / "README") is None
    assert kind_of(tmp_path) is None


@pytest.mark.parametrize("axes", ["", "HH", "CH", "HWY", "QHW", "CCHW", "hwc", "H W"])
def test_axes_that_mean_nothing(tmp_path, axes):
    np.save(tmp_path / "a.npy", numbers(SHAPE, "u1"))
    with pytest.raises(UserError, match=r"^axes is '.*': expected a letter for each axis") as raised:
        read_header(tmp_path / "a.npy", axes)
    assert not isinstance(raised.value, PixelsError)  # it lies in no file


def test_axes_are_not_for_dicom(tmp_path, pydicom):
    with pytest.raises(UserError, match="which says itself what its axes are"):
        read_header(dicom(tmp_path / "a.dcm", numbers((37, 43), "u1")), "HW")


@pytest.mark.parametrize(
    "region", [(0, 0, 38, 1), (-1, 0, 2, 2), (0, -1, 2, 2), (0, 43, 1, 1), (3, 3, 0, 2), (5, 5, -1, 3)]
)
def test_regions_and_slices_that_are_not_there(tmp_path, pydicom, tifffile, region):
    values = numbers((37, 43), "u1")
    np.save(tmp_path / "a.npy", values)
    tifffile.imwrite(tmp_path / "a.tif", values)
    dicom(tmp_path / "a.dcm", values)
    for path in tmp_path.iterdir():
        with pytest.raises(PixelsError, match=r"^it has 37 x 43 pixels: expected a region within them"):
            read_region(path, *region)
        for index in (-1, 1):
            with pytest.raises(PixelsError, match=r"^it has 1 slices: expected a slice from 0 to 0"):
                read_array(path, index)


@pytest.mark.parametrize(("package", "name"), [("tifffile", "a.tif"), ("pydicom", "a.dcm")])
def test_a_missing_package_is_one_line(tmp_path, monkeypatch, package, name):
    (tmp_path / name).write_bytes(b"II*\0" + bytes(124) + (b"DICM" if package == "pydicom" else b""))
    monkeypatch.setitem(sys.modules, package, None)
    for function in (read_header, read_array):
        with pytest.raises(MissingPackageError, match=rf"needs {package}: pip install 'msssl\[science\]'$") as raised:
            function(tmp_path / name)
        assert not isinstance(raised.value, PixelsError)  # no image is left out for it


def test_packages_are_imported_when_they_are_needed(tmp_path):
    """And one that is missing is one line: `imagecodecs`, which tifffile needs for some files only."""
    packages = {"tifffile", "pydicom", "imagecodecs"}
    code = f"""
import sys
import msssl
from msssl.data.pixels.arrays.read import read_array
print({packages} & {{*sys.modules}})
sys.modules["imagecodecs"] = None
for path in sys.argv[1:]:
    try:
        read_array(path)
    except msssl.errors.MissingPackageError as error:
        print(error)
"""
    paths = []
    if find_spec("tifffile") and find_spec("imagecodecs"):
        import tifffile

        values = numbers((16, 16), "u1")
        for name, arguments in {
            "lzw": {"compression": "lzw"},
            "jpegxl": {"compression": "jpegxl"},
            "jpeg": {"compression": "jpeg"},
            "packed": {"bitspersample": 6},
        }.items():
            paths.append(tmp_path / f"{name}.tif")
            tifffile.imwrite(paths[-1], values % 64, **arguments)
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    first, *others = done.stdout.splitlines()
    assert first == "set()"
    assert len(others) == len(paths)
    for line in others:
        assert re.fullmatch(r".*imagecodecs.*: pip install 'msssl\[science\]'", line)
