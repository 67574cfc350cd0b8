"""A classifier whose whole network is trained, and the labelled images that it is trained on."""

from typing import Any

import torch
from lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from msssl.batch import Batch, TrainBatch, ViewsBatch, is_for_training
from msssl.data import MultiViewDataModule
from msssl.data.loaders import EvaluationLoader, TrainLoader
from msssl.distributed import gather_rows
from msssl.methods.optimizer import WarmupCosine, let_clip, parameter_groups, with_schedule
from msssl.run.steps import run_length
from msssl.views import MultiView, RandomResizedCropFlip

WEIGHT_DECAY, WARMUP = 0.05, 0.1  # of AdamW, and the share of the steps in which the learning rate rises
SCALE = (0.35, 1.0)  # of the random crops, as shares of the image's area
METRIC = "val/top1"


class Classifier(LightningModule):
    """A backbone and a linear head that are trained together: cross-entropy, AdamW, warm-up and cosine schedule.

    Args:
        backbone: maps normalised images (N, C, H, W) to features (N, F).
        head: maps these to logits (N, C); the linear probe, so that features need not change much (Kumar et al. 2022).
        learning_rate: highest learning rate of the schedule.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear, learning_rate: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.learning_rate = learning_rate
        self.top1 = MulticlassAccuracy(head.out_features, average="micro", ignore_index=-1)
        self.logits: Tensor | None = None  # (N, C) and labels (N,) of all test images, after a test
        self.labels: Tensor | None = None
        self._rows: list[tuple[Tensor, ...]] = []

    @override
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images.to(self.dtype)))
        return logits

    @override
    def training_step(self, batch: ViewsBatch, batch_idx: int) -> Tensor:
        views = batch["views"]
        assert isinstance(views, Tensor)
        return F.cross_entropy(self(views.flatten(0, 1)).float(), batch["label"].repeat(len(views)))

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.top1(self(batch["image"]), batch["label"])
        self.log(METRIC, self.top1, batch_size=len(batch["label"]))

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self(batch["image"]).float().cpu()
        self._rows.append((batch["index"].cpu(), logits, batch["label"].cpu()))

    @override
    def on_test_epoch_end(self) -> None:
        _, self.logits, self.labels = gather_rows(self._rows)
        self._rows = []

    @override
    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self, decay_bias_and_norm=False)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, weight_decay=WEIGHT_DECAY)
        let_clip(optimizer, self.trainer)
        return with_schedule(optimizer, lambda optimizer: WarmupCosine(optimizer, warmup=WARMUP))

    @override
    def on_train_start(self) -> None:
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, WarmupCosine)
        step, total_steps = run_length(self.trainer)
        scheduler.fill_in(total_steps, step)


class LabelledImages(LightningDataModule):
    """Batches of some labelled images, cropped and flipped at random, and clean ones for validation and test.

    Args:
        data: the images, set up.
        rows: (n,), which images of the split `probe` are trained on.
        batch_size: images in a batch of all devices; fewer where there are fewer images.
        seed: of order and crops.
    """

    def __init__(self, data: MultiViewDataModule, rows: Tensor, batch_size: int, seed: int) -> None:
        super().__init__()
        self.data = data
        self.rows = rows
        self.batch_size = min(batch_size, len(rows))
        self.seed = seed
        preprocess = data.preprocess
        size = preprocess.input_size
        assert size is not None  # `finetune` saw to it
        crop = RandomResizedCropFlip(size, scale=SCALE)
        self.views = MultiView(1, [crop], mean=preprocess.mean, std=preprocess.std)

    def _shard(self) -> dict[str, Any]:
        trainer = self.trainer
        assert trainer is not None
        return {"rank": trainer.global_rank, "world_size": trainer.world_size, "num_workers": self.data.num_workers}

    @override
    def train_dataloader(self) -> TrainLoader:
        images, shard = self.data.images("probe").at(self.rows), self._shard()
        return TrainLoader(
            images, self.batch_size // shard["world_size"], seed=self.seed, epoch=self._current_epoch, **shard
        )

    def _current_epoch(self) -> int:
        assert self.trainer is not None
        return self.trainer.current_epoch

    @override
    def val_dataloader(self) -> EvaluationLoader:
        return self._clean("val")

    @override
    def test_dataloader(self) -> EvaluationLoader:
        return self._clean("test")

    def _clean(self, split: str) -> EvaluationLoader:
        return EvaluationLoader(self.data.images(split), self.data.batch_size, **self._shard())

    @override
    def on_after_batch_transfer(self, batch: Batch | TrainBatch, dataloader_idx: int) -> Batch | ViewsBatch:
        preprocess = self.data.preprocess
        if not is_for_training(batch):
            clean = preprocess.evaluate(batch["image"])
            return {"image": clean, "label": batch["label"], "index": batch["index"]}
        shard, key = self._shard(), (self.seed, batch["epoch"], batch["batch"])
        views = self.views(preprocess.resized(batch["image"]), key, shard["rank"], shard["world_size"])
        return {"views": views, "label": batch["label"], "index": batch["index"]}
