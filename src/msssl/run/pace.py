"""How fast a run is, and how long it will take."""

import logging
from collections import deque
from datetime import datetime, timedelta
from statistics import median
from time import monotonic
from typing import Any

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from msssl.run.steps import is_logging_step, run_length

ENOUGH = 3  # measurements, of which one may be of a slow moment
log = logging.getLogger(__name__)


class Pace(Callback):
    """Logs views per second and the expected end of a run, once, and estimates what is left at any time.

    A measurement is the time of a step, on average between two logging steps of a run, where the loss is read: the
    device is waited for at logging steps only. The first one is left out, while things are compiled and cached. A step
    counts as the median of the last measurements, so that a slow moment does not matter. What an epoch takes beside its
    steps, such as validation, is added once there has been an epoch.
    """

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=20)  # of a step
        self._first = True  # whether the first measurement is still to come
        self._since = 0.0  # when the measurement began
        self._steps = 0  # in it
        self._began = 0.0
        self._in_steps = 0.0  # seconds since then
        self._epochs = 0  # since then
        self._validation_began = 0.0
        self._said = False

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
        if not self._said and len(self._seconds) >= ENOUGH:
            self._said = True
            self._say(trainer, batch["views"])

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_began = monotonic()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since += monotonic() - self._validation_began  # within an epoch

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epochs += 1

    def seconds_left(self, trainer: Trainer) -> float | None:
        """How long the rest of the run will take; None while that is not known, or where the run has no end."""
        done, whole = run_length(trainer)
        if not self._seconds or whole == float("inf"):
            return None
        left = (whole - done) * median(self._seconds)
        if self._epochs:
            beside = (monotonic() - self._began - self._in_steps) / self._epochs
            left += beside * (whole - done) * trainer.accumulate_grad_batches / trainer.num_training_batches
        return max(0.0, left)

    def _say(self, trainer: Trainer, views: Any) -> None:
        groups = views if isinstance(views, list) else [views]
        shown = trainer.world_size * sum(group.shape[0] * group.shape[1] for group in groups)
        step = median(self._seconds)
        line = f"pace: {shown * trainer.accumulate_grad_batches / step:,.0f} views/s, {1e3 * step:.3g} ms a step"
        if (seconds := self.seconds_left(trainer)) is not None:
            left = timedelta(seconds=round(seconds))
            line += f"; {left} to go" + ("" if self._epochs else ", validations not counted")
            line += f": until {datetime.now() + left:%a %H:%M}"
        log.info(line)
