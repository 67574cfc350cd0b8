"""What `msssl predict` leaves behind."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from typing_extensions import override

log = logging.getLogger(__name__)


class FeaturesWriter(BasePredictionWriter):
    """Writes `features.pt`: `{"features": (n, F), "label": (n,), "index": (n,)}` of every predicted image, by index.

    Under DDP, each rank writes its own share as `features-rank<r>.pt`.

    Args:
        folder: where to write.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(write_interval="epoch")
        self.folder = Path(folder)

    @override
    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        parts = {name: torch.cat([batch[name].cpu() for batch in predictions]) for name in predictions[0]}
        order = parts["index"].argsort()
        name = "features.pt" if trainer.world_size == 1 else f"features-rank{trainer.global_rank}.pt"
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save({key: value[order] for key, value in parts.items()}, self.folder / name)
        log.info("features: %d x %d in %s", *parts["features"].shape, self.folder / name)
