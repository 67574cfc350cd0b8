"""A process of a sweep: it takes a cell that waits, trains and probes it, and takes the next."""

import csv
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msssl.checkpoint.files import LAST, PREVIOUS
from msssl.cli.arguments import find_config
from msssl.studies.measures import ONLINE, Result, curve_of
from msssl.studies.study import Cell, Settings, Study
from msssl.studies.trials import CELL, REASON, is_double, keep, number, states

log = logging.getLogger(__name__)
POLL = 1.0  # seconds between two looks at what others do, and at a run that may be pruned
_STATES = {"COMPLETE": "done", "PRUNED": "pruned", "RUNNING": "running", "WAITING": "waiting", "FAIL": "failed"}


class Worker:
    """Takes a cell that waits, runs it, and takes the next."""

    def __init__(self, study: Study, trials: Any, folder: Path) -> None:
        self.study = study
        self.trials = trials
        self.folder = folder

    def work(self) -> None:
        """Until no cell waits or runs."""
        from optuna.storages import fail_stale_trials

        while True:
            found = states(self.study, self.trials)
            if found["WAITING"]:
                self.trials.optimize(self._objective, n_trials=1, catch=(OSError, ValueError), callbacks=[self._tell])
            elif found["RUNNING"]:  # by others, of whom one may have died
                fail_stale_trials(self.trials)
                time.sleep(POLL)
            else:
                return

    def _objective(self, trial: Any) -> float:
        from optuna import TrialPruned

        name = trial.user_attrs.get(CELL)
        if name not in self.study.cells or is_double(self.trials, trial):  # another process was faster
            raise TrialPruned("nothing to do")
        cell = self.study.cells[name]
        trial.suggest_int(CELL, number(name), number(name))
        drawn = {key: _draw(trial, key, of_key) for key, of_key in cell.search.items()}
        told = ", ".join([str(cell), *(f"{key}={value:g}" for key, value in drawn.items())])
        log.info("cell %s: %s", cell.id, told)
        try:
            with _alone(self.folder / cell.id) as lock:
                result = self._run(trial, cell, drawn, lock)
        except (OSError, ValueError) as error:  # a command that failed among them
            trial.set_user_attr(REASON, f"cell {cell.id} ({told}): {error}")
            log.error("%s", trial.user_attrs[REASON])
            raise
        keep(trial, result)
        return result.choice()

    def _run(self, trial: Any, cell: Cell, drawn: Settings, lock: int) -> Result:
        """Train, if that is not done, and probe."""
        folder = self.folder / cell.id
        trained = folder / "trained"
        if not trained.is_file():
            stopped = max((path.parent for path in folder.glob("*/*") if path.name in (LAST, PREVIOUS)), default=None)
            args = [*fit_of(self.study, cell, drawn), "--trainer.default_root_dir", str(folder)]
            with _command(["fit", "--ckpt_path", str(stopped)] if stopped else args, folder, lock) as child:
                while self.study.prune and child.poll() is None:
                    _prune(trial, folder)
                    time.sleep(POLL)
            trained.write_text(str(max(folder.glob(f"*/{LAST}"))))
        checkpoint = Path(trained.read_text())
        reports = {flags: _probed(checkpoint, flags, folder, lock) for flags in self.study.probes}
        return Result(reports, curve_of(checkpoint.parent), drawn, str(checkpoint.parent))

    def _tell(self, trials: Any, trial: Any) -> None:
        """Log what came out of a trial, how many cells are done, and when the others will be."""
        found = states(self.study, self.trials)
        every = self.trials.get_trials(deepcopy=False)
        seconds = [each.duration.total_seconds() for each in every if each.state.name == "COMPLETE"]
        value = "" if trial.value is None else f"{trial.value:.3f} on validation images; "
        told = ", ".join(f"{found[state]} {word}" for state, word in _STATES.items() if found[state])
        left = (found["WAITING"] + found["RUNNING"]) * sum(seconds) / max(1, len(seconds))
        minutes = left / 60 / (1 + found["RUNNING"])  # this process is one more
        log.info("%s%s of %d; about %.0f min left", value, told, len(self.study.cells), minutes)


def fit_of(study: Study, cell: Cell, drawn: Settings | None = None) -> list[str]:
    """The `msssl fit` of a cell; a class comes before its arguments."""
    args = ["fit", *(part for name in study.base for part in ("--config", find_config(name)))]
    settings = {**study.common, **cell.settings, **(drawn or {})}
    for key in sorted(settings, key=lambda name: name.count(".")):
        value = settings[key]
        args += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return [*args, "--seed_everything", str(cell.seed)]


def _draw(trial: Any, key: str, of_key: Any) -> Any:
    """A value of a search: one of a list, or between `low` and `high`, by the logarithm if `log`."""
    if isinstance(of_key, list):
        return trial.suggest_categorical(key, of_key)
    kind = trial.suggest_int if isinstance(of_key["low"], int) and isinstance(of_key["high"], int) else None
    return (kind or trial.suggest_float)(key, of_key["low"], of_key["high"], log=of_key.get("log", False))


def _prune(trial: Any, folder: Path) -> None:
    """Stop a run whose online accuracy is below the median of the others at its step."""
    from optuna import TrialPruned

    for path in sorted(folder.glob("*/metrics.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row.get(ONLINE) and row.get("step"):
                    trial.report(float(row[ONLINE]), int(row["step"]))
    if trial.should_prune():
        raise TrialPruned("worse than the median")


def _probed(checkpoint: Path, flags: str, folder: Path, lock: int) -> Any:
    """The report of a `msssl probe`, from an earlier time where there is one."""
    kept = folder / f"probe {flags}.json".replace("/", "_")
    if not kept.is_file():
        with _command(["probe", "--ckpt_path", str(checkpoint), "--baselines", "false", *flags.split()], folder, lock):
            pass
        newest = max(checkpoint.parent.glob("probe*.json"), key=lambda path: path.stat().st_mtime)
        growing = kept.with_suffix(".part")
        growing.write_text(newest.read_text())
        growing.replace(kept)
    return json.loads(kept.read_text())


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """A lock that the commands hold too: whoever outlives a killed `sweep` is waited for."""
    from fcntl import LOCK_EX, LOCK_NB, flock

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            log.info("%s: waiting for a process that still works in it", folder)
            flock(file, LOCK_EX)
        yield file.fileno()


@contextmanager
def _command(args: list[str], folder: Path, lock: int) -> Iterator[subprocess.Popen[bytes]]:
    """A command of msssl, whose output goes to `log.txt`; ChildProcessError with its last line if it fails."""
    path = folder / "log.txt"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with path.open("ab") as file:
        command = [sys.executable, "-m", "msssl", *args]
        child = subprocess.Popen(command, stdout=file, stderr=file, pass_fds=[lock], env=environment)
        try:
            yield child
            child.wait()
        except BaseException:
            child.terminate()  # a fit saves its state first
            child.wait()
            raise
    if child.returncode:
        last = path.read_text(errors="replace").strip().rpartition("\n")[2]
        raise ChildProcessError(f"msssl {args[0]} ended with {child.returncode}, see {path}: {last}")
