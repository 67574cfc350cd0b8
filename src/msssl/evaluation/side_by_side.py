"""Runs side by side, those that can be compared."""

import csv
import io
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from msssl.evaluation.comparison import COSTS, Row, group, read_reports
from msssl.evaluation.table import markdown

HEADINGS = ["run", "features", "seeds", "top-1", "95 % interval", "kNN", *COSTS.values()]


def compare(runs: list[str], out: str) -> None:
    """Compare runs by their `probe.json`, those of one protocol and one set of images in one table.

    Runs that differ in their seeds only are one row, with their mean and its interval. Writes `<out>.md`, `<out>.csv`
    and `<out>.png`, accuracy against epochs, minutes and views.

    Args:
        runs: folders of runs, or reports of `msssl probe`.
        out: of the files, without their ending.

    Raises:
        FileNotFoundError: a run was not probed.
        ValueError: a file that is no report of `msssl probe`.
    """
    tables = group(read_reports(runs))
    pages = []
    for title, rows in tables.items():
        _print(title, rows)
        pages.append(f"## {title}\n\n{markdown(HEADINGS, map(_cells, rows))}\n")
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_name(f"{target.name}.md").write_text("\n".join(pages))
    target.with_name(f"{target.name}.csv").write_text(_csv(tables))
    _draw(tables, target.with_name(f"{target.name}.png"))
    _line(f"written to {target}.md, {target}.csv and {target}.png")


def _cells(row: Row) -> list[str]:
    interval = "-" if row.low != row.low else f"{row.low:.3f} to {row.high:.3f}"  # NaN: one seed, no interval
    costs = [_number(value) for value in row.costs.values()]
    knn = "-" if row.knn is None else f"{row.knn:.3f}"
    return [row.run, row.features, " ".join(map(str, row.seeds)), f"{row.mean:.3f}", interval, knn, *costs]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _print(title: str, rows: list[Row]) -> None:
    table = Table(*HEADINGS[:-1], box=SIMPLE, padding=(0, 1, 0, 0))  # all of it is wider than a terminal
    for row in rows:
        table.add_row(*(cell.removesuffix(" encoder") for cell in _cells(row)[:-1]))
    _line(title)
    Console(markup=False).print(table)


def _csv(tables: dict[str, list[Row]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["table", "run", "features", "seeds", "top1", "mean", "low", "high", "knn", *COSTS])
    for title, rows in tables.items():
        for row in rows:
            seeds, top1 = (" ".join(map(str, values)) for values in (row.seeds, row.top1))
            of_row = [row.run, row.features, seeds, top1, row.mean, row.low, row.high, row.knn, *row.costs.values()]
            writer.writerow([title, *of_row])
    return file.getvalue()


def _draw(tables: dict[str, list[Row]], path: Path) -> None:
    from matplotlib.figure import Figure  # half a second, for this only

    figure = Figure(figsize=(15, 4.5 * len(tables)), dpi=120, layout="constrained")
    axes = figure.subplots(len(tables), len(COSTS), squeeze=False)
    for line, (title, rows) in zip(axes, tables.items(), strict=True):
        for panel, (name, label) in zip(line, COSTS.items(), strict=True):
            for row in rows:
                if row.features == "pretrained encoder" and row.costs[name] is not None:
                    below, above = max(0.0, row.mean - row.low), max(0.0, row.high - row.mean)
                    panel.errorbar(row.costs[name], row.mean, [[below], [above]], fmt="o", capsize=3, label=row.run)
            panel.set(xlabel=label, ylabel="top-1 of a linear head")
        line[0].legend(frameon=False, fontsize=7)
        line[1].set_title(title, fontsize=7, wrap=True)
    figure.savefig(path)


def _line(text: str) -> None:
    Console(soft_wrap=True, markup=False, highlight=False).print(text)
