"""Accuracy of nearest neighbours, while it trains."""

import logging
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from msssl.distributed import gather_rows
from msssl.metrics import knn, neighbours_taken
from msssl.progress import with_bar

log = logging.getLogger(__name__)


class OnlineKNN(Callback):
    """Logs `val/knn_top1`: each validation image votes with the nearest clean training images, by `metrics.knn`.

    Before each validation the labelled training images go through the encoder, in evaluation mode and without views.

    Args:
        k: number of neighbours. At most half of the labelled images of the bank are taken, so that a small set has
            fewer; the log then says how many.
        temperature: of their votes.
        bank_size: training images that are compared with, spread evenly over the set, at most.
    """

    def __init__(self, k: int = 200, temperature: float = 0.1, bank_size: int = 20_000) -> None:
        self.k = k
        self.temperature = temperature
        self.bank_size = bank_size
        self._bank: tuple[Tensor, Tensor] | None = None
        self._accuracy: MulticlassAccuracy | None = None
        self._k_taken = k  # what was said last

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        data: Any = getattr(trainer, "datamodule", None)
        if getattr(data, "num_classes", None) is None:
            log.info("online kNN: off, the data has no labels")
            return
        loader = data.evaluation_dataloader("probe", at_most=self.bank_size)
        found = []
        for batch in with_bar(loader, "Features of the neighbours", len(loader)):
            clean = data.views.evaluate(batch["image"].to(pl_module.device))
            with trainer.precision_plugin.forward_context():
                found.append((batch["index"].cpu(), pl_module(clean).float().cpu(), batch["label"].cpu()))
        _, features, labels = gather_rows(found)
        self._bank = features.to(pl_module.device), labels.to(pl_module.device)
        k = neighbours_taken(labels, self.k)
        if k != self._k_taken:
            self._k_taken = k
            n = int((labels >= 0).sum())
            log.info("online kNN: k = %d, half of the %s labelled images it compares with, not %d", k, f"{n:,}", self.k)
        self._num_classes = data.num_classes
        accuracy = MulticlassAccuracy(self._num_classes, average="micro", ignore_index=-1, validate_args=False)
        self._accuracy = accuracy.to(pl_module.device)

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
        if self._bank is None or self._accuracy is None:
            return
        bank, labels = self._bank
        scores = knn(
            outputs["features"].float(),
            bank,
            labels,
            num_classes=self._num_classes,
            k=self.k,
            temperature=self.temperature,
        )
        self._accuracy.update(scores, outputs["label"])

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._accuracy is None:
            return
        # `compute` already sums over ranks; sync_dist only tells Lightning so.
        pl_module.log("val/knn_top1", self._accuracy.compute(), prog_bar=True, sync_dist=True)
        self._bank = self._accuracy = None
