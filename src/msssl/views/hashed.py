"""Random numbers as a function of a row's seed and a counter, as many as there are pixels, without a generator.

A generator would draw for the rows of one process only. A function of the row's own seed gives the same numbers for
any number of processes, eagerly or compiled, in the same number of operations for any number of rows.

>>> seeds = seeds_from(torch.rand(2, 8, N_UNIFORMS))  # of the rows of 2 views of 8 images
>>> normal(seeds, 3 * 32 * 32).shape
torch.Size([16, 3072])
"""

import torch
from torch import Tensor

N_UNIFORMS = 2  # random numbers that make a seed: 48 random bits

_WORD = 2**32 - 1


def seeds_from(uniforms: Tensor) -> Tensor:
    """Seeds (K * N, 2), int64, from uniform random numbers (K, N, 2)."""
    return _mix((uniforms.flatten(0, 1) * 2**24).long())


def bits(seeds: Tensor, n: int, start: int = 0) -> Tensor:
    """Random integers (B, n) of 32 bits, as int64: those of the counters `start` to `start + n - 1`.

    The first word of a row's seed is where its counters start, and the second is their odd step, as in SplitMix
    (Steele, Lea and Flood 2014): the numbers of one row are then not those of another row, shifted.
    """
    counters = torch.arange(start, start + n, device=seeds.device)
    first, step = seeds[:, :1], (seeds[:, 1:] >> 1) | 1  # of 31 bits, so that the product fits in an int64
    return _mix((counters * step).add_(first).bitwise_and_(_WORD))


def uniform(seeds: Tensor, n: int, start: int = 0) -> Tensor:
    """Numbers (B, n) that are uniform in [0, 1), float32."""
    return bits(seeds, n, start).bitwise_right_shift_(8).float().div_(2**24)


def normal(seeds: Tensor, n: int, start: int = 0) -> Tensor:
    """Numbers (B, n) of the standard normal distribution, float32; the largest that can occur is 5.4."""
    centred = bits(seeds, n, start).bitwise_right_shift_(8).sub_(2**23).float().add_(0.5)  # exact, and symmetric
    return centred.div_(2**23).erfinv_().mul_(2**0.5)


def _mix(x: Tensor) -> Tensor:
    """A one-to-one map of integers of 32 bits, in which each bit of the input changes about half of the output's.

    Works in place. The two factors have less than 32 bits, so that no product overflows an int64 on any device.

    Source: C. Wellons and others, hash-prospector: of the maps with two products, the least biased that they found.
    """
    x.bitwise_xor_(x >> 16).mul_(0x21F0AAAD).bitwise_and_(_WORD)
    x.bitwise_xor_(x >> 15).mul_(0x735A2D97).bitwise_and_(_WORD)
    return x.bitwise_xor_(x >> 15)
