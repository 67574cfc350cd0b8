"""Logs a line about the progress of training at the end of epochs, where there is no progress bar."""

import logging
from time import monotonic

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from typing_extensions import override

from msssl.run.pace import Pace

SECONDS = 10.0  # between two lines at least
SHOWN = {"loss": "train/loss", "probe": "val/probe_top1", "RankMe": "val/rankme"}
log = logging.getLogger(__name__)


def has_terminal() -> bool:
    """Whether somebody may watch a bar: the output is no pipe and no file."""
    console = Console()
    return console.is_terminal or console.is_jupyter


class EpochLines(Callback):
    """Logs a line at the end of an epoch: its loss, what the validation found and the time that is left.

    Short epochs have a line every ten seconds; the first and the last epoch always have one.

    Args:
        pace: which knows the time that is left.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._said_at: float | None = None

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = trainer.callback_metrics  # on all ranks, which may have to agree on them
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs
        over = trainer.should_stop or epoch == epochs or 0 <= trainer.max_steps <= trainer.global_step
        now = monotonic()
        if not trainer.is_global_zero or not (over or self._said_at is None or now - self._said_at >= SECONDS):
            return
        self._said_at = now
        parts = [f"{name} {float(metrics[key]):.4g}" for name, key in SHOWN.items() if key in metrics]
        seconds = None if over else self._pace.seconds_left(trainer)
        if seconds is not None:
            parts.append(f"{seconds / 60:.0f} min left" if seconds >= 60 else f"{seconds:.0f} s left")
        of = f" of {epochs}" if epochs not in (None, -1) else ""
        log.info("epoch %d%s, step %d: %s", epoch, of, trainer.global_step, ", ".join(parts))
