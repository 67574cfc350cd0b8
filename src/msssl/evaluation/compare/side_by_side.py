"""`msssl report RUN ...`: compares runs by their probe reports, in tables, in files and in a picture."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from msssl.evaluation.compare.comparison import COSTS, PRETRAINED, TOP1, ComparedTable, Row, group, read_reports
from msssl.evaluation.compare.over_seeds import HOW, SPREAD, Difference, OverSeeds, draw
from msssl.evaluation.compare.without_labels import HEADINGS as HEADINGS_WITHOUT_LABELS
from msssl.evaluation.compare.without_labels import TITLE, row_without_labels
from msssl.evaluation.finetune.table import HEADINGS as FINETUNE_HEADINGS
from msssl.evaluation.finetune.table import print_finetuned, tables_of
from msssl.evaluation.table import markdown, number, print_line
from msssl.run.files import atomic_write, write_text

HEADINGS = ("run", "features", "seeds", TOP1, SPREAD)


def compare(runs: list[str], out: str) -> None:
    """Compare runs by their `probe.json`. Runs whose probes used the same protocol and images share a table.

    Runs that differ only in their seed are one row. With fewer than 4 seeds the row shows the value of each seed, with
    4 or more the 95 % interval of their mean; differences between rows are paired by seed. Writes `<out>.md`,
    `<out>.csv` and `<out>.png`, which shows accuracy against epochs, minutes and views.

    Runs without labels have no probe. They are compared by RankMe, alpha and spread, in a table of their own. So are
    the results of `msssl finetune`, one table for each run.

    Args:
        runs: folders of runs, or reports of `msssl probe`.
        out: path of the files to write, without their ending.

    Raises:
        FileNotFoundError: a run was not probed.
        ValueError: a file is not a report of `msssl probe`.
    """
    without_labels = {run: row for run in runs if (row := row_without_labels(run)) is not None}
    finetuned = {
        path: json.loads(path.read_text()) for run in runs for path in sorted(Path(run).glob("finetune*.json"))
    }
    only_finetuned = {str(path.parent) for path in finetuned if not any(path.parent.glob("probe*.json"))}
    probed = [run for run in runs if run not in without_labels and str(Path(run)) not in only_finetuned]
    tables = group(read_reports(probed)) if probed else []
    for table in tables:
        _print(table)
    pages = list(map(_page, tables))
    if without_labels:
        rows = list(without_labels.values())
        print_line(TITLE)
        _print_table(HEADINGS_WITHOUT_LABELS, rows)
        pages.append(f"## {TITLE}\n\n{markdown(HEADINGS_WITHOUT_LABELS, rows)}\n")
    for path, report in finetuned.items():
        print_finetuned(report, path)
        for protocol, rows in tables_of(report).items():
            pages.append(f"## {path}\n\n{markdown(FINETUNE_HEADINGS, rows)}\n\n{protocol}\n")
    target = Path(out)
    write_text(Path(f"{target}.md"), "\n".join(pages))
    if not tables:
        print_line(f"written to {target}.md")
        return
    write_text(Path(f"{target}.csv"), _csv(tables))
    _draw(tables, Path(f"{target}.png"))
    print_line(f"written to {target}.md, {target}.csv and {target}.png")


def _headings(table: ComparedTable) -> list[str]:
    return [*HEADINGS, *(name for name in table.measures if name != TOP1), *COSTS.values()]


def _cells(table: ComparedTable, row: Row) -> list[str]:
    top1 = row.measures[TOP1]
    cells = [row.name, row.features, " ".join(map(str, row.seeds)) or "-", number(top1.mean), top1.spread()]
    others = (row.measures.get(name) for name in table.measures if name != TOP1)
    cells += ["-" if measure is None else _mean_of_present(measure) for measure in others]
    return [*cells, *(_cost(value) for value in row.costs.values())]


def _mean_of_present(measure: OverSeeds) -> str:
    """The mean over the runs that have a value; where some have none, also how many have one."""
    values = [value for value in measure.values if value is not None]
    if not values or len(values) == len(measure.values):
        return number(measure.mean)
    return f"{number(sum(values) / len(values))} ({len(values)} of {len(measure.values)})"


def _cost(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _footnotes(table: ComparedTable) -> list[str]:
    """Lines below a table: which runs are in a row, which were not counted, and what the intervals are."""
    several = [row for row in table.rows if len(row.folders) > 1]
    return [*(f"{row.name}: {', '.join(row.folders)}" for row in several), *table.notes, HOW]


def _page(table: ComparedTable) -> str:
    parts = [f"## {table.title}", markdown(_headings(table), (_cells(table, row) for row in table.rows))]
    if table.differences:
        parts.append("Differences of top-1, paired by seed:")
        parts.append(markdown(Difference.HEADINGS, (difference.cells() for difference in table.differences)))
    parts.append("\n".join(f"- {text}" for text in _footnotes(table)))
    return "\n\n".join(parts) + "\n"


def _print(table: ComparedTable) -> None:
    print_line(table.title)
    lines = [[cell.removesuffix(" encoder") for cell in _cells(table, row)[:-1]] for row in table.rows]
    _print_table(_headings(table)[:-1], lines)  # all of it is wider than a terminal
    if table.differences:
        print_line("Differences of top-1, paired by seed:")
        _print_table(Difference.HEADINGS, [difference.cells() for difference in table.differences])
    for text in _footnotes(table):
        print_line(text)
    print_line("")


def _print_table(headings: Sequence[str], lines: list[list[str]]) -> None:
    shown = Table(*headings, box=SIMPLE, padding=(0, 1, 0, 0))
    for line in lines:
        shown.add_row(*line)
    Console(markup=False, width=None if sys.stdout.isatty() else 160).print(shown)


def _csv(tables: list[ComparedTable]) -> str:
    """A line for each row. Measures other than top-1 have two columns: the mean, and the values of the seeds."""
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
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
