"""Reads images that are arrays of numbers: TIFF of any number of channels and bits, npy and npz, and DICOM."""
