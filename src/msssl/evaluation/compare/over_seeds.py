"""A measure over seeds, and the difference of two arms, paired by seed: as numbers, as text and in a picture."""

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
        values: of each seed, in the order of the seeds; None where the run has none.
        mean: None unless every run has a value.
        low: lower end of the 95 % interval, NaN where there is none.
        high: upper end.
        over: `seeds`, `images` (of the test set, for a single measurement), or empty: what the interval is over.
    """

    values: list[float | None]
    mean: float | None
    low: float = math.nan
    high: float = math.nan
    over: str = ""

    def spread(self, sign: str = "") -> str:
        """What the mean alone does not say, as text: the interval, or below 4 seeds the value of each."""
        if self.over:
            images = " (images)" if self.over == "images" else ""
            return f"{number(self.low, sign)} to {number(self.high, sign)}{images}"
        return ", ".join(number(value, sign) for value in self.values) if len(self.values) > 1 else "-"


def over_seeds(
    values: list[float | None],
    bounds: tuple[float, float] = (-math.inf, math.inf),
    over_images: tuple[float, float] | None = None,
) -> OverSeeds:
    """A measure over seeds, with the interval that belongs to it.

    Args:
        values: of each seed, None where a run has none.
        bounds: the smallest and largest value that the measure can have.
        over_images: the interval over test images, which is taken where there is one value.

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
    """One arm minus another.

    Attributes:
        arm: what is compared.
        reference: what is subtracted.
        seeds: that both have.
        over_seeds: of the differences, one for each of these seeds.
    """

    arm: str
    reference: str
    seeds: list[int]
    over_seeds: OverSeeds

    HEADINGS = ("difference of", "minus", "seeds", "mean", SPREAD)

    def cells(self) -> list[str]:
        """As text, by `HEADINGS`."""
        found = self.over_seeds
        seeds = " ".join(map(str, self.seeds))
        return [self.arm, self.reference, seeds, number(found.mean, "+"), found.spread("+")]


def paired_difference(
    arm: str,
    values: Mapping[int, float | None],
    reference: str,
    of_reference: Mapping[int, float | None],
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Difference | None:
    """The difference of two arms, paired by the seeds that both have; None if there is no such seed.

    Args:
        arm: name of what is compared.
        values: its measure by seed; None where a run has none.
        reference: name of what is subtracted.
        of_reference: its measure by seed.
        bounds: the smallest and largest value that the measure can have.

    >>> paired_difference("b", {0: 0.5, 1: 0.75}, "a", {1: 0.5, 2: 0.25}).cells()
    ['b', 'a', '1', '+0.250', '-']
    """
    differences = {}
    for seed, value in values.items():
        other = of_reference.get(seed)
        if value is not None and other is not None:
            differences[seed] = value - other
    if not differences:
        return None
    width = bounds[1] - bounds[0]
    return Difference(arm, reference, list(differences), over_seeds([*differences.values()], (-width, width)))


def draw(axes: Any, at: float, measure: OverSeeds, color: str, label: str | None = None) -> None:
    """Draw a measure at a place along x: the point of each seed, or from 4 seeds on the mean with its interval."""
    if measure.over == "seeds" and measure.mean is not None:
        ends = [[measure.mean - measure.low], [measure.high - measure.mean]]
        axes.errorbar([at], [measure.mean], ends, fmt="o", capsize=3, color=color, label=label)
        return
    values = [value for value in measure.values if value is not None]
    if values:
        axes.plot([at] * len(values), values, "o", markersize=4, color=color, label=label)
