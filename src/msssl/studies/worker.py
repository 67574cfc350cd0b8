"""A process of a sweep: it trains and probes a cell that no other process has taken, then takes the next."""

import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from msssl.run.files import LAST, PREVIOUS, write_text
from msssl.studies.cells import (
    FAILED,
    RUNNING,
    TRAINED,
    WAITING,
    cell_folder,
    checkpoint_of,
    folder_of,
    is_done,
    report_file,
    result_of,
    states,
)
from msssl.studies.lock import exclusive_lock
from msssl.studies.study import Cell, Study, plain

log = logging.getLogger(__name__)
POLL = 1.0  # seconds between two looks at the cells that other processes are at


class Worker:
    """Trains and probes the cells of a study, one after the other.

    Args:
        study: whose cells.
        root: of the folders of runs.
        base: contents of the configs that the study builds on, by name; a copy of them is kept in the study's folder.
        data_dir: folder of the images, where the study is of a folder.
    """

    def __init__(self, study: Study, root: str, base: Mapping[str, str], data_dir: str | None = None) -> None:
        self.study = study
        self.root = root
        self.data_dir = data_dir
        folder = folder_of(study, root) / "base"
        self._base = [folder / f"{i}-{Path(name).name}" for i, name in enumerate(base)]
        for path, text in zip(self._base, base.values(), strict=True):
            write_text(path, text)
        self._began = max(path.stat().st_mtime for path in self._base)  # by the clock of the file system
        self._seconds: list[float] = []  # that the cells of this worker took

    def work(self) -> None:
        """Run cells until none is left that waits, or that another process is at.

        A cell that failed since this worker began is left to the next sweep.
        """
        while True:
            left = [cell for cell in self.study.cells.values() if self._is_left(cell)]
            if not left:
                return
            if not any(self._take(cell) for cell in left):
                time.sleep(POLL)

    def work_on(self, cell: Cell) -> None:
        """Run this cell; waits for another process that is at it."""
        self._take(cell, wait=True)

    def _is_left(self, cell: Cell) -> bool:
        folder = cell_folder(self.study, cell, self.root)
        failed = folder / FAILED
        return not is_done(self.study, folder) and not (failed.is_file() and failed.stat().st_mtime >= self._began)

    def _take(self, cell: Cell, *, wait: bool = False) -> bool:
        """Run a cell unless another process holds its lock; returns whether it was free."""
        folder = cell_folder(self.study, cell, self.root)
        with exclusive_lock(folder, wait=wait) as lock:
            if lock is None:
                return False
            if not self._is_left(cell):  # another process has just finished it
                return True
            log.info("cell %s: %s", folder.name, cell)
            accuracy = self._try(cell, folder, lock)
        number = states(self.study, self.root)
        log.info("%s%s of %d%s", accuracy, counts_of(number), len(self.study.cells), self._time_left(number))
        return True

    def _try(self, cell: Cell, folder: Path, lock: int) -> str:
        """Run a cell, and keep the reason where it fails; returns its accuracy for the log."""
        began = time.monotonic()
        try:
            self._run(cell, folder, lock)
            accuracy = f"{result_of(self.study, folder).choice():.3f} on validation images; "
        except (OSError, ValueError) as error:  # a command that failed among them
            reason = f"cell {folder.name} ({cell}): {error}"
            log.error("%s", reason)
            write_text(folder / FAILED, reason)
            return ""
        self._seconds.append(time.monotonic() - began)
        return accuracy

    def _run(self, cell: Cell, folder: Path, lock: int) -> None:
        """Train, unless that is done, and run each probe that has left no report yet."""
        if not (folder / TRAINED).is_file():
            stopped = max((path.parent for path in folder.glob("*/*") if path.name in (LAST, PREVIOUS)), default=None)
            fresh = [*fit_of(self.study, cell, self._base, self.data_dir), f"--trainer.default_root_dir={folder}"]
            _run_command(["fit", "--ckpt_path", str(stopped)] if stopped else fresh, folder, lock)
            (folder / TRAINED).touch()
        checkpoint = checkpoint_of(folder)
        for probe, flags in self.study.probes.items():
            kept = report_file(folder, probe)
            if not kept.is_file():
                _run_command(["probe", "--ckpt_path", str(checkpoint), "--baselines=false", *flags], folder, lock)
                newest = max(checkpoint.parent.glob("probe*.json"), key=lambda path: path.stat().st_mtime)
                write_text(kept, newest.read_text())
        (folder / FAILED).unlink(missing_ok=True)

    def _time_left(self, number: Mapping[str, int]) -> str:
        """When the last cell will be done, judged by the cells that this worker has run."""
        running = number.get(RUNNING, 0)
        cells_left = number.get(WAITING, 0) + running
        if not self._seconds or not cells_left:
            return ""
        seconds = cells_left * sum(self._seconds) / len(self._seconds) / (1 + running)  # this process is one more
        return f"; about {seconds / 60:.0f} min left"


def counts_of(number: Mapping[str, int]) -> str:
    """Numbers of cells by their state, as text."""
    return ", ".join(f"{n} {state}" for state, n in number.items())


def fit_of(study: Study, cell: Cell, base: Sequence[str | Path], data_dir: str | None = None) -> list[str]:
    """The `msssl fit` of a cell; the flag of a class comes before those of its arguments."""
    settings = {**study.common, **cell.settings, **({"data.data_dir": data_dir} if data_dir else {})}
    flags = [f"--{key}={plain(settings[key])}" for key in sorted(settings, key=lambda name: name.count("."))]
    return ["fit", *(f"--config={path}" for path in base), *flags, f"--seed_everything={cell.seed}"]


def _run_command(args: list[str], folder: Path, lock: int) -> None:
    """Run a command of msssl, whose output is added to `log.txt`; ChildProcessError with its last line if it fails."""
    path = folder / "log.txt"
    with path.open("ab") as file:
        file.write(f"$ msssl {shlex.join(args)}\n".encode())
        file.flush()
        words, environment = [sys.executable, "-m", "msssl", *args], {**os.environ, "PYTHONUNBUFFERED": "1"}
        child = subprocess.Popen(words, stdout=file, stderr=file, pass_fds=[lock], env=environment)
        try:
            child.wait()
        except BaseException:
            child.terminate()  # a fit writes its checkpoint first
            child.wait()
            raise
    if child.returncode:
        last = path.read_text(errors="replace").strip().splitlines()[-1:]
        raise ChildProcessError(f"msssl {args[0]} ended with {child.returncode}, see {path}: {''.join(last).strip()}")
