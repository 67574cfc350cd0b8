"""The best checkpoint, where there is something to judge by."""

from pathlib import Path
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
        if self.save_top_k == 1:  # or a file that a killed run left after its last checkpoint would stay beside
            self._enable_version_counter = False

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What was best so far, also where the run's folder has been moved; nothing in another run's folder."""

        def here(path: str) -> str:
            return str(Path(self.dirpath or "", Path(path).name)) if path else path

        if not Path(here(state_dict["best_model_path"])).is_file():
            return
        paths = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})
