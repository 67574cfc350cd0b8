"""Splits the rows of a matrix into blocks, so that intermediate results never need memory for all rows."""

from itertools import pairwise

NUMBERS = 2**25  # size of a block at most: 134 MB in float32


def blocks(n_rows: int, width: int) -> list[slice]:
    """Slices of the rows of a matrix (n_rows, width), in order, of at most `NUMBERS` numbers each.

    >>> blocks(10, NUMBERS // 4)
    [slice(0, 4, None), slice(4, 8, None), slice(8, 10, None)]
    """
    rows = max(1, NUMBERS // max(1, width))
    return [slice(start, end) for start, end in pairwise([*range(0, n_rows, rows), n_rows])]
