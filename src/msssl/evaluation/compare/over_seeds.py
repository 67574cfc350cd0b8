"""Means and intervals of a measure over seeds, and differences paired by seed: as numbers, as text and as points."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msssl.evaluation.table import number
from msssl.metrics import mean_interval

HOW = (
    "Below 4 seeds the value of each seed is shown, from 4 on the 95 % interval of their mean (Student's t); "
    "where there is one measurement, its 95 % interval over the test images (Wilson's), marked (images)."
)
SPREAD = "values, or 95 % interval"  # heading of a column
ACCURACY = (0.0, 1.0)  # the values that an accuracy can have


@dataclass(frozen=True)
class OverSeeds:
    """One measure of runs that differ in their seeds only.

    Attributes:
        values: one value for each seed, in the order of the seeds; None where a run has no value.
        mean: the mean of the values; None unless every run has one.
        low: lower end of the 95 % interval; NaN where there is no interval.
        high: upper end of the interval.
        over: what the interval is over: `seeds`; or `images` of the test set, for a single run; empty without one.
    """

    values: list[float | None]
    mean: float | None
    low: float = math.nan
    high: float = math.nan
    over: str = ""

    def spread(self, sign: str = "") -> str:
        """The interval as text, or the value of each seed where there are fewer than 4."""
        if self.over:
            images = " (images)" if self.over == "images" else ""
            return f"{number(self.low, sign)} to {number(self.high, sign)}{images}"
        return ", ".join(number(value, sign) for value in self.values) if len(self.values) > 1 else "-"


def over_seeds(
    values: list[float | None],
    bounds: tuple[float, float] = (-math.inf, math.inf),
    over_images: tuple[float, float] | None = None,
) -> OverSeeds:
    """Mean and interval of a measure over seeds.

    Args:
        values: one value for each seed; None where a run has no value.
        bounds: the smallest and largest value that the measure can have.
        over_images: the interval over test images, used where there is a single value.

    >>> over_seeds([0.5, 0.75]).spread()
    '0.500, 0.750'
    >>> over_seeds([0.25, 0.5, 0.75, 0.5], ACCURACY).spread()
    '0.175 to 0.825'
    >>> over_seeds([0.5], ACCURACY, (0.48, 0.52)).spread()
    '0.480 to 0.520 (images)'
    """
    values = [None if value is None or math.isnan(value) else value for value in values]
    present = [value for value in values if value is not None]
    if not present or len(present) < len(values):
        return OverSeeds(values, None)
    if len(values) == 1 and over_images is not None and not any(map(math.isnan, over_images)):
        return OverSeeds(values, present[0], *over_images, over="images")
    mean, low, high = mean_interval(present, bounds=bounds)
    return OverSeeds(values, mean, low, high, over="" if math.isnan(low) else "seeds")


@dataclass(frozen=True)
class Difference:
    """The difference between two settings of a comparison, paired by seed.

    Attributes:
        arm: name of the setting that is compared.
        reference: name of the setting that is subtracted.
        seeds: the seeds that both have.
        over_seeds: the differences, one for each of these seeds.
    """

    arm: str
    reference: str
    seeds: list[int]
    over_seeds: OverSeeds

    HEADINGS = ("difference of", "minus", "seeds", "mean", SPREAD)

    def cells(self) -> list[str]:
        """The row of a table with these `HEADINGS`."""
        seeds, mean = " ".join(map(str, self.seeds)), number(self.over_seeds.mean, "+")
        return [self.arm, self.reference, seeds, mean, self.over_seeds.spread("+")]


def paired_difference(
    arm: str,
    values: Mapping[int, float | None],
    reference: str,
    of_reference: Mapping[int, float | None],
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Difference | None:
    """The difference of two settings, paired by the seeds that both have; None if they share no seed.

    Args:
        arm: name of the setting that is compared.
        values: its measure by seed; None where a run has no value.
        reference: name of the setting that is subtracted.
        of_reference: its measure by seed.
        bounds: the smallest and largest value that the measure can have.

    >>> paired_difference("b", {0: 0.5, 1: 0.75}, "a", {1: 0.5, 2: 0.25}).cells()
    ['b', 'a', '1', '+0.250', '-']
    """
    differences = {
        seed: value - subtracted
        for seed, value in values.items()
        if value is not None and (subtracted := of_reference.get(seed)) is not None
    }
    if not differences:
        return None
    width = bounds[1] - bounds[0]
    return Difference(arm, reference, list(differences), over_seeds([*differences.values()], (-width, width)))


def draw(axes: Any, at: float, measure: OverSeeds, color: str, label: str | None = None) -> None:
    """Draw a measure at position `at` of the x axis: a point for each seed; with 4 seeds or more, mean and interval."""
    if measure.over == "seeds" and measure.mean is not None:
        ends = [[measure.mean - measure.low], [measure.high - measure.mean]]
        axes.errorbar([at], [measure.mean], ends, fmt="o", capsize=3, color=color, label=label)
        return
    values = [value for value in measure.values if value is not None]
    if values:
        axes.plot([at] * len(values), values, "o", markersize=4, color=color, label=label)
