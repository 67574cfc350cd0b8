"""A process of a sweep: it takes a cell that waits, trains and probes it, and takes the next."""

import csv
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msssl.cli.child import alone, command
from msssl.run.files import LAST, PREVIOUS, write_text
from msssl.studies.measures import ONLINE, Result, curve_of
from msssl.studies.study import Cell, Settings, Study, plain, short_hash
from msssl.studies.trials import CELL, REASON, enqueue, fail_dead, is_double, keep, states

log = logging.getLogger(__name__)
POLL = 1.0  # seconds between two looks at what others do, and at a run that may be pruned


class _NothingToDoError(Exception):
    pass


class Worker:
    """Takes a cell that waits, runs it, and takes the next.

    Args:
        study: whose.
        trials: in its storage.
        folder: of its runs.
        base: contents of the configs that it builds on, which stay what they were when it began.
    """

    def __init__(self, study: Study, trials: Any, folder: Path, base: Mapping[str, str]) -> None:
        self.study = study
        self.trials = trials
        self.folder = folder
        self._name: str | None = None  # of the cell that it is at
        self._base_id = short_hash([base, study.common])[:4]  # another base is another run
        self._paths = [folder / f"base-{self._base_id}" / f"{i}-{Path(name).name}" for i, name in enumerate(base)]
        for path, text in zip(self._paths, base.values(), strict=True):
            write_text(path, text)

    def work(self) -> None:
        """Until no cell waits or runs."""
        while True:
            found = states(self.study, self.trials)
            if found["waiting"]:
                self._take()
            elif found["running"]:  # by others, of whom one may have died
                fail_dead(self.study, self.trials, str(self.folder.parent))
                time.sleep(POLL)
            else:
                return

    def _take(self) -> None:
        caught = (OSError, ValueError, _NothingToDoError)
        try:
            self.trials.optimize(self._objective, n_trials=1, catch=caught, callbacks=[self._tell])
        except ValueError as error:  # Optuna's: it was thought dead, and another process has taken it
            log.warning("%s", error)
        except KeyboardInterrupt:
            if self._name is not None:  # for the others, now
                enqueue(self.study, self.trials, str(self.folder.parent), [self._name])
            raise

    def _objective(self, trial: Any) -> float:
        self._name = None
        name = trial.user_attrs.get(CELL)
        if name not in self.study.cells or is_double(self.study, self.trials, trial):
            raise _NothingToDoError  # another process was faster, or has other files
        self._name = name
        cell = self.study.cells[name]
        folder = self.folder / f"{cell.id}-{self._base_id}"
        told = str(cell)
        try:
            drawn = {key: _draw(trial, key, of_key) for key, of_key in cell.search.items()}
            told = ", ".join([told, *(f"{key}={plain(value)}" for key, value in drawn.items())])
            log.info("cell %s: %s", folder.name, told)
            with alone(folder) as lock:
                result = self._run(trial, cell, drawn, folder, lock)
            choice = result.choice()
        except (OSError, ValueError) as error:  # a command that failed among them
            trial.set_user_attr(REASON, f"cell {folder.name} ({told}): {error}")
            log.error("%s", trial.user_attrs[REASON])
            raise
        keep(trial, result)
        return choice

    def _run(self, trial: Any, cell: Cell, drawn: Settings, folder: Path, lock: int) -> Result:
        """Train, if that is not done, and probe."""
        trained = folder / "trained"
        if not trained.is_file():
            stopped = max((path.parent for path in folder.glob("*/*") if path.name in (LAST, PREVIOUS)), default=None)
            args = [*fit_of(self.study, cell, self._paths, drawn), f"--trainer.default_root_dir={folder}"]
            with command(["fit", "--ckpt_path", str(stopped)] if stopped else args, folder, lock) as child:
                while self.study.prune and child.poll() is None:
                    _prune(trial, folder)
                    time.sleep(POLL)
            trained.touch()
        checkpoint = max(folder.glob(f"*/{LAST}"))
        reports = {name: _probed(checkpoint, name, flags, lock) for name, flags in self.study.probes.items()}
        return Result(reports, curve_of(checkpoint.parent), drawn, str(checkpoint.parent))

    def _tell(self, trials: Any, trial: Any) -> None:
        """Log what came out of a trial, how many cells are done, and when the others will be."""
        if self._name is None:
            return
        found = states(self.study, self.trials)
        every = self.trials.get_trials(deepcopy=False)
        seconds = [each.duration.total_seconds() for each in every if each.state.name == "COMPLETE"]
        value = "" if trial.value is None else f"{trial.value:.3f} on validation images; "
        told = ", ".join(f"{number} {state}" for state, number in found.items())
        left = (found["waiting"] + found["running"]) * sum(seconds) / max(1, len(seconds))
        minutes = f"; about {left / 60 / (1 + found['running']):.0f} min left" if seconds else ""  # we are one more
        log.info("%s%s of %d%s", value, told, len(self.study.cells), minutes)


def fit_of(study: Study, cell: Cell, base: Sequence[str | Path], drawn: Settings | None = None) -> list[str]:
    """The `msssl fit` of a cell; a class comes before its arguments."""
    settings = {**study.common, **cell.settings, **(drawn or {})}
    flags = [f"--{key}={plain(settings[key])}" for key in sorted(settings, key=lambda name: name.count("."))]
    return ["fit", *(f"--config={path}" for path in base), *flags, f"--seed_everything={cell.seed}"]


def _draw(trial: Any, key: str, of_key: Any) -> Any:
    """A value of a search: one of a list, or between `low` and `high`, by the logarithm if `log`."""
    name = f"{key} {json.dumps(of_key)}"  # Optuna wants the same values wherever it has the name
    if isinstance(of_key, list):
        return trial.suggest_categorical(name, of_key)
    low, high, log_scale = of_key["low"], of_key["high"], of_key.get("log", False)
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=log_scale)
    return trial.suggest_float(name, low, high, log=log_scale)


def _prune(trial: Any, folder: Path) -> None:
    """Stop a run whose online accuracy is below the median of the others at its step."""
    from optuna import TrialPruned

    reported = trial.study._storage.get_trial(trial._trial_id).intermediate_values
    for path in sorted(folder.glob("*/metrics.csv")):
        text = path.read_text()
        complete = text[: text.rfind("\n") + 1]  # the last line may be half written
        for row in csv.DictReader(complete.splitlines()):
            if row.get(ONLINE) and row.get("step") and int(row["step"]) not in reported:
                trial.report(float(row[ONLINE]), int(row["step"]))
    if trial.should_prune():
        raise TrialPruned("worse than the median")


def _probed(checkpoint: Path, name: str, flags: Sequence[str], lock: int) -> Any:
    """The report of a `msssl probe`, from an earlier time where there is one."""
    folder = checkpoint.parents[1]
    kept = folder / f"probe {name}.json".replace("/", "_")
    if not kept.is_file():
        with command(["probe", "--ckpt_path", str(checkpoint), "--baselines=false", *flags], folder, lock):
            pass
        newest = max(checkpoint.parent.glob("probe*.json"), key=lambda path: path.stat().st_mtime)
        write_text(kept, newest.read_text())
    return json.loads(kept.read_text())
