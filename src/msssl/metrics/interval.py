"""How sure an accuracy is: over the images of one test set, and over seeds."""

import math
from collections.abc import Sequence

import torch
from scipy.special import stdtrit
from scipy.stats import binomtest

from msssl.errors import UserError

MIN_VALUES = 4  # two values give an interval that is 12.7 times as wide as their distance, which tells nobody anything


def accuracy_interval(n_correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of an accuracy on one set of images.

    It lies within [0, 1] and has a width also where all images, or none, are right.

    Args:
        n_correct: number of images that were classified correctly.
        n: number of images, at least 1.
        level: of confidence.

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        ValueError: no image, or more correct ones than images.

    Source: Wilson 1927; by `scipy.stats.binomtest`.

    >>> accuracy_interval(1600, 2000)
    (0.781..., 0.816...)
    >>> accuracy_interval(10, 10)
    (0.722..., 1.0)
    """
    if not 0 <= n_correct <= n or n == 0:
        raise UserError(
            f"{n_correct} of {n} images right: expected at least one image, and no more right than there are"
        )
    interval = binomtest(n_correct, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(
    values: Sequence[float], level: float = 0.95, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float, float]:
    """Mean of one measure over seeds, and the ends of its interval by Student's t.

    Args:
        values: one for each seed, at least one.
        level: of confidence.
        bounds: the smallest and largest value that the measure can have, (0, 1) for an accuracy; the interval is cut
            off there.

    Returns:
        Mean, lower end, upper end. The ends are NaN below 4 values: show the values themselves instead.

    Raises:
        ValueError: no value.

    >>> mean_interval([0.5, 0.6, 0.7, 0.6])
    (0.6, 0.47..., 0.72...)
    >>> mean_interval([0.5, 0.6, 0.7])
    (0.6, nan, nan)
    """
    if not values:
        raise UserError("a mean of no values")
    each = torch.tensor(values, dtype=torch.float64)
    mean, n = float(each.mean()), len(each)
    if n < MIN_VALUES:
        return mean, math.nan, math.nan
    half = float(stdtrit(n - 1, (1 + level) / 2)) * float(each.std()) / math.sqrt(n)
    return mean, max(mean - half, bounds[0]), min(mean + half, bounds[1])
