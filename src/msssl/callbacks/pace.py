"""How long a run will take, once it has run for a little."""

import logging
import math
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

log = logging.getLogger(__name__)


class Pace(Callback):
    """Logs views per second and the expected end of a run, once, after its second logging step or its first epoch.

    It counts from the first logging step of an epoch, when all is compiled and cached, and reads the loss there and
    then: two waits for the device in a run. Validations are left out.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._said = False

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._said or not outputs or not every:
            return
        if batch_idx + 1 == every:
            outputs["loss"].item()
            self._since = monotonic()
        elif self._since is not None and (batch_idx + 1 == 2 * every or trainer.is_last_batch):
            outputs["loss"].item()
            self._said = True
            self._say(trainer, batch["views"], (monotonic() - self._since) / (batch_idx + 1 - every))

    def _say(self, trainer: Trainer, views: Any, seconds: float) -> None:
        """Log what follows from the seconds of a batch."""
        groups = views if isinstance(views, list) else [views]
        shown = trainer.world_size * sum(group.shape[0] * group.shape[1] for group in groups)
        step = seconds * trainer.accumulate_grad_batches
        line = f"pace: {shown / seconds:,.0f} views/s, {1e3 * step:.3g} ms a step"
        if math.isfinite(total := trainer.estimated_stepping_batches):
            left = timedelta(seconds=round((total - trainer.global_step) * step))
            line += f"; {left} to go, validations not counted: until {datetime.now() + left:%a %H:%M}"
        log.info(line)
