"""Rows about runs without labels, whose only measurements are those of `RankMonitor` in `metrics.csv`."""

import csv
from pathlib import Path

from msssl.evaluation.table import number

HEADINGS = ("run", "step", "RankMe", "at first", "highest", "at step", "alpha", "spread")
TITLE = "Runs without labels: RankMe of z, alpha of the features, spread of z, on validation images"


def row_without_labels(run: str) -> list[str] | None:
    """The row of a run in a table with these `HEADINGS`, from the `metrics.csv` in its folder.

    None where the run has no such measurement, or where a probe, online or offline, has measured its accuracy.
    """
    folder = Path(run)
    path = folder / "metrics.csv"
    if not path.is_file() or any(folder.glob("probe*.json")):
        return None
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    measured = [row for row in rows if row.get("val/rankme")]
    has_accuracy = any(value for row in rows for name, value in row.items() if name and name.endswith("_top1"))
    if has_accuracy or not measured:
        return None
    steps = [str(int(row["step"])) for row in measured]
    ranks = [float(row["val/rankme"]) for row in measured]
    highest = max(ranks)
    newest = {name: row[name] for row in measured for name in ("val/alpha", "val/spread") if row.get(name)}
    others = [number(float(newest[name]) if name in newest else None) for name in ("val/alpha", "val/spread")]
    shown = [number(rank) for rank in (ranks[-1], ranks[0], highest)]
    return [run, steps[-1], *shown, steps[ranks.index(highest)], *others]
