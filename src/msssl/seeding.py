"""One seed for each thing that is drawn, from the integers that name it."""

import numpy as np


def derive_seed(*key: int) -> int:
    """A 64-bit seed from non-negative integers such as (seed, epoch, batch index); other keys, unrelated seeds.

    >>> derive_seed(0, 1) == derive_seed(0, 1), derive_seed(0, 1) == derive_seed(1, 0)
    (True, False)
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
