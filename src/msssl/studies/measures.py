"""What a study measures on each of its runs."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADS = {"linear": "top1", "mlp": "mlp", "knn": "knn"}
FLAGS = ("protocol", "test_patches", "config")  # of `msssl probe`
ONLINE = "val/probe_top1"


@dataclass(frozen=True)
class Result:
    """What came out of one cell.

    Attributes:
        reports: of `msssl probe`, by its flags.
        curve: what was logged at each validation: step, epoch, minutes and every `val/` metric.
        drawn: values of a search by flag.
        folder: of the run.
    """

    reports: dict[str, dict[str, Any]]
    curve: list[dict[str, float]]
    drawn: dict[str, Any]
    folder: str

    def choice(self) -> float:
        """The accuracy that choices are made by: of the first probe's linear head on validation images, else online."""
        for report in self.reports.values():
            if report["rows"][-1].get("val_top1") is not None:
                return float(report["rows"][-1]["val_top1"])
        return self.curve[-1][ONLINE]

    def value(self, measure: Mapping[str, Any], reach: float | None = None) -> float | None:
        """Of a measure; None where it was not reached."""
        if "minutes_to" in measure:
            found = (each["minutes"] for each in self.curve if reach is not None and each[ONLINE] >= reach)
            return next(found, None)
        if "online" in measure:
            return self.curve[-1][measure["online"]]
        report = self.reports[str(probe_flags(measure))]
        split = measure.get("split", report["reported_on"])
        value: float | None = report["rows"][-1].get(f"{split}_{HEADS[measure.get('head', 'linear')]}")
        return value

    @property
    def minutes(self) -> float | None:
        """Of training."""
        found = [report["run"]["minutes"] for report in self.reports.values()]
        return next((each for each in found if each is not None), self.curve[-1]["minutes"] if self.curve else None)


def check_measures(study: str, measures: Mapping[str, Any], arms: Sequence[str]) -> None:
    """ValueError naming the study and the measure that is none; `arms` are those of each row."""
    known = {*FLAGS, "head", "split"}
    for name, measure in measures.items():
        if not isinstance(measure, dict) or not (set(measure) <= known or set(measure) in ({"online"}, {"minutes_to"})):
            raise ValueError(
                f"study {study}: measure {name} is {measure!r}: expected {', '.join(sorted(known))}, "
                "or online or minutes_to alone"
            )
        if measure.get("head", "linear") not in HEADS:
            raise ValueError(f"study {study}: measure {name} has head {measure['head']}: expected {', '.join(HEADS)}")
        arm = measure.get("minutes_to")
        if isinstance(arm, str) and arms.count(arm) != 1:
            raise ValueError(f"study {study}: measure {name} is the time to {arm}: expected an arm with one row")


def probe_flags(measure: Mapping[str, Any]) -> str | None:
    """Flags of `msssl probe`, or None for a measure that needs none.

    >>> probe_flags({"protocol": "paper", "test_patches": 1, "head": "linear"})
    '--protocol paper --test_patches 1'
    """
    if "online" in measure or "minutes_to" in measure:
        return None
    return " ".join(f"--{name} {value}" for name, value in measure.items() if name in FLAGS)


def curve_of(folder: Path) -> list[dict[str, float]]:
    """What a run logged at each validation, with its minutes.

    The clock of an event file begins with its first scalar, the learning rate before the first step. The files are
    those of a run and of each time it went on; pauses between them do not count.
    """
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if any(row[name] for name in row if name.startswith("val/"))]
    minutes = _minutes(folder)
    wanted = ("step", "epoch")
    return [
        {"minutes": minutes[int(row["step"])]}
        | {name: float(value) for name, value in row.items() if value and (name in wanted or name.startswith("val/"))}
        for row in rows
    ]


def _minutes(folder: Path) -> dict[int, float]:
    """Minutes of a run by its step, where it validated."""
    from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]  # half a second, for this only
        event_accumulator,
    )

    spent, found = 0.0, {}
    for path in sorted(folder.glob("events.*")):
        events = event_accumulator.EventAccumulator(str(path), {"scalars": 0}).Reload()  # 0: all of them
        scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
        start = min((each.wall_time for of_tag in scalars.values() for each in of_tag), default=0.0)
        end = max((each.wall_time for of_tag in scalars.values() for each in of_tag), default=0.0)
        for tag, of_tag in scalars.items():
            if tag.startswith("val/"):
                found.update({each.step: (spent + each.wall_time - start) / 60 for each in of_tag})
        spent += end - start
    return found


def target(measure: Mapping[str, Any], of_arm: Mapping[str, Mapping[int, Result]], seed: int) -> float | None:
    """The online accuracy whose time is measured: a number, or that of an arm at the end, with the same seed.

    Args:
        measure: with `minutes_to`; None for any other.
        of_arm: results by arm and seed; an arm that is a target has one row.
        seed: of the run.
    """
    wanted = measure.get("minutes_to")
    if not isinstance(wanted, str):
        return wanted
    last = of_arm.get(wanted, {}).get(seed)
    return last.curve[-1][ONLINE] if last and last.curve else None
