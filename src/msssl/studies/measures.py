"""The measures of a study: checks them, finds the `msssl probe` flags that they need, and reads their values."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msssl.errors import UserError
from msssl.evaluation.compare.comparison import images_interval
from msssl.evaluation.compare.over_seeds import ACCURACY, SPREAD

HEADS = {"linear": "top1", "mlp": "mlp", "knn": "knn"}
FLAGS = {"protocol": ("standard", "paper"), "test_patches": (), "config": ()}  # of `msssl probe`, and their values
OTHER_COLUMNS = ("arm", "chosen", "seeds", SPREAD, "published", "difference", "minutes")
ONLINE = "val/probe_top1"


@dataclass(frozen=True)
class Result:
    """What came out of one cell.

    Attributes:
        reports: of `msssl probe`, by its flags.
        curve: what was logged at each validation: step, epoch, minutes and every `val/` metric.
        folder: of the run.
    """

    reports: dict[str, dict[str, Any]]
    curve: list[dict[str, float]]
    folder: str

    def choice(self) -> float:
        """The accuracy that choices are made by: of the first probe's linear head on validation images, else online."""
        for report in self.reports.values():
            if report["rows"][-1].get("val_top1") is not None:
                return float(report["rows"][-1]["val_top1"])
        if not self.curve or ONLINE not in self.curve[-1]:
            raise UserError("there is no accuracy on validation images to choose by: neither a probe's nor online")
        return self.curve[-1][ONLINE]

    def value(self, measure: Mapping[str, Any], reach: float | None = None) -> float | None:
        """Of a measure; None where it was not reached."""
        if "minutes_to" in measure:
            minutes = (
                point["minutes"] for point in self.curve if reach is not None and point.get(ONLINE, 0.0) >= reach
            )
            return next(minutes, None)
        if "online" in measure:
            return self.curve[-1].get(measure["online"])
        report = self.reports[" ".join(probe_flags(measure) or [])]
        split = measure.get("split", report["reported_on"])
        value: float | None = report["rows"][-1].get(f"{split}_{HEADS[measure.get('head', 'linear')]}")
        return value

    def images_interval(self, measure: Mapping[str, Any]) -> tuple[float, float] | None:
        """95 % interval over the images of a measure by `msssl probe`; None where it is not known."""
        flags = probe_flags(measure)
        if flags is None:
            return None
        report = self.reports[" ".join(flags)]
        head = HEADS[measure.get("head", "linear")]
        return images_interval(report["rows"][-1], measure.get("split", report["reported_on"]), head)

    @property
    def minutes(self) -> float | None:
        """Of training."""
        minutes = [report["run"]["minutes"] for report in self.reports.values()]
        return next(
            (value for value in minutes if value is not None), self.curve[-1]["minutes"] if self.curve else None
        )


def bounds_of(measure: Mapping[str, Any]) -> tuple[float, float]:
    """The smallest and largest value that a measure can have.

    >>> bounds_of({"protocol": "paper"}), bounds_of({"online": "val/rankme"})
    ((0.0, 1.0), (0.0, inf))
    """
    if probe_flags(measure) is not None or str(measure.get("online")).endswith("_top1"):
        return ACCURACY
    return 0.0, math.inf  # minutes, and what callbacks log: none of it is negative


def check_measures(study: str, measures: Mapping[str, Any], arms: Sequence[str]) -> None:
    """ValueError naming the study and the measure that is none; `arms` are those of each row."""
    for name, measure in measures.items():
        reason = _wrong(measure, arms)
        if name in OTHER_COLUMNS:
            reason = "its name is that of another column"
        if reason is not None:
            raise UserError(f"study {study}: measure {name}: {reason}")


def _wrong(measure: Any, arms: Sequence[str]) -> str | None:
    known = {**FLAGS, "head": tuple(HEADS), "split": ("val", "test")}
    if not isinstance(measure, dict):
        return f"expected {', '.join(known)}, or online or minutes_to alone, got {measure!r}"
    if set(measure) in ({"online"}, {"minutes_to"}):
        arm = measure.get("minutes_to")
        known_arm = not isinstance(arm, str) or arms.count(arm) == 1
        return None if known_arm else f"the time to {arm}: expected an arm with one row"
    for key, value in measure.items():
        if key not in known:
            return f"no key {key}; expected {', '.join(known)}, or online or minutes_to alone"
        if known[key] and value not in known[key]:
            return f"{key} is {value!r}: expected {' or '.join(known[key])}"
    if measure.get("protocol") == "paper" and (measure.get("head", "linear") != "linear" or "split" in measure):
        return "the paper's protocol has a linear head alone, and no accuracy on val"
    return None


def probe_flags(measure: Mapping[str, Any]) -> list[str] | None:
    """Arguments of `msssl probe`, or None for a measure that needs none.

    >>> probe_flags({"test_patches": 1, "head": "linear", "protocol": "paper"})
    ['--protocol', 'paper', '--test_patches', '1']
    """
    if "online" in measure or "minutes_to" in measure:
        return None
    return [part for name in FLAGS if measure.get(name) is not None for part in (f"--{name}", str(measure[name]))]


def curve_of(folder: Path) -> list[dict[str, float]]:
    """What a run logged at each validation, with its minutes.

    The clock of an event file begins with its first scalar, the learning rate before the first step. The files are
    those of a run and of each time it went on; pauses between them do not count.
    """
    if not (folder / "metrics.csv").is_file():
        return []
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if any(row[name] for name in row if name.startswith("val/"))]
    minutes = _minutes(folder)
    wanted = ("step", "epoch")
    return [
        {"minutes": minutes.get(int(row["step"]), math.nan)}
        | {name: float(value) for name, value in row.items() if value and (name in wanted or name.startswith("val/"))}
        for row in rows
    ]


def _minutes(folder: Path) -> dict[int, float]:
    """Minutes of a run by its step, where it validated."""
    from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]  # half a second, for this only
        event_accumulator,
    )

    spent, minutes_of_step = 0.0, {}
    for path in sorted(folder.glob("events.*")):
        events = event_accumulator.EventAccumulator(str(path), {"scalars": 0}).Reload()  # 0: all of them
        scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
        start = min((event.wall_time for of_tag in scalars.values() for event in of_tag), default=0.0)
        end = max((event.wall_time for of_tag in scalars.values() for event in of_tag), default=0.0)
        for tag, of_tag in scalars.items():
            if tag.startswith("val/"):
                minutes_of_step.update({event.step: (spent + event.wall_time - start) / 60 for event in of_tag})
        spent += end - start
    return minutes_of_step


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
