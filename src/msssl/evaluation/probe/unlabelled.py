"""What runs without labels have come to: RankMe, alpha and spread, from the `metrics.csv` of each."""

import csv
from dataclasses import dataclass
from pathlib import Path

from msssl.evaluation.table import number

HEADINGS = ("run", "step", "RankMe", "at first", "highest", "at step", "alpha", "spread")
TITLE = "Runs without labels: RankMe of z, alpha of the features, spread of z, on validation images"


@dataclass(frozen=True)
class Spectrum:
    """The measurements of `RankMonitor` in a run, one for each validation.

    Attributes:
        run: its folder.
        steps: of each validation, at least one.
        rankme: at each.
        alpha: the last one, None where there is none.
        spread: likewise.
    """

    run: str
    steps: list[int]
    rankme: list[float]
    alpha: float | None
    spread: float | None

    def cells(self) -> list[str]:
        """A row of a table, for `HEADINGS`."""
        highest = max(self.rankme)
        others = [number(value) for value in (self.alpha, self.spread)]
        ranks = [number(value) for value in (self.rankme[-1], self.rankme[0], highest)]
        return [self.run, str(self.steps[-1]), *ranks, str(self.steps[self.rankme.index(highest)]), *others]


def spectrum_of(run: str) -> Spectrum | None:
    """The measurements of a run's folder, or None where it has none, or a probe, online or offline, has measured it."""
    folder = Path(run)
    path = folder / "metrics.csv"
    if not path.is_file() or any(folder.glob("probe*.json")):
        return None
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if any(value for row in rows for name, value in row.items() if name and name.endswith("_top1")):
        return None
    measured = [row for row in rows if row.get("val/rankme")]
    if not measured:
        return None
    last = {name: row[name] for row in measured for name in ("val/alpha", "val/spread") if row.get(name)}
    return Spectrum(
        run,
        steps=[int(row["step"]) for row in measured],
        rankme=[float(row["val/rankme"]) for row in measured],
        alpha=float(last["val/alpha"]) if "val/alpha" in last else None,
        spread=float(last["val/spread"]) if "val/spread" in last else None,
    )
