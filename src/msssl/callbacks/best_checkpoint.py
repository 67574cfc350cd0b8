"""The best checkpoint, where there is something to judge by."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override


class BestCheckpoint(ModelCheckpoint):
    """`ModelCheckpoint` that saves nothing, instead of failing, where the monitored metric is not logged.

    Args:
        monitor: name of the metric.
        mode: `max` or `min`.
        filename: name of the file, without `.ckpt`.
        **kwargs: those of `lightning.pytorch.callbacks.ModelCheckpoint`.
    """

    def __init__(
        self, monitor: str = "val/probe_top1", mode: str = "max", filename: str = "best", **kwargs: Any
    ) -> None:
        super().__init__(monitor=monitor, mode=mode, filename=filename, **kwargs)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)
