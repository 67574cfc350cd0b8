"""Accuracy of a classifier that is trained along, on features that it cannot change."""

import logging
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from msssl.distributed import gather

log = logging.getLogger(__name__)


class OnlineProbe(Callback):
    """Trains BatchNorm1d(affine=False) + Linear on the detached features of all views; logs `val/probe_top1`.

    Where the batch brings labelled images of another set (`"probe"`, as for STL-10), it learns on those instead.

    It has its own optimizer and never sends a gradient into the encoder. Labels of -1 are left out. Under DDP every
    rank takes the same step on the features of all ranks, so the probes stay equal. Head and optimizer are in the
    checkpoint. Without labels it turns itself off, with one line in the log.

    Args:
        lr: learning rate of its AdamW.
    """

    def __init__(self, lr: float = 1e-3) -> None:
        self.lr = lr
        self.head: nn.Sequential | None = None
        self._accuracy: MulticlassAccuracy | None = None
        self._saved: dict[str, Any] = {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        num_classes = getattr(getattr(trainer, "datamodule", None), "num_classes", None)
        if num_classes is None:
            log.info("online probe: off, the data has no labels (or its data set no `targets` to count the classes by)")
            return
        if self.head is not None:
            return
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # equal on all ranks, and no draw from the run's own state
            head = nn.Sequential(
                nn.BatchNorm1d(pl_module.feature_dim, affine=False),  # type: ignore[arg-type]
                nn.Linear(pl_module.feature_dim, num_classes),  # type: ignore[arg-type]
            )
        device = trainer.strategy.root_device
        self.head = head.to(device)
        self._optimizer = torch.optim.AdamW(head.parameters(), lr=self.lr)
        self._accuracy = MulticlassAccuracy(num_classes, average="micro", ignore_index=-1, validate_args=False).to(
            device
        )
        self._restore()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.head is None:
            return
        found = outputs.get("probe", outputs)  # a labelled set of its own, or all views
        features = gather(found["features"]).float()  # (K, W*N, F)
        label = gather(found["label"].view(1, -1, 1)).flatten()
        self.head.train()
        logits = self.head(features.flatten(0, 1))
        # A mean over the labelled rows that stays 0, not NaN, where there are none.
        labels = label.repeat(len(features))
        total = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        loss = total / (labels >= 0).sum().clamp(min=1)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        pl_module.log("train/probe_loss", loss.detach(), batch_size=len(label))

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
        if self.head is None or self._accuracy is None:
            return
        self.head.eval()
        self._accuracy.update(self.head(outputs["features"].float()), outputs["label"])

    on_test_batch_end = on_validation_batch_end

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(pl_module, "val/probe_top1")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(pl_module, "test/probe_top1")

    def _report(self, pl_module: LightningModule, name: str) -> None:
        if self._accuracy is None:
            return
        # `compute` already sums over ranks; sync_dist only tells Lightning so.
        pl_module.log(name, self._accuracy.compute(), prog_bar=True, sync_dist=True)
        self._accuracy.reset()

    @override
    def state_dict(self) -> dict[str, Any]:
        if self.head is None:
            return self._saved
        return {"head": self.head.state_dict(), "optimizer": self._optimizer.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict
        self._restore()

    def _restore(self) -> None:
        if self.head is not None and self._saved:
            self.head.load_state_dict(self._saved["head"])
            self._optimizer.load_state_dict(self._saved["optimizer"])
            self._optimizer.param_groups[0]["lr"] = self.lr  # the argument wins over the checkpoint
            self._saved = {}
