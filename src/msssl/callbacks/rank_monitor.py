"""How many directions the embeddings use, and a warning when they collapse."""

import logging
import math
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from typing_extensions import override

from msssl.distributed import gather_rows
from msssl.metrics import alpha_req, rankme

MIN_RANK, MIN_SPREAD = 2.0, 0.1  # below either the embeddings are called collapsed
log = logging.getLogger(__name__)


class RankMonitor(Callback):
    """Logs `val/rankme` (of z), `val/alpha` (of features) and `val/spread` at each validation; warns of a collapse.

    The spread is the standard deviation of each dimension of z / ||z||, averaged, times sqrt(D): about 1 where z fills
    the sphere, 0 where all images have one embedding. TensorBoard gets the correlation matrix of z as a picture, red
    for 1 and blue for -1. It sees clean validation images in evaluation mode, of all ranks, each once.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[Tensor, ...]] = []  # index, features, z

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking:
            return
        features = outputs["features"].to(pl_module.dtype)
        z = pl_module.projector(features)  # type: ignore[operator]
        self._rows.append((outputs["index"].cpu(), features.cpu(), z.cpu()))

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        _, features, z = gather_rows(rows)
        if not z.isfinite().all():
            return  # `NonFiniteGuard` stops the run
        spread = float((z / z.norm(dim=1, keepdim=True).clamp(min=1e-12)).std(dim=0).mean() * math.sqrt(z.shape[1]))
        rank = float(rankme(z))
        measured = {"rankme": rank, "alpha": float(alpha_req(features)), "spread": spread}
        for name, value in measured.items():
            if math.isfinite(value):
                pl_module.log(f"val/{name}", value, rank_zero_only=True)
        if rank < MIN_RANK or spread < MIN_SPREAD:
            log.warning(
                "collapse at step %d: RankMe of z is %.2f of %d, its spread %.3f; "
                "lower the learning rate, or raise the weight of the redundancy or variance term",
                trainer.global_step,
                rank,
                min(z.shape),
                spread,
            )
        self._draw(trainer, z)

    def _draw(self, trainer: Trainer, z: Tensor) -> None:
        correlation = torch.corrcoef(z.T).nan_to_num()
        blue_to_red = torch.stack([1 + correlation, 1 - correlation.abs(), 1 - correlation]).clamp(0, 1)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("correlation of z", blue_to_red, trainer.global_step)
