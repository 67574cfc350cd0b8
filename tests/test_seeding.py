from itertools import product

from msssl.seeding import derive_seed


def test_other_names_give_other_seeds():
    keys = [key for length in range(4) for key in product((0, 1, 2, 2**32), repeat=length)]
    seeds = {derive_seed(purpose, *key) for purpose in ("order", "views") for key in keys}
    assert len(seeds) == 2 * len(keys)
    assert all(0 <= seed < 2**64 for seed in seeds)
