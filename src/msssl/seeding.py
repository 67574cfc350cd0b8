"""One seed for each thing that is drawn, from what names it."""

from hashlib import blake2b


def derive_seed(purpose: str, *key: int) -> int:
    """A 64-bit seed for a purpose and integers such as (seed, epoch, batch index); other names, unrelated seeds.

    >>> derive_seed("order", 0, 1) == derive_seed("order", 0, 1)
    True
    >>> len({derive_seed("order", 0, 1), derive_seed("order", 1, 0), derive_seed("views", 0, 1)})
    3
    """
    return int.from_bytes(blake2b(repr((purpose, *key)).encode(), digest_size=8).digest(), "little")
