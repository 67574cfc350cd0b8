"""DICOM files as scanners and archives write them, from arrays."""

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
