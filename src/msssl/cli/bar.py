"""The progress bar of training, with its speed and, where known, the time left."""

from datetime import timedelta
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from rich.progress import ProgressColumn, Task
from rich.text import Text
from typing_extensions import override

from msssl.run.pace import Pace


class Bar(RichProgressBar):
    """Rich's bar without the logger's version number; refreshed at logging steps, as reading a metric waits.

    Args:
        refresh_rate: in steps.
        pace: which knows how long the rest of the run will take; without one the bar does not say so.
    """

    def __init__(self, refresh_rate: int, pace: Pace | None = None) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._pace = pace

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning's own reads the metrics at every step, whatever the refresh rate.
        if (batch_idx + 1) % self.refresh_rate == 0 or trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        return [*super().configure_columns(trainer)[:-1], Speed(self.theme.processing_speed)]

    @override
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        loss = trainer.callback_metrics.get("train/loss")
        if loss is not None:
            metrics = {"train/loss": float(loss), **metrics}
        seconds = None if self._pace is None else self._pace.seconds_left(trainer)
        return metrics if seconds is None else {**metrics, "run ends in": str(timedelta(seconds=round(seconds)))}


class Speed(ProcessingSpeedColumn):
    """Batches per second since the epoch began; Lightning's needs two refreshes, which a short epoch has not."""

    @override
    def render(self, task: Task) -> Text:
        seconds = task.finished_time or task.elapsed
        return Text(f"{task.completed / seconds:.2f}it/s" if seconds else "", style=self.style)
