"""The loggers of a run, TensorBoard and `metrics.csv`, which a resumed run continues without logging a step twice."""

import csv
import math
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from typing_extensions import override

from msssl.run.files import atomic_write
from msssl.run.run_folder import rank
from msssl.run.steps import run_length

POINTS = 20  # that the curve of a short run has at least


def run_loggers(folder: Path, step: int | None = None) -> list[Logger]:
    """Loggers that write into a run's folder.

    Args:
        folder: folder of the run.
        step: number of steps in the checkpoint from which the run is resumed. Later rows are deleted, since they will
            be logged again.
    """
    last = None if step is None or rank() > 0 else _drop_later(folder / "metrics.csv", step)
    purge = {} if step is None else {"purge_step": step}
    return [
        _TensorBoard(folder, name="", version="", default_hp_metric=False, last=last, **purge),
        _CSV(folder, name="", version="", last=last),
    ]


class ShortEpochs(Callback):
    """Lowers `trainer.log_every_n_steps` where an epoch would have no row, or a short run no curve of 20 points."""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        interval, batches = trainer.log_every_n_steps, trainer.num_training_batches  # type: ignore[attr-defined]
        _, total_steps = run_length(trainer)
        limits = [math.ceil(batches / trainer.accumulate_grad_batches)] if math.isfinite(batches) else []
        limits += [int(total_steps) // POINTS] if math.isfinite(total_steps) else []
        if interval:
            trainer.log_every_n_steps = max(1, min([interval, *limits]))  # type: ignore[attr-defined]


class _Once(Logger):
    """A logger that logs each metric of a step once, even if a checkpoint was written between two metrics of a step."""

    def __init__(self, *args: Any, last: tuple[int, set[str]] | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._step: int | None = last and last[0]
        self._logged: set[str] = last[1] if last else set()

    @override
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if step != self._step:
            self._step, self._logged = step, set()
        new = {name: value for name, value in metrics.items() if name not in self._logged}
        if new.keys() - {"epoch"}:
            super().log_metrics(new, step)  # type: ignore[safe-super]  # of the next base class
        self._logged |= new.keys() - {"epoch"}  # which is logged with every metric


class _TensorBoard(_Once, TensorBoardLogger):
    """Lightning's logger, which logs each metric of a step once."""


class _CSV(_Once, CSVLogger):
    """Lightning's logger, which logs each metric of a step once and keeps the rows of an existing file."""

    @property
    @override
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _Appending(self.log_dir)
        return self._experiment


class _Appending(ExperimentWriter):
    @override
    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    @override
    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        with path.open(newline="") as file:
            _write(path, fieldnames, list(csv.DictReader(file)))


def _drop_later(path: Path, step: int) -> tuple[int, set[str]] | None:
    """Delete the rows of a `metrics.csv` from a step on; return the last step before and the metrics logged at it."""
    if not path.is_file():
        return None
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        # A killed process may have left an incomplete row.
        rows = [row for row in reader if None not in row.values() and row["step"].isdigit() and int(row["step"]) < step]
    if not rows:
        path.unlink()
        return None
    _write(path, list(reader.fieldnames or []), rows)
    last = max(int(row["step"]) for row in rows)
    of_last = [row for row in rows if int(row["step"]) == last]
    return last, {name for row in of_last for name, value in row.items() if value and name not in ("step", "epoch")}


def _write(path: Path, names: list[str], rows: list[dict[str, str]]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
