"""Tables and lines of text: the report of a probe on the terminal, any table in markdown, numbers as their cells."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

INTERVAL, NEIGHBOURS = "  95 % interval", "  neighbours k"
MEASURES = {  # each with its interval and its number of neighbours, where a report has them
    "dim": "dim",
    "weight_decay": "weight decay",
    "cv_top1": "cross-validated top-1",
    "val_top1": "val top-1",
    "test_top1": "test top-1",
    "test_top5": "test top-5",
    "test_balanced": "test balanced",
    "test_auroc": "test AUROC",
    "val_mlp": "val MLP",
    "test_mlp": "test MLP",
    "val_knn": "val kNN",
    "test_knn": "test kNN",
    "alpha": "alpha",
    "rankme": "RankMe of z",
}


def print_report(report: dict[str, Any], path: Path) -> None:
    """Print the report of a probe as a table with a column for each encoder, and say where it was written."""
    rows = report["rows"]
    table = Table("", *(row["features"] for row in rows), caption=report["protocol"])
    for key, name in MEASURES.items():
        for part, title in ((key, name), (f"{key.removesuffix('_top1')}_interval", INTERVAL), (f"{key}_k", NEIGHBOURS)):
            if any(row.get(part) is not None for row in rows):
                table.add_row(title, *(_cell(part, row.get(part)) for row in rows))
    for count in dict.fromkeys(count for row in rows for count in row.get("few_labels", {})):
        for head in ("linear", "knn"):
            accuracies = [row.get("few_labels", {}).get(count, {}).get(head, {}) for row in rows]
            k = next((f" (k = {accuracy['k']})" for accuracy in accuracies if "k" in accuracy), "")
            for part, title in (("mean", f"{count} a class, {head}{k}"), ("interval", INTERVAL)):
                table.add_row(title, *(_cell(part, accuracy.get(part)) for accuracy in accuracies))
    Console(markup=False).print(table)
    print_line(f"written to {path}, {path.with_suffix('.png').name} and {path.with_suffix('.head.pt').name}")


def print_suite(reports: Sequence[dict[str, Any]]) -> None:
    """Print a table with a row for each data set and a column for each encoder: top-1 of the linear head."""
    encoders = list(dict.fromkeys(row["features"] for report in reports for row in report["rows"]))
    table = Table("data", "classes", "images", *encoders, caption="top-1 of the linear head, with 95 % interval")
    for report in reports:
        split = report["reported_on"]
        by_encoder = {row["features"]: row for row in report["rows"]}
        cells = [_with_interval(by_encoder.get(name, {}), split) for name in encoders]
        name = f"{report['data_class']}, {Path(report['data_dir']).name}"
        table.add_row(name, str(len(report["classes"])), str(report["images"].get(split, "-")), *cells)
    Console(markup=False).print(table)


def _with_interval(row: dict[str, Any], split: str) -> str:
    return f"{_cell('', row.get(f'{split}_top1'))} ({_cell('', row.get(f'{split}_interval'))})"


def print_line(text: str) -> None:
    """Print a text as it is, on one line however wide the terminal is."""
    Console(soft_wrap=True, markup=False, highlight=False).print(text)


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
    """A number as the cell of a table; with `sign` "+", positive numbers have a sign too.

    >>> number(0.12345), number(12.345), number(0.25, "+"), number(None), number(float("nan"))
    ('0.123', '12.35', '+0.250', '-', '-')
    """
    if value is None or math.isnan(value):
        return "-"
    return f"{value:{sign}.3f}" if abs(value) <= 1 else f"{value:{sign}.2f}"
