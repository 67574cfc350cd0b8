"""Tables: the report of a probe on the terminal, and any in markdown."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

INTERVAL, NEIGHBOURS = "  95 % interval", "  neighbours k"
MEASURES = {
    "dim": "dim",
    "weight_decay": "weight decay",
    "cv_top1": "cross-validated top-1",
    "cv_interval": INTERVAL,
    "val_top1": "val top-1",
    "val_interval": INTERVAL,
    "test_top1": "test top-1",
    "test_interval": INTERVAL,
    "test_top5": "test top-5",
    "test_balanced": "test balanced",
    "test_auroc": "test AUROC",
    "val_mlp": "val MLP",
    "val_mlp_interval": INTERVAL,
    "test_mlp": "test MLP",
    "test_mlp_interval": INTERVAL,
    "val_knn": "val kNN",
    "val_knn_interval": INTERVAL,
    "val_knn_k": NEIGHBOURS,
    "test_knn": "test kNN",
    "test_knn_interval": INTERVAL,
    "test_knn_k": NEIGHBOURS,
    "alpha": "alpha",
    "rankme": "RankMe of z",
}


def print_report(report: dict[str, Any], path: Path) -> None:
    """Print a column for each of the features, and where the report is."""
    rows = report["rows"]
    table = Table("", *(row["features"] for row in rows), caption=report["protocol"])
    for key, name in MEASURES.items():
        if any(row.get(key) is not None for row in rows):
            table.add_row(name, *(_cell(key, row.get(key)) for row in rows))
    for count in dict.fromkeys(count for row in rows for count in row.get("few_labels", {})):
        for head in ("linear", "knn"):
            found = [row.get("few_labels", {}).get(count, {}).get(head, {}) for row in rows]
            k = next((f" (k = {each['k']})" for each in found if "k" in each), "")
            table.add_row(f"{count} a class, {head}{k}", *(_cell("mean", each.get("mean")) for each in found))
            table.add_row(INTERVAL, *(_cell("interval", each.get("interval")) for each in found))
    Console(markup=False).print(table)
    written = f"written to {path}, {path.with_suffix('.png').name} and {path.with_suffix('.head.pt').name}"
    Console(soft_wrap=True, markup=False, highlight=False).print(written)


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in markdown.

    >>> print(markdown(["run", "top-1"], [["a|b", "0.5"]]))
    | run | top-1 |
    | --- | --- |
    | a/b | 0.5 |
    """
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _cell(key: str, value: Any) -> str:
    if value is None or value != value:  # NaN, which reports of earlier versions hold
        return "-"
    if isinstance(value, tuple | list):  # measured now, or read from an earlier report
        return "-" if any(map(math.isnan, value)) else " to ".join(f"{end:.3f}" for end in value)
    if key.endswith("_k"):
        return str(value)
    if key in ("dim", "weight_decay"):
        return f"{value:g}"
    return f"{value:.1f}" if key == "rankme" else f"{value:.3f}"


def number(value: float | None, sign: str = "") -> str:
    """A number of a table; `sign` "+" writes that of a positive one too.

    >>> number(0.12345), number(12.345), number(0.25, "+"), number(None), number(float("nan"))
    ('0.123', '12.35', '+0.250', '-', '-')
    """
    if value is None or math.isnan(value):
        return "-"
    return f"{value:{sign}.3f}" if abs(value) <= 1 else f"{value:{sign}.2f}"
