"""Measures the speed of a run and estimates when it will end."""

import logging
from collections import deque
from datetime import datetime, timedelta
from statistics import median
from time import monotonic
from typing import Any

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from msssl.run.steps import is_logging_step, run_length

MIN_MEASUREMENTS = 3  # before the pace is logged; a single one may be an outlier
log = logging.getLogger(__name__)


class Pace(Callback):
    """Logs views per second and the expected end of a run, once, and estimates the remaining time at any moment.

    A measurement is the mean time of a step between two logging steps, at which the loss is read: other steps do not
    wait for the device. The first measurement is left out, as it includes compilation and caching. The time of a step
    is the median of the last 20 measurements, so that outliers do not matter. The time that an epoch needs besides its
    steps, such as for validation, is included from the second epoch on.
    """

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=20)  # measurements: seconds of a step
        self._first = True  # whether the first measurement is still to come
        self._since = 0.0  # when the current measurement began
        self._steps = 0  # number of steps in the current measurement
        self._began = 0.0  # when the run began
        self._in_steps = 0.0  # seconds spent in steps since then
        self._epochs = 0  # number of epochs that were completed since then
        self._validation_began = 0.0
        self._logged = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._since = monotonic()

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = monotonic()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        self._steps += 1
        never: bool = not trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not outputs or never or not is_logging_step(trainer):
            return
        outputs["loss"].item()
        now = monotonic()
        if not self._first:
            self._seconds.append((now - self._since) / self._steps)
        self._first = False
        self._in_steps += now - self._since
        self._since, self._steps = now, 0
        if not self._logged and len(self._seconds) >= MIN_MEASUREMENTS:
            self._logged = True
            self._log_pace(trainer, batch["views"])

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_began = monotonic()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since += monotonic() - self._validation_began  # does not count as time of steps

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epochs += 1

    def seconds_left(self, trainer: Trainer) -> float | None:
        """Estimated seconds until the end of the run; None before the first measurement, or if the run has no end."""
        done, total = run_length(trainer)
        if not self._seconds or total == float("inf"):
            return None
        left = (total - done) * median(self._seconds)
        if self._epochs:
            besides_steps = (monotonic() - self._began - self._in_steps) / self._epochs
            left += besides_steps * (total - done) * trainer.accumulate_grad_batches / trainer.num_training_batches
        return max(0.0, left)

    def _log_pace(self, trainer: Trainer, views: Any) -> None:
        groups = views if isinstance(views, list) else [views]
        n_views = trainer.world_size * sum(group.shape[0] * group.shape[1] for group in groups)
        step = median(self._seconds)
        line = f"pace: {n_views * trainer.accumulate_grad_batches / step:,.0f} views/s, {1e3 * step:.3g} ms a step"
        if (seconds := self.seconds_left(trainer)) is not None:
            left = timedelta(seconds=round(seconds))
            line += f"; {left} to go" + ("" if self._epochs else ", validations not counted")
            line += f": until {datetime.now() + left:%a %H:%M}"
        log.info(line)
