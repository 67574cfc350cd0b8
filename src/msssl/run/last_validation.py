"""Validates at the end of each run, even if validations are rare."""

import math

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override


class LastValidation(Callback):
    """Validates after the last epoch too, where `check_val_every_n_epoch` does not divide the number of epochs.

    Otherwise a run with fewer epochs than `check_val_every_n_epoch` would end without any accuracy.
    """

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._every: int | None = trainer.check_val_every_n_epoch
        self.on_train_epoch_start(trainer, pl_module)  # which Lightning skips when it resumes within an epoch

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._every is not None and _is_last_epoch(trainer):
            trainer.check_val_every_n_epoch = 1

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.check_val_every_n_epoch = self._every


def _is_last_epoch(trainer: Trainer) -> bool:
    epochs, batches = trainer.current_epoch + 1, trainer.num_training_batches
    steps = epochs * math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else 0
    return epochs == trainer.max_epochs or 0 <= trainer.max_steps <= steps
