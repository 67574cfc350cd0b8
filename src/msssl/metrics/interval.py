"""How sure an accuracy is, over images and over seeds."""

import math
from collections.abc import Sequence

import torch
from scipy.special import stdtrit


def accuracy_interval(
    n_correct: int, n: int, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of an accuracy.

    The correct ones among n images drawn anew with replacement are binomial with the accuracy that was found, so the
    resamples need not be drawn one image at a time.

    Args:
        n_correct: how many were right.
        n: of so many images, at least 1.
        level: of confidence.
        draws: number of resamples.
        seed: of the draws.

    Returns:
        Lower and upper end, in [0, 1].

    Source: Efron 1979; Efron and Tibshirani 1993, chapter 13.

    >>> accuracy_interval(1600, 2000)
    (0.782..., 0.817...)
    """
    if not 0 <= n_correct <= n or n == 0:
        raise ValueError(
            f"{n_correct} of {n} images right: expected at least one image, and no more right than there are"
        )
    generator = torch.Generator().manual_seed(seed)
    share = torch.full((draws,), n_correct / n, dtype=torch.float64)
    resampled = torch.binomial(torch.full_like(share, n), share, generator=generator) / n
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(resampled, ends).tolist()
    return low, high


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of the same measurement with other seeds, and the ends of its interval by Student's t.

    The ends are NaN for a single value.

    >>> mean_interval([0.5, 0.6, 0.7])
    (0.6, 0.35..., 0.84...)
    """
    if not values:
        raise ValueError("a mean of no values")
    each = torch.tensor(values, dtype=torch.float64)
    mean, n = float(each.mean()), len(each)
    if n == 1:
        return mean, math.nan, math.nan
    half = float(stdtrit(n - 1, (1 + level) / 2)) * float(each.std()) / math.sqrt(n)
    return mean, mean - half, mean + half
