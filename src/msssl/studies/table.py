"""The table of a study: each row's accuracy over seeds, beside what is published."""

import csv
import io
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msssl.errors import UserError
from msssl.evaluation.compare.over_seeds import SPREAD, Difference, OverSeeds, over_seeds, paired_difference
from msssl.evaluation.table import number
from msssl.studies.measures import Result, bounds_of, target
from msssl.studies.study import Row, Study, plain


@dataclass(frozen=True)
class Line:
    """What came out of a row.

    Attributes:
        row: which.
        chosen: label of the candidate that was best on validation images.
        n_tried: candidates with a result.
        results: of its seeds.
        seeds: of the results.
        values: by measure, over these seeds; empty if the row was not run.
    """

    row: Row
    chosen: str
    n_tried: int
    seeds: list[int]
    results: list[Result]
    values: dict[str, OverSeeds]

    @property
    def name(self) -> str:
        """Its arm, and where it is on the axes of the grid."""
        return ", ".join([self.row.arm, *(f"{axis}={value}" for axis, value in self.row.at.items())])

    def by_seed(self, measure: str) -> dict[int, float | None]:
        """What was measured, by seed."""
        return dict(zip(self.seeds, self.values[measure].values, strict=True)) if self.values else {}

    @property
    def difference(self) -> float | None:
        """Ours minus what is published, of the first measure."""
        ours = next(iter(self.values.values()), None)
        if ours is None or ours.mean is None or self.row.published is None:
            return None
        return ours.mean - self.row.published[0]

    @property
    def minutes(self) -> float | None:
        """Of training, mean over seeds."""
        minutes = [result.minutes for result in self.results if result.minutes is not None]
        return sum(minutes) / len(minutes) if minutes else None


def lines_of(study: Study, finished: Mapping[str, Result]) -> list[Line]:
    """The rows with their results; choices are made by validation, over the seeds that are there.

    Raises:
        ValueError: two cells saw different images.
    """
    _check_images(study, finished)
    chosen = [_chosen(study, row, finished) for row in study.rows]
    of_arm = {row.arm: of_seed for row, (_, _, of_seed) in zip(study.rows, chosen, strict=True)}
    lines = []
    for row, (label, n_tried, of_seed) in zip(study.rows, chosen, strict=True):
        results = list(of_seed.values())
        values = {}
        for name, measure in study.measures.items() if results else ():
            of_seeds = [one.value(measure, target(measure, of_arm, seed)) for seed, one in of_seed.items()]
            values[name] = over_seeds(of_seeds, bounds_of(measure), results[0].images_interval(measure))
        lines.append(Line(row, label, n_tried, list(of_seed), results, values))
    return lines


def _chosen(study: Study, row: Row, finished: Mapping[str, Result]) -> tuple[str, int, dict[int, Result]]:
    """Label of the best candidate, the number of those with results, and its results by seed."""
    tried = {}
    for label, cells in row.candidates.items():
        of_seed = {cell.seed: finished[cell.id] for cell in cells if cell.id in finished}
        if of_seed:
            tried[label] = of_seed
    if not tried:
        return "", 0, {}
    most = max(map(len, tried.values()))  # a lucky seed alone is no candidate
    complete = {label: results.values() for label, results in tried.items() if len(results) == most}
    best = max(complete, key=lambda label: sum(result.choice() for result in complete[label]))
    return best, len(tried), tried[best]


def differences(study: Study, lines: list[Line], measure: str) -> list[tuple[Line, Difference]]:
    """Of the lines that have a reference, paired by seed.

    The reference of a line is that of the first arm at the same place of the grid; of the lines of the first arm, its
    first one. A line that is the same run as its reference has no difference.
    """
    pairs = []
    for line in lines:
        reference = _reference(line, lines)
        if reference is None or _same_runs(line, reference):
            continue
        bounds = bounds_of(study.measures[measure])
        values = (line.by_seed(measure), reference.by_seed(measure))
        difference = paired_difference(line.name, values[0], reference.name, values[1], bounds)
        if difference is not None:
            pairs.append((line, difference))
    return pairs


def _same_runs(line: Line, other: Line) -> bool:
    return len(line.results) == len(other.results) and all(map(operator.is_, line.results, other.results))


def _reference(line: Line, lines: list[Line]) -> Line | None:
    of_first_arm = [other for other in lines if other.row.arm == lines[0].row.arm]
    if line.row.arm == lines[0].row.arm:
        return None if line is lines[0] else lines[0]
    at_the_same_place = [first for first in of_first_arm if first.row.at.items() <= line.row.at.items()]
    return next(iter(at_the_same_place), None)


