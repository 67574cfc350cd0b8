"""Data sets in the files of FFCV, an optional library that reads images by threads."""
