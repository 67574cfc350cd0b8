"""`msssl report`: compares runs, or makes the table and figure of a study."""

import sys
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from msssl.evaluation import compare
from msssl.evaluation.compare.over_seeds import HOW, Difference
from msssl.evaluation.table import markdown, print_line
from msssl.run.files import write_text
from msssl.studies.cells import results_of
from msssl.studies.figure import draw
from msssl.studies.read import read_study
from msssl.studies.study import Study
from msssl.studies.table import Line, as_csv, cells, csv_of_cells, differences, headings, lines_of


def report(runs: list[str], out: str | None = None, root: str = "runs") -> None:
    """Compare runs by what `msssl probe` reported, or the cells of a study with what is published.

    Writes a table (`.md`, `.csv`) and a picture (`.png`); of a study also what was measured in each cell
    (`-cells.csv`).

    Args:
        runs: folders of runs, or reports of `msssl probe`; or the file of a study, and its overlays.
        out: of the files, without their ending; by default `report`, or the name of the study in its folder.
        root: of the folders of the study's runs, as `msssl sweep` had it.

    Raises:
        FileNotFoundError: a run was not probed.
        ValueError: a file that is no report of `msssl probe` and no study, or runs that cannot be compared.
    """
    if not all(run.endswith((".yaml", ".yml")) for run in runs):
        compare(runs, out or "report")
        return
    study = read_study(runs)
    finished = results_of(study, root)
    lines = lines_of(study, finished)
    target = Path(out or Path(root) / study.name / study.name)
    write_text(target.with_name(f"{target.name}.md"), _markdown(study, lines))
    write_text(target.with_name(f"{target.name}.csv"), as_csv(study, lines))
    write_text(target.with_name(f"{target.name}-cells.csv"), csv_of_cells(study, finished))
    draw(study, lines, target.with_name(f"{target.name}.png"))
    _print(study, lines)
    print_line(f"written to {target}.md, {target}.csv and {target}.png")


def _print(study: Study, lines: list[Line]) -> None:
    table = Table(*headings(study), box=SIMPLE, padding=(0, 1, 0, 0), title=study.title)
    for row in _rows(study, lines):
        table.add_row(*row)
    console = Console(markup=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)
    compared = _differences(study, lines)
    if compared:
        table = Table(*Difference.HEADINGS, box=SIMPLE, padding=(0, 1, 0, 0), title=_title_of_differences(study))
        for cells_of_line in compared:
            table.add_row(*cells_of_line)
        console.print(table)
    for text in _below(study, lines):
        console.print(text, highlight=False)


def _rows(study: Study, lines: list[Line]) -> list[list[str]]:
    return [[row.get(name, "") for name in headings(study)] for row in (cells(study, line) for line in lines)]


def _markdown(study: Study, lines: list[Line]) -> str:
    parts = [f"# {study.title}", markdown(headings(study), _rows(study, lines))]
    if compared := _differences(study, lines):
        parts += [f"{_title_of_differences(study)}:", markdown(Difference.HEADINGS, compared)]
    parts.append("\n".join(f"- {text}" for text in _below(study, lines)))
    return "\n\n".join(parts) + "\n"


def _differences(study: Study, lines: list[Line]) -> list[list[str]]:
    """Of the first measure, as text."""
    return [comparison.cells() for _, comparison in differences(study, lines, next(iter(study.measures)))]


def _title_of_differences(study: Study) -> str:
    return f"Differences of {next(iter(study.measures))}, paired by seed"


def _below(study: Study, lines: list[Line]) -> list[str]:
    """What the numbers mean: how much was run, on what, by which protocol, and how it differs from the paper."""
    done = sum(bool(line.results) for line in lines)
    notes = [f"{done} of {len(lines)} rows were run; base: {', '.join(study.base)}", HOW]
    if any(len(line.row.candidates) > 1 for line in lines):
        notes.append("chosen on validation images; the numbers are those of test, where there is a test split")
    reports = [(flags, each) for line in lines for result in line.results for flags, each in result.reports.items()]
    for flags, each in dict(reports).items():
        n_images = each["images"][each["reported_on"]]
        images = f"{n_images:,} images of {each['reported_on']}, {each['data_class']} {each['data_id']}"
        notes.append(f"msssl probe {flags}: {each['protocol']}; {images}")
    versions = {", ".join(f"{name} {version}" for name, version in each["versions"].items()) for _, each in reports}
    notes += [f"versions: {line}" for line in sorted(versions)]
    if any("minutes_to" in measure or "online" in measure for measure in study.measures.values()):
        notes.append("online: the probe that learns along, on validation images; minutes with those of its validations")
    return notes + [f"differs from the paper: {line}" for line in study.differs]
