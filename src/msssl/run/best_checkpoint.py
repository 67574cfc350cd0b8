"""Writes `best.ckpt`, the checkpoint with the best value of a logged metric."""

import logging
import math
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from msssl.errors import UserError
from msssl.run.steps import run_length

AUTO = "auto"
METRICS = ("val/probe_top1", "val/rankme")  # `auto` is the first of these that is logged
STAGNATION = 0.2  # share of a run without a better validation, after which the log says so
log = logging.getLogger(__name__)


class BestCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` that does not fail where the monitored metric is not logged, but saves nothing.

    Args:
        monitor: name of the metric. `auto` chooses at the first validation: the accuracy of the online probe,
            `val/probe_top1`, or where that is not logged, as without labels, RankMe, `val/rankme`. RankMe says less
            than an accuracy, since embeddings of high rank can be useless.
        mode: `max` or `min`; for `auto` it must be `max`.
        filename: name of the file, without `.ckpt`.
        **kwargs: arguments of `lightning.pytorch.callbacks.ModelCheckpoint`.
    """

    def __init__(self, monitor: str = AUTO, mode: str = "max", filename: str = "best", **kwargs: Any) -> None:
        if monitor == AUTO and mode != "max":
            raise UserError(f"mode is {mode}: monitor auto needs max, as it chooses the highest of its metrics")
        super().__init__(monitor=monitor, mode=mode, filename=filename, **kwargs)
        self._monitor_argument = monitor
        self._highest, self._best_at = -math.inf, 0  # metric of `auto` in this process, and its step
        if self.save_top_k == 1:  # so that a file which a killed run left is replaced, and not kept beside the new one
            self._enable_version_counter = False

    @property
    @override
    def state_key(self) -> str:  # the same before and after `auto` is decided
        monitor, self.monitor = self.monitor, METRICS[0] if self._monitor_argument == AUTO else self._monitor_argument
        key = super().state_key
        self.monitor = monitor
        return key

    def _choose(self, trainer: Trainer) -> None:
        """Decide which metric `auto` is, once one of them is logged."""
        if self.monitor != AUTO or trainer.sanity_checking:
            return
        self.monitor = next((name for name in METRICS if name in trainer.callback_metrics), AUTO)
        if self.monitor == METRICS[1]:
            log.info("best checkpoint: that of the highest %s, as there is no accuracy to choose by", self.monitor)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._choose(trainer)
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)
            if self.monitor in METRICS and not trainer.sanity_checking:
                self._note_stagnation(trainer, float(trainer.callback_metrics[self.monitor]))

    def _note_stagnation(self, trainer: Trainer, value: float) -> None:
        """Log that no validation in the last fifth of the run was better than an earlier one."""
        step, total = run_length(trainer)
        if value > self._highest:
            self._highest, self._best_at = value, step
        elif 0 < STAGNATION * total <= step - self._best_at:
            log.info(
                "%s has not improved for %.0f %% of the run: training on is not visibly helping",
                *(self.monitor, 100 * (step - self._best_at) / total),
            )
            self._best_at = step  # the next note comes after as much again

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and its file, also where the run's folder was moved; nothing if that file is gone."""

        def here(path: str) -> str:
            return str(Path(self.dirpath or "", Path(path).name)) if path else path

        if not Path(here(state_dict["best_model_path"])).is_file():
            return
        if self.monitor == AUTO:
            self.monitor = state_dict["monitor"]
        paths = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})
