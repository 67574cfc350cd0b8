"""Derives independent seeds from a purpose and numbers, such as the seed of the run, the epoch and the batch."""

from hashlib import blake2b


def derive_seed(purpose: str, *key: int) -> int:
    """A 64-bit seed for a purpose and integers such as (seed, epoch, batch index); seeds of other keys are unrelated.

    >>> derive_seed("order", 0, 1) == derive_seed("order", 0, 1)
    True
    >>> len({derive_seed("order", 0, 1), derive_seed("order", 1, 0), derive_seed("views", 0, 1)})
    3
    """
    return int.from_bytes(blake2b(repr((purpose, *key)).encode(), digest_size=8).digest(), "little")
