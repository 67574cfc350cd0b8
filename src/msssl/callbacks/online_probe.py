"""Trains a classifier on the detached features while the encoder trains, and logs its accuracy."""

import logging
import re
from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from typing_extensions import override

from msssl.backbones import evaluating
from msssl.batch import EvaluationOutput, StepOutput
from msssl.callbacks.labelled import UNLABELLED_VALIDATION, reason_not_to_learn, validation_is_labelled
from msssl.distributed import gather
from msssl.errors import UserError
from msssl.run.steps import is_logging_step

log = logging.getLogger(__name__)


class OnlineProbe(Callback):
    """Trains BatchNorm1d(affine=False) + Linear on the detached features of all views; logs `val/<name>_top1`.

    Where a batch has labelled images of another set under the key `"probe"`, as for STL-10, it learns on those instead.

    It has its own optimizer and never sends a gradient into the encoder. Images with label -1 are left out. Under DDP
    every rank takes the same step on the features of all ranks, so that the heads stay equal. Head and optimizer are in
    the checkpoint. The callback turns itself off, with one line in the log, without labels to learn from or with only
    one class. If no validation image has a label it learns, but logs no accuracy.

    Args:
        lr: learning rate of its AdamW optimizer.
        hidden_dims: widths of hidden layers with ReLU before the Linear; none by default.
        on: `backbone`, or `projector.<i>` for the output of the projector's layer i, in evaluation mode.
        name: name under which it logs; probes that run together need different names.

    Raises:
        ValueError: `on` has another value.
    """

    def __init__(
        self, lr: float = 1e-3, hidden_dims: Sequence[int] = (), on: str = "backbone", name: str = "probe"
    ) -> None:
        layer = re.fullmatch(r"backbone|projector\.(\d+)", on)
        if layer is None:
            raise UserError(f"on is {on!r}: expected backbone, or projector.0 for the projector's first layer")
        self.lr = lr
        self.hidden_dims = list(hidden_dims)
        self.name = name
        self._n_layers = 0 if layer[1] is None else int(layer[1]) + 1  # of the projector
        self.head: nn.Sequential | None = None
        self._accuracy: MeanMetric | None = None
        self._saved: dict[str, Any] = {}

    @property
    @override
    def state_key(self) -> str:
        return f"{type(self).__qualname__}{ {'name': self.name}!r}"  # several probes have a state each

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if (reason := reason_not_to_learn(data)) is not None:
            log.info("online %s: off, %s", self.name, reason)
            return
        if stage == "fit" and not validation_is_labelled(data):
            log.info("online %s: %s, so there is no val/%s_top1", self.name, UNLABELLED_VALIDATION, self.name)
        if self.head is not None:
            return
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # equal on all ranks, and the run's random state is left alone
            head = self._build(pl_module, data.num_classes)
        device = trainer.strategy.root_device
        self.head = head.to(device)
        self._optimizer = torch.optim.AdamW(head.parameters(), lr=self.lr, fused=True)
        self._accuracy = MeanMetric(nan_strategy="ignore").to(device)  # its "disable" drops the weights
        self._restore()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.head is None:
            return
        output: StepOutput = outputs
        labelled = output.get("probe", output)  # images of a labelled set, or all views of the batch
        features = self._layer(pl_module, gather(labelled["features"]))  # (K, W*N, F)
        label = gather(labelled["label"].view(1, -1, 1)).flatten()
        self.head.train()
        logits = self.head(features.flatten(0, 1))
        # The mean over the labelled rows; 0, not NaN, where there are none.
        labels = label.repeat(len(features))
        total = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        loss = total / (labels >= 0).sum().clamp(min=1)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        if is_logging_step(trainer):
            pl_module.log(f"train/{self.name}_loss", loss.detach(), batch_size=len(label))

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
        output: EvaluationOutput = outputs
        logits, label = self.head(self._layer(pl_module, output["features"])), output["label"]
        self._accuracy.update((logits.argmax(dim=1) == label).float(), (label >= 0).float())

    on_test_batch_end = on_validation_batch_end

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(pl_module, f"val/{self.name}_top1")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(pl_module, f"test/{self.name}_top1")

    def _report(self, pl_module: LightningModule, name: str) -> None:
        if self._accuracy is None:
            return
        accuracy = self._accuracy.compute()  # of all ranks
        self._accuracy.reset()
        if accuracy.isfinite():  # else no image had a label
            pl_module.log(name, accuracy, prog_bar=True, sync_dist=True)  # it is: for Lightning

    def _build(self, pl_module: LightningModule, num_classes: int) -> nn.Sequential:
        width: Any = pl_module.feature_dim
        if self._n_layers:
            projector: Any = pl_module.projector
            if self._n_layers > len(projector):
                raise UserError(f"on is projector.{self._n_layers - 1}, but the projector has {len(projector)} layers")
            width = self._layer(pl_module, torch.zeros(1, width, device=pl_module.device)).shape[-1]
        layers: list[nn.Module] = [nn.BatchNorm1d(width, affine=False)]
        for hidden_dim in self.hidden_dims:
            layers += [nn.Linear(width, hidden_dim), nn.ReLU(inplace=True)]
            width = hidden_dim
        return nn.Sequential(*layers, nn.Linear(width, num_classes))

    @torch.no_grad()
    def _layer(self, pl_module: LightningModule, features: Tensor) -> Tensor:
        """The inputs of the head: the features (..., F), or the output (..., D) of a layer of the projector."""
        if self._n_layers == 0:
            return features.float()
        layers: Any = pl_module.projector[: self._n_layers]  # type: ignore[index]
        with evaluating(layers):  # BatchNorm's statistics stay as they are
            outputs: Tensor = layers(features.to(pl_module.dtype).flatten(0, -2))
        outputs = outputs.unflatten(0, features.shape[:-1])
        return outputs.float()

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
            # The weight of the last layer:
            built, saved = (list(state.values())[-2].shape for state in (self.head.state_dict(), self._saved["head"]))
            if built != saved:
                raise UserError(
                    f"online {self.name}: its head in the checkpoint has {saved[0]} classes and {saved[1]} features, "
                    f"but the run has {built[0]} and {built[1]}"
                )
            self.head.load_state_dict(self._saved["head"])
            self._optimizer.load_state_dict(self._saved["optimizer"])
            self._optimizer.param_groups[0]["lr"] = self.lr  # the argument wins over the checkpoint
            self._saved = {}
