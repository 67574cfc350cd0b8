"""The table of a study: each row's mean over seeds, beside what is published."""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msssl.metrics import mean_interval
from msssl.studies.measures import Result, target
from msssl.studies.study import Row, Study, plain


@dataclass(frozen=True)
class Value:
    """A measure of each seed, None if not reached, and the mean with its 95 % interval, NaN for one seed."""

    each: list[float | None]
    mean: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """What came out of a row.

    Attributes:
        row: which.
        chosen: label of the candidate that was best on validation images.
        n_tried: candidates with a result.
        results: of its seeds.
        seeds: of the results.
        values: by measure; empty if the row was not run.
    """

    row: Row
    chosen: str
    n_tried: int
    seeds: list[int]
    results: list[Result]
    values: dict[str, Value]

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
        found = [each.minutes for each in self.results if each.minutes is not None]
        return sum(found) / len(found) if found else None


def lines_of(study: Study, finished: Mapping[str, Result]) -> list[Line]:
    """The rows with what was found; choices are made by validation, over the seeds that are there.

    Raises:
        ValueError: two cells saw different images.
    """
    _check_images(study, finished)
    chosen = [_chosen(study, row, finished) for row in study.rows]
    of_arm = {row.arm: found for row, (_, _, found) in zip(study.rows, chosen, strict=True)}
    lines = []
    for row, (label, n_tried, found) in zip(study.rows, chosen, strict=True):
        results = list(found.values())
        values = {}
        for name, measure in study.measures.items() if results else ():
            each = [one.value(measure, target(measure, of_arm, seed)) for seed, one in found.items()]
            values[name] = _over_seeds(each)
        lines.append(Line(row, label, n_tried, list(found), results, values))
    return lines


def _chosen(study: Study, row: Row, finished: Mapping[str, Result]) -> tuple[str, int, dict[int, Result]]:
    """Label of the best candidate, the number of those with results, and its results by seed."""
    tried = {}
    for label, cells in row.candidates.items():
        found = {cell.seed: finished[study.name_of(cell)] for cell in cells if study.name_of(cell) in finished}
        if found:
            tried[label] = found
    if not tried:
        return "", 0, {}
    most = max(map(len, tried.values()))  # a lucky seed alone is no candidate
    complete = {label: found.values() for label, found in tried.items() if len(found) == most}
    best = max(complete, key=lambda label: sum(each.choice() for each in complete[label]))
    drawn = next(iter(complete[best])).drawn
    label = ", ".join(f"{key.rpartition('.')[2]}={plain(value)}" for key, value in drawn.items())
    return label or best, len(tried), tried[best]


def _over_seeds(values: list[float | None]) -> Value:
    reached = [each for each in values if each is not None]
    if len(reached) < len(values):
        return Value(values, None, math.nan, math.nan)
    return Value(values, *mean_interval(reached))


def _check_images(study: Study, finished: Mapping[str, Result]) -> None:
    first: dict[str, tuple[str, Any]] = {}
    for name, result in finished.items():
        for flags, report in result.reports.items():
            before, data_id = first.setdefault(flags, (name, report["data_id"]))
            if data_id != report["data_id"]:
                one, other = (study.cells[each] for each in (before, name))
                raise ValueError(
                    f"study {study.name}: cell {before} ({one}) was probed on the images {data_id}, but cell {name} "
                    f"({other}) on {report['data_id']}: they cannot stand in one table"
                )


def headings(study: Study) -> list[str]:
    """Of the columns of `cells`."""
    chosen = ["chosen"] if any(len(row.candidates) > 1 for row in study.rows) else []
    published = ["published", "difference"] if any(row.published for row in study.rows) else []
    first, *others = study.measures
    return ["arm", *study.axes, *chosen, "seeds", first, "95 % interval", *published, *others, "minutes"]


def cells(study: Study, line: Line) -> dict[str, str]:
    """A line as text, by heading."""
    row = line.row
    of_seeds = len(next(iter(row.candidates.values())))
    found = {"arm": row.arm, **{axis: str(value) for axis, value in row.at.items()}}
    found["chosen"] = f"{line.chosen} (of {line.n_tried}/{len(row.candidates)})" if line.chosen else ""
    found["seeds"] = f"{len(line.seeds)} of {of_seeds}"
    for i, (name, value) in enumerate(line.values.items()):
        if i == 0:
            found[name] = _number(value.mean)
            found["95 % interval"] = "-" if math.isnan(value.low) else f"{_number(value.low)} to {_number(value.high)}"
        else:
            half = "" if math.isnan(value.low) else f" ± {_number(value.high - (value.mean or 0.0))}"
            found[name] = _number(value.mean) + half
    if not line.values:
        found[next(iter(study.measures))] = "not run"
    if row.published is not None:
        found["published"] = f"{_number(row.published[0])} ± {_number(row.published[1])}"
    if line.difference is not None:
        found["difference"] = f"{line.difference:+.3f}"
    if line.minutes is not None:
        found["minutes"] = f"{line.minutes:.1f}"
    return found


def as_csv(study: Study, lines: list[Line]) -> str:
    """All numbers, unrounded: a line for each row and measure, with the value of each seed."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    found = ["measure", "seeds", "values", "mean", "low", "high", "published", "deviation"]
    writer.writerow(["arm", *study.axes, "chosen", *found])
    for line in lines:
        published = line.row.published or ("", "")
        place = [line.row.arm, *(line.row.at.get(axis, "") for axis in study.axes), line.chosen]
        for i, name in enumerate(study.measures):
            value = line.values.get(name, Value([], None, math.nan, math.nan))
            told = [" ".join(map(str, each)) for each in (line.seeds, value.each)]
            told_mean = [value.mean, value.low, value.high]
            writer.writerow([*place, name, *told, *told_mean, *(published if i == 0 else ("", ""))])
    return file.getvalue()


def _number(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"
