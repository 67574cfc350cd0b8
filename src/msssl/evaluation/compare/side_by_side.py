"""Runs side by side, those that can be compared."""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from msssl.evaluation.compare.comparison import COSTS, PRETRAINED, TOP1, ComparedTable, Row, group, read_reports
from msssl.evaluation.compare.over_seeds import HOW, SPREAD, Difference, OverSeeds, draw
from msssl.evaluation.probe.unlabelled import HEADINGS as HEADINGS_OF_SPECTRA
from msssl.evaluation.probe.unlabelled import TITLE, spectrum_of
from msssl.evaluation.table import markdown, number
from msssl.run.files import atomic_write, write_text

HEADINGS = ("run", "features", "seeds", TOP1, SPREAD)


def compare(runs: list[str], out: str) -> None:
    """Compare runs by their `probe.json`, those of one protocol and one set of images in one table.

    Runs that differ in their seeds only are one row. Below 4 seeds it shows the value of each, from 4 on the interval
    of their mean; differences between rows are paired by seed. Writes `<out>.md`, `<out>.csv` and `<out>.png`, accuracy
    against epochs, minutes and views.

    A run without labels, that has no probe, is a row of RankMe, alpha and spread in a table of its own.

    Args:
        runs: folders of runs, or reports of `msssl probe`.
        out: of the files, without their ending.

    Raises:
        FileNotFoundError: a run was not probed.
        ValueError: a file that is no report of `msssl probe`.
    """
    spectra = {run: found for run in runs if (found := spectrum_of(run)) is not None}
    tables = group(read_reports([run for run in runs if run not in spectra]))
    pages = []
    for table in tables:
        _print(table)
        pages.append(_page(table))
    target = Path(out)
    if spectra:
        lines = [spectrum.cells() for spectrum in spectra.values()]
        _line(TITLE)
        _print_table(HEADINGS_OF_SPECTRA, lines)
        pages.append(f"## {TITLE}\n\n{markdown(HEADINGS_OF_SPECTRA, lines)}\n")
    if not tables:
        write_text(target.with_name(f"{target.name}.md"), "\n".join(pages))
        _line(f"written to {target}.md")
        return
    write_text(target.with_name(f"{target.name}.md"), "\n".join(pages))
    write_text(target.with_name(f"{target.name}.csv"), _csv(tables))
    _draw(tables, target.with_name(f"{target.name}.png"))
    _line(f"written to {target}.md, {target}.csv and {target}.png")


def _headings(table: ComparedTable) -> list[str]:
    return [*HEADINGS, *(name for name in table.measures if name != TOP1), *COSTS.values()]


def _cells(table: ComparedTable, row: Row) -> list[str]:
    top1 = row.measures[TOP1]
    cells = [row.name, row.features, " ".join(map(str, row.seeds)) or "-", number(top1.mean), top1.spread()]
    others = (row.measures.get(name) for name in table.measures if name != TOP1)
    cells += ["-" if each is None else _mean_of_those_with(each) for each in others]
    return [*cells, *(_cost(value) for value in row.costs.values())]


def _mean_of_those_with(measure: OverSeeds) -> str:
    """The mean over the runs that have a value, and how many these are."""
    values = [value for value in measure.values if value is not None]
    if not values or len(values) == len(measure.values):
        return number(measure.mean)
    return f"{number(sum(values) / len(values))} ({len(values)} of {len(measure.values)})"


def _cost(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _below(table: ComparedTable) -> list[str]:
    """What stands below a table: which runs are in a row, what was not counted, and what the intervals are."""
    several = [row for row in table.rows if len(row.folders) > 1]
    return [*(f"{row.name}: {', '.join(row.folders)}" for row in several), *table.notes, HOW]


def _page(table: ComparedTable) -> str:
    parts = [f"## {table.title}", markdown(_headings(table), (_cells(table, row) for row in table.rows))]
    if table.differences:
        parts.append("Differences of top-1, paired by seed:")
        parts.append(markdown(Difference.HEADINGS, (each.cells() for each in table.differences)))
    parts.append("\n".join(f"- {text}" for text in _below(table)))
    return "\n\n".join(parts) + "\n"


def _print(table: ComparedTable) -> None:
    _line(table.title)
    lines = [[cell.removesuffix(" encoder") for cell in _cells(table, row)[:-1]] for row in table.rows]
    _print_table(_headings(table)[:-1], lines)  # all of it is wider than a terminal
    if table.differences:
        _line("Differences of top-1, paired by seed:")
        _print_table(Difference.HEADINGS, [each.cells() for each in table.differences])
    for text in _below(table):
        _line(text)
    _line("")


def _print_table(headings: Sequence[str], lines: list[list[str]]) -> None:
    shown = Table(*headings, box=SIMPLE, padding=(0, 1, 0, 0))
    for line in lines:
        shown.add_row(*line)
    Console(markup=False, width=None if sys.stdout.isatty() else 160).print(shown)


def _csv(tables: list[ComparedTable]) -> str:
    """A line for each row; for each measure beside top-1 its mean and, in a column of its own, its values."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    others = list(dict.fromkeys(name for table in tables for name in table.measures if name != TOP1))
    names = [column for name in others for column in (name.lower(), f"{name.lower()} values")]
    first = ["table", "run", "folders", "features", "seeds", "top1", "mean", "low", "high", "over"]
    writer.writerow([*first, *names, *COSTS])
    for table in tables:
        for row in table.rows:
            top1 = row.measures[TOP1]
            line: list[Any] = [table.title, row.run, ", ".join(row.folders), row.features]
            line += [" ".join(map(str, row.seeds)), _values(top1), top1.mean, top1.low, top1.high, top1.over]
            for name in others:
                measure = row.measures.get(name)
                line += ["", ""] if measure is None else [measure.mean, _values(measure)]
            writer.writerow([*line, *row.costs.values()])
    return file.getvalue()


def _values(measure: OverSeeds) -> str:
    return " ".join(map(str, measure.values))


def _draw(tables: list[ComparedTable], path: Path) -> None:
    from matplotlib.figure import Figure  # half a second, for this only

    figure = Figure(figsize=(15, 4.5 * len(tables)), dpi=120, layout="constrained")
    axes = figure.subplots(len(tables), len(COSTS), squeeze=False)
    for line, table in zip(axes, tables, strict=True):
        for panel, (name, label) in zip(line, COSTS.items(), strict=True):
            rows = (row for row in table.rows if row.features == PRETRAINED)
            for i, row in enumerate(rows):
                at = row.costs[name]
                if at is not None:
                    draw(panel, at, row.measures[TOP1], color=f"C{i}", label=row.name)
            panel.set(xlabel=label, ylabel="top-1 of a linear head")
        if line[0].get_legend_handles_labels()[0]:
            line[0].legend(frameon=False, fontsize=7)
        line[1].set_title(table.title, fontsize=7, wrap=True)
    with atomic_write(path) as growing:
        figure.savefig(growing, format="png")


def _line(text: str) -> None:
    Console(soft_wrap=True, markup=False, highlight=False).print(text)
