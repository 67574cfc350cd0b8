"""Files of science as scanners, archives and programs write them, from arrays; and folders of such files."""

import numpy as np


def dicom(path, frames, interpretation="MONOCHROME2", bits=None, planar=0, n_frames=None, syntax=None, **elements):
    """A DICOM file of stored values (H, W), (H, W, 3), or with `n_frames` (n, H, W) or (n, H, W, 3).

    Args:
        path: of the file.
        frames: stored values; bytes are taken as the pixel data as they are.
        interpretation: photometric.
        bits: that are stored; by default all of the type.
        planar: 1 to store RGB as three planes.
        n_frames: of a multi-frame object.
        syntax: UID of the transfer syntax; by default explicit little endian.
        **elements: further ones, by keyword; None removes one.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import (
        ExplicitVRBigEndian,
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        SecondaryCaptureImageStorage,
        generate_uid,
    )

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    little, implicit = meta.TransferSyntaxUID != ExplicitVRBigEndian, meta.TransferSyntaxUID == ImplicitVRLittleEndian
    dataset = FileDataset(path, {}, bytes(128), meta, is_implicit_VR=implicit, is_little_endian=little)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.PatientID = "OT", "patient 7"
    image = frames[0] if n_frames else frames
    dataset.Rows, dataset.Columns = image.shape[:2]
    dataset.SamplesPerPixel = 3 if image.ndim == 3 else 1
    dataset.PhotometricInterpretation = interpretation
    if image.ndim == 3:
        dataset.PlanarConfiguration = planar
    if n_frames:
        dataset.NumberOfFrames = n_frames
    dataset.BitsAllocated = 8 * frames.dtype.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(frames.dtype.kind == "i")
    stored = np.moveaxis(frames, -1, -3) if planar else frames
    content = stored.astype(stored.dtype.newbyteorder("<" if little else ">")).tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OB" if frames.dtype.itemsize == 1 else "OW"
    for name, value in elements.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def lookup(table, first, depth):
    """A lookup table of DICOM, of a modality or a VOI."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.LUTDescriptor = [len(table), first, depth]
    item.LUTData = [int(value) for value in table]
    item["LUTData"].VR = "US"
    item["LUTDescriptor"].VR = "US"
    return item


def palette(tables, first=0):
    """The elements of a palette from its three columns (n,) of uint8 or uint16."""
    elements = {}
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        bits = 8 * table.dtype.itemsize
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [len(table), first, bits]
        elements[f"{name}PaletteColorLookupTableData"] = table.astype(table.dtype.newbyteorder("<")).tobytes()
    return elements


# Folders of such images, as their users have them. Images of class 1 are coarser than those of class 0.


def field(seed, shape, label=0):
    """Blobs (..., H, W) between 0 and 1, of about 2 pixels, or 4 for label 1."""
    values = np.random.default_rng(seed).normal(size=shape)
    for axis in (-1, -2):
        for _ in range(2 + 6 * label):
            values = (values + np.roll(values, 1, axis)) / 2
    values = values - values.min()
    return values / values.max()


def xrays(folder, n_patients=12, side=40, suffix=".dcm", **elements):
    """Two images of each patient, of 12 bits in 16, in the folders `healthy` and `sick`."""
    for i in range(2 * n_patients):
        patient, label = i // 2, i // 2 % 2
        path = folder / "train" / ("healthy", "sick")[label] / f"{i:03}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = (300 + 3000 * field(i, (side, side), label)).astype("uint16")
        dicom(path, values, bits=12, PatientID=f"patient {patient}", **elements)


def cells(folder, n_train=24, n_test=8, side=32):
    """TIFFs of 5 channels of 16 bits, which name their axes, in `train` and `test`."""
    import tifffile

    for i in range(n_train + n_test):
        path = folder / ("train" if i < n_train else "test") / ("control", "treated")[i % 2] / f"{i:03}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = (40_000 * field(i, (5, side, side), i % 2)).astype("uint16")
        layout = {"photometric": "minisblack", "planarconfig": "separate", "metadata": {"axes": "CYX"}}
        tifffile.imwrite(path, values, **layout)


def bands(folder, n=24, side=40):
    """Arrays of 13 bands of reflectance, in `float32`."""
    for i in range(n):
        path = folder / "train" / ("forest", "town")[i % 2] / f"{i:03}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, field(i, (13, side, side), i % 2).astype("float32"))


def volumes(folder, n=6, depth=5, side=32):
    """Arrays of slices in `int16`, without labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        np.save(folder / f"scan{i}.npy", (3000 * field(i, (depth, side, side)) - 1000).astype("int16"))


def aerial(folder, n=2, side=1000, empty=300):
    """Large PNGs, whose first rows show nothing, without labels."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        pixels = (255 * field(i, (3, side, side), 1)).astype("uint8")
        pixels[:, :empty] = 200
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{i}.png")