def _check_images(study: Study, finished: Mapping[str, Result]) -> None:
    first: dict[str, tuple[str, Any]] = {}
    for name, result in finished.items():
        for flags, report in result.reports.items():
            before, data_id = first.setdefault(flags, (name, report["data_id"]))
            if data_id != report["data_id"]:
                one, other = (study.cells[id] for id in (before, name))
                raise UserError(
                    f"study {study.name}: cell {before} ({one}) was probed on the images {data_id}, but cell {name} "
                    f"({other}) on {report['data_id']}: they cannot stand in one table"
                )


def headings(study: Study) -> list[str]:
    """Of the columns of `cells`."""
    chosen = ["chosen"] if any(len(row.candidates) > 1 for row in study.rows) else []
    published = ["published", "difference"] if any(row.published for row in study.rows) else []
    first, *others = study.measures
    return ["arm", *study.axes, *chosen, "seeds", first, SPREAD, *published, *others, "minutes"]


def cells(study: Study, line: Line) -> dict[str, str]:
    """A line as text, by heading."""
    row = line.row
    of_seeds = len(next(iter(row.candidates.values())))
    shown = {"arm": row.arm, **{axis: str(value) for axis, value in row.at.items()}}
    shown["chosen"] = f"{line.chosen} (of {line.n_tried}/{len(row.candidates)})" if line.chosen else ""
    shown["seeds"] = f"{len(line.seeds)} of {of_seeds}"
    for i, (name, value) in enumerate(line.values.items()):
        mean = "not reached" if value.mean is None else number(value.mean)
        spread = value.spread() if any(of_seed is not None for of_seed in value.values) else "-"
        if i == 0:
            shown[name], shown[SPREAD] = mean, spread
        else:
            shown[name] = mean if spread == "-" else f"{mean} ({spread})"
    if not line.values:
        shown[next(iter(study.measures))] = "not run"
    if row.published is not None:
        shown["published"] = f"{number(row.published[0])} ± {number(row.published[1])}"
    if line.difference is not None:
        shown["difference"] = f"{line.difference:+.3f}"
    if line.minutes is not None:
        shown["minutes"] = f"{line.minutes:.1f}"
    return shown


def as_csv(study: Study, lines: list[Line]) -> str:
    """All numbers, unrounded: a line for each row and measure, with the value of each seed and the differences."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    measured = ["measure", "seeds", "values", "mean", "low", "high", "published", "deviation", "over"]
    compared = ["reference", "difference_seeds", "differences", "difference", "difference_low", "difference_high"]
    writer.writerow(["arm", *study.axes, "chosen", *measured, *compared])
    of_measure = {name: {id(line): each for line, each in differences(study, lines, name)} for name in study.measures}
    for line in lines:
        published = line.row.published or ("", "")
        place = [line.row.arm, *(line.row.at.get(axis, "") for axis in study.axes), line.chosen]
        for i, name in enumerate(study.measures):
            value = line.values.get(name, OverSeeds([], None))
            cells = [*place, name, _joined(line.seeds), *_numbers(value)]
            cells += [*(published if i == 0 else ("", "")), value.over]
            if difference := of_measure[name].get(id(line)):
                cells += [difference.reference, _joined(difference.seeds), *_numbers(difference.over_seeds)]
            else:
                cells += [""] * len(compared)
            writer.writerow(cells)
    return file.getvalue()


def csv_of_cells(study: Study, finished: Mapping[str, Result]) -> str:
    """What was measured in each cell that is done, unrounded, a line each.

    Among them are the candidates that no line of the table reports. Times to the accuracy of another arm are left out,
    as they are no property of a cell.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    measures = {name: of for name, of in study.measures.items() if not isinstance(of.get("minutes_to"), str)}
    flags = list(dict.fromkeys(flag for cell in study.cells.values() for flag in cell.settings))
    writer.writerow(["cell", *flags, "seed", "chosen by", *measures, "minutes"])
    for id, cell in study.cells.items():
        if (result := finished.get(id)) is not None:
            settings = [plain(cell.settings[flag]) if flag in cell.settings else "" for flag in flags]
            values = [result.value(measure, measure.get("minutes_to")) for measure in measures.values()]
            writer.writerow([id, *settings, cell.seed, result.choice(), *values, result.minutes])
    return file.getvalue()


def _joined(values: Sequence[Any]) -> str:
    return " ".join(map(str, values))


def _numbers(value: OverSeeds) -> list[Any]:
    return [_joined(value.values), value.mean, value.low, value.high]
