"""Measures the accuracy of a k-nearest-neighbour classifier on the features at each validation."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import MeanMetric
from typing_extensions import override

from msssl.batch import EvaluationOutput
from msssl.callbacks.labelled import UNLABELLED_VALIDATION, reason_not_to_learn, validation_is_labelled
from msssl.distributed import gather_rows
from msssl.metrics import knn, neighbours_taken
from msssl.progress import with_bar

log = logging.getLogger(__name__)


class OnlineKNN(Callback):
    """Logs `val/knn_top1`, the accuracy with which the nearest training images predict the class of validation images.

    Before each validation, the features of the labelled training images (the bank) are computed from clean images, in
    evaluation mode. Votes are weighted as in `metrics.knn`. The callback turns itself off, with one line in the log,
    if training or validation images have no labels, or if there is only one class.

    Args:
        k: number of neighbours. At most half of the labelled images of the bank are taken, so that a small set has
            fewer; the log then says how many.
        temperature: temperature of the votes.
        bank_size: size of the bank at most; its images are spread evenly over the training set.
    """

    def __init__(self, k: int = 200, temperature: float = 0.1, bank_size: int = 20_000) -> None:
        self.k = k
        self.temperature = temperature
        self.bank_size = bank_size
        self._off = False
        self._classify: Callable[[Tensor], Tensor] | None = None  # features to scores, by this validation's bank
        self._accuracy: MeanMetric | None = None
        self._k_taken = k  # that was logged last

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        reason = reason_not_to_learn(data, nearest=True)
        if reason is None and not validation_is_labelled(data):
            reason = UNLABELLED_VALIDATION
        self._off = reason is not None
        if self._off and stage in ("fit", "validate"):
            log.info("online kNN: off, %s", reason)

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or self._off:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        loader = data.evaluation_dataloader("probe", at_most=self.bank_size, labelled=True)
        rows = []
        for batch in with_bar(loader, "Features of the neighbours", len(loader)):
            clean = data.make_views(batch, pl_module.device)["image"]
            with trainer.precision_plugin.forward_context():
                rows.append((batch["index"].cpu(), pl_module(clean).float().cpu(), batch["label"].cpu()))
        _, bank, labels = (column.to(pl_module.device) for column in gather_rows(rows))
        options = {"num_classes": data.num_classes, "k": self.k, "temperature": self.temperature}
        self._classify = partial(knn, bank=bank, bank_labels=labels, **options)
        k = neighbours_taken(labels, self.k)
        if k != self._k_taken:
            self._k_taken = k
            n = int((labels >= 0).sum())
            log.info("online kNN: k = %d, half of the %s labelled images it compares with, not %d", k, f"{n:,}", self.k)
        self._accuracy = MeanMetric(nan_strategy="ignore").to(pl_module.device)  # its "disable" drops the weights

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
        if self._classify is None or self._accuracy is None:
            return
        output: EvaluationOutput = outputs
        predicted, label = self._classify(output["features"].float()).argmax(dim=1), output["label"]
        self._accuracy.update((predicted == label).float(), (label >= 0).float())

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._accuracy is None:
            return
        accuracy = self._accuracy.compute()  # of all ranks
        self._classify = self._accuracy = None
        if accuracy.isfinite():  # else no image had a label
            pl_module.log("val/knn_top1", accuracy, prog_bar=True, sync_dist=True)  # it is: for Lightning
