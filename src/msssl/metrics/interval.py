"""Confidence intervals: of an accuracy over the images of a test set, and of a mean over seeds."""

import math
from collections.abc import Sequence

import torch
from scipy.special import stdtrit
from scipy.stats import binomtest

from msssl.errors import UserError

MIN_VALUES = 4  # with two values the interval would be 12.7 times as wide as their distance


def accuracy_interval(n_correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of an accuracy on one set of images.

    It lies within [0, 1], and its width is not 0 even where all images, or none, are classified correctly.

    Args:
        n_correct: number of images that were classified correctly.
        n: number of images, at least 1.
        level: confidence level.

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        ValueError: there is no image, or `n_correct` is not between 0 and n.

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
    """Mean of a measure over seeds, with its confidence interval by Student's t distribution.

    Args:
        values: one value for each seed, at least one.
        level: confidence level.
        bounds: the smallest and largest value that the measure can have, to which the interval is clipped: (0, 1) for
            an accuracy.

    Returns:
        Mean, lower end, upper end. The ends are NaN for fewer than 4 values: show the values themselves instead.

    Raises:
        ValueError: there is no value.

    >>> mean_interval([0.5, 0.6, 0.7, 0.6])
    (0.6, 0.47..., 0.72...)
    >>> mean_interval([0.5, 0.6, 0.7])
    (0.6, nan, nan)
    """
    if not values:
        raise UserError("a mean of no values")
    numbers = torch.tensor(values, dtype=torch.float64)
    mean, n = float(numbers.mean()), len(numbers)
    if n < MIN_VALUES:
        return mean, math.nan, math.nan
    half = float(stdtrit(n - 1, (1 + level) / 2)) * float(numbers.std()) / math.sqrt(n)
    return mean, max(mean - half, bounds[0]), min(mean + half, bounds[1])
