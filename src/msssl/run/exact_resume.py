"""Makes a resumed run equal to one without interruption: random state, progress counters, plateau schedules."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.types import LRSchedulerConfig
from typing_extensions import override

from msssl.errors import UserError


class ExactResume(Callback):
    """Saves the random state that dropout uses, and corrects the progress counters in Lightning's checkpoints.

    It also steps `ReduceLROnPlateau` at the end of an epoch before the checkpoint is written; Lightning does so
    afterwards. The random state of the first rank is used for all ranks, as all are seeded alike. Every
    `MultiViewModule` adds this callback.

    Raises:
        ValueError: the strategy spreads the parameters over devices, so that its checkpoints have another format.
    """

    def __init__(self) -> None:
        self._random: dict[str, Any] = {}
        self._batches: int | float | None = None  # number of batches in an epoch
        self._monitored: dict[str, float] = {}  # metrics of ReduceLROnPlateau, when the checkpoint was written

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            name = type(trainer.strategy).__name__
            raise UserError(f"strategy is {name}: msssl trains on one device, or on several by strategy ddp")
        if trainer.precision == "64-true":  # Lightning does so after loading the weights, which rounds them
            pl_module.double()

    @override
    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return {"cpu": torch.get_rng_state(), "cuda": cuda, "batches": self._batches}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._random = state_dict
        self._batches = state_dict.get("batches")

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        monitors = {str(config.monitor) for config in _plateaus(trainer)}
        checkpoint["monitored"] = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name in monitors
        }

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._monitored = checkpoint.get("monitored", {})
        mend_progress(checkpoint["loops"]["fit_loop"], by_steps=trainer.max_steps != -1)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        random, self._random = self._random, {}
        if random:
            torch.set_rng_state(random["cpu"])
        if random.get("cuda") is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(random["cuda"])
        saved, self._batches = self._batches, trainer.num_training_batches
        if saved is not None and saved != self._batches:
            rescale_progress(trainer.fit_loop.epoch_loop.batch_progress.current, saved, self._batches)
        for config in _plateaus(trainer):  # the run may have stopped between an epoch's last batch and its end
            scheduler: Any = config.scheduler
            if scheduler.last_epoch < trainer.current_epoch and config.monitor in self._monitored:
                scheduler.step(self._monitored[config.monitor])

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning steps a ReduceLROnPlateau after it wrote the checkpoint of the epoch's end, and not at all in an
        # epoch in whose middle the run was resumed.
        loop = trainer.fit_loop
        if _plateaus(trainer) and loop.epoch_loop._num_ready_batches_reached():
            loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
            loop._restarting = True  # so that Lightning does not step again; it is reset in the next epoch


def _plateaus(trainer: Trainer) -> list[LRSchedulerConfig]:
    """The schedules that step at the end of each epoch, depending on a metric."""
    return [
        config for config in trainer.lr_scheduler_configs if config.reduce_on_plateau and config.interval == "epoch"
    ]


def mend_progress(fit_loop: dict[str, Any], by_steps: bool) -> None:
    """Correct the progress counters in a checkpoint of Lightning 2.6, in place, so that the run resumes exactly.

    Lightning writes its counters at different moments, depending on the hook in which the checkpoint was saved:

    | hook in which it was saved | counters that Lightning wrote | counters that a resume needs |
    |---|---|---|
    | `on_train_batch_end`, within an epoch | right | the same |
    | `on_train_batch_end`, last of an epoch | batch, epoch not completed | both completed, one more step |
    | `on_train_epoch_end` | epoch processed, not completed | epoch completed, batches 0 |
    | `on_train_epoch_end`, `max_steps` reached within the epoch | the same | epoch neither processed nor completed |
    | after an epoch's end | the finished epoch's batches | batches 0 |

    Args:
        fit_loop: state of the fit loop in the checkpoint.
        by_steps: whether the resumed run has `max_steps`, for which Lightning counts the last step once more.
    """
    epochs, batches = fit_loop["epoch_progress"], fit_loop["epoch_loop.batch_progress"]
    current, steps = epochs["current"], fit_loop["epoch_loop.state_dict"]
    in_epoch = current["ready"] == current["processed"] + 1
    if in_epoch and batches["is_last_batch"] and batches["current"]["completed"] < batches["current"]["processed"]:
        for count in (batches["current"], batches["total"]):
            count["completed"] = count["processed"]
        for count in (current, epochs["total"]):
            count["completed"] = count["processed"] = count["ready"]
        steps["_batches_that_stepped"] += 1
    if current["processed"] == current["completed"] + 1:
        for count in (current, epochs["total"]):
            if batches["is_last_batch"]:
                count["completed"] = count["processed"]
            else:
                count["processed"] = count["completed"]
    if batches["is_last_batch"] and current["ready"] == current["completed"]:
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False
        steps["_batches_that_stepped"] -= by_steps


def rescale_progress(current: Any, before: float, now: float) -> None:
    """Scale the counts of an epoch's batches, in place, for an epoch that now has another number of batches.

    The training loader scales its position likewise, so that both are at the same share of the epoch.

    Args:
        current: progress of the batches in the current epoch.
        before: number of batches in an epoch when the checkpoint was written.
        now: number of batches in an epoch of the resumed run.
    """
    ready = int(current.ready * now // before)
    change = ready - current.ready
    for name in ("ready", "started", "processed", "completed"):
        setattr(current, name, getattr(current, name) + change)
