"""The data module: splits, loaders, and views made on the device."""

import logging
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from torch.utils.data import Dataset
from typing_extensions import override

from msssl.checkpoint import Reloadable
from msssl.data.images import Images, labels_of
from msssl.data.loaders import EvaluationLoader, TrainLoader
from msssl.data.splits import make_splits
from msssl.views import MultiView

Split = Literal["train", "val", "test"]
log = logging.getLogger(__name__)


class MultiViewDataModule(Reloadable, LightningDataModule, ABC):  # type: ignore[misc]  # as in modules
    """Batches for multi-view pretraining; subclasses implement `dataset(split)`.

    Images travel to the device as uint8; there, training batches become
    `{"views": (K, N, C, H, W) float32, "label": (N,) int64, "index": (N,) int64}` and evaluation batches
    `{"image": (N, C, H, W) float32 normalised, "label", "index"}`; label -1 means none. `index` is the position in
    `dataset(split)`. Order and views are functions of the seed of `seed_everything`, the epoch and the batch.

    Args:
        data_dir: folder of the images.
        batch_size: N, images per device.
        num_workers: processes per device that read images.
        views: how training images become views.
        fraction: share of the pretraining images to use, per class, in (0, 1]; nested: 0.25 is inside 0.5.
        val_fraction: share of the training images held out for validation where the set has no such split.
        split_seed: of `fraction` and `val_fraction`; not the seed of the run, so that runs share their splits.
    """

    def __init__(
        self,
        data_dir: str = "data",
        batch_size: int = 256,
        num_workers: int = 2,
        views: MultiView | None = None,
        fraction: float = 1.0,
        val_fraction: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_plain_hyperparameters()
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is {fraction}: expected a share in (0, 1]")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction is {val_fraction}: expected a share in [0, 1)")
        if batch_size < 2:
            raise ValueError(f"batch_size is {batch_size}: the losses compare at least 2 images")
        self.data_dir = data_dir
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.views = views or MultiView()
        self.fraction = fraction
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.seed = 0
        self.splits: dict[str, Images] = {}

    @abstractmethod
    def dataset(self, split: Split) -> Dataset[Any] | None:
        """Data set of (PIL image or uint8 tensor (C, H, W), integer label) pairs, or None if there is no such split.

        All images have one size. Label -1 means none. Classes are counted and balanced by the data set's `targets` or
        `labels`, one integer an image, as torchvision has them; without these it counts as unlabelled.
        """

    def probe_dataset(self) -> Dataset[Any] | None:
        """Labelled set for the probes where it is not the one to pretrain on, as for STL-10.

        Training batches then carry some of its images, `"probe": {"image": (N, C, H, W), "label": (N,)}`, clean and
        normalised; `val_fraction` is held out of it, and `fraction` leaves it whole.
        """
        return None

    @classmethod
    def from_datasets(  # type: ignore[override]
        cls,
        train_dataset: Dataset[Any],
        val_dataset: Dataset[Any] | None = None,
        test_dataset: Dataset[Any] | None = None,
        **kwargs: Any,
    ) -> "FromDatasets":
        """A data module on data sets of one's own; `kwargs` are those of `MultiViewDataModule`."""
        return FromDatasets(train_dataset, val_dataset, test_dataset, **kwargs)

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the labels, or None if there are none; known after `setup`."""
        labels = labels_of(self.splits["probe"].dataset) if self.splits else None
        return None if labels is None or labels.max() < 0 else int(labels.max()) + 1

    @override
    def setup(self, stage: str | None = None) -> None:
        if self.trainer is not None:  # ranks are seeded alike only if the user seeds them
            self.seed = self.trainer.strategy.broadcast(torch.initial_seed())
        if not self.splits:
            self.splits = self._make_splits()

    def _make_splits(self) -> dict[str, Images]:
        train, val, test = (self.dataset(split) for split in ("train", "val", "test"))
        if train is None or len(train) == 0:  # type: ignore[arg-type]
            raise ValueError(f"{type(self).__name__} in {self.data_dir} has no training images")
        splits = make_splits(
            train,
            val,
            test,
            self.probe_dataset(),
            fraction=self.fraction,
            val_fraction=self.val_fraction,
            seed=self.split_seed,
        )
        told = {name: part for name, part in splits.items() if name in ("train", "val", "test", part.name)}
        log.info("images: %s", ", ".join(f"{len(part)} {name}" for name, part in told.items()))
        return splits

    @override
    def train_dataloader(self) -> TrainLoader:
        return TrainLoader(
            self.splits["train"],
            self.batch_size,
            seed=self.seed,
            epoch=lambda: self.trainer.current_epoch if self.trainer else 0,
            probe=None if self.splits["probe"].dataset is self.splits["train"].dataset else self.splits["probe"],
            **self._shard(),
        )

    @override
    def val_dataloader(self) -> EvaluationLoader | list[Any]:
        return self.evaluation_dataloader("val") if "val" in self.splits else []

    @override
    def test_dataloader(self) -> EvaluationLoader:
        return self.evaluation_dataloader("test")

    @override
    def predict_dataloader(self) -> EvaluationLoader:
        return self.evaluation_dataloader("test")

    def evaluation_dataloader(self, split: str) -> EvaluationLoader:
        """Clean images of `val`, `test` or `probe` (the labelled training images, whatever `fraction` is)."""
        if split not in self.splits:
            raise ValueError(f"{type(self).__name__} in {self.data_dir} has no {split} images")
        return EvaluationLoader(self.splits[split], self.batch_size, **self._shard())

    def _shard(self) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "rank": trainer.global_rank if trainer else 0,
            "world_size": trainer.world_size if trainer else 1,
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
        }

    @override
    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int = 0) -> dict[str, Any]:
        image = batch["image"]
        kept: dict[str, Any] = {name: batch[name] for name in ("label", "index")}
        if "epoch" not in batch:
            return {"image": self.views.evaluate(image), **kept}
        key = (self.seed, batch["epoch"], batch["batch"])
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if "probe" in batch:
            probe = batch["probe"]
            kept["probe"] = {"image": self.views.evaluate(probe["image"]), "label": probe["label"]}
        return {"views": self.views(image, key, rank, world_size), **kept}

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, **super().state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seed = state_dict["seed"]  # a resumed run keeps its order and views


class FromDatasets(MultiViewDataModule):
    """Data sets of one's own; made by `MultiViewDataModule.from_datasets`."""

    def __init__(
        self,
        train_dataset: Dataset[Any],
        val_dataset: Dataset[Any] | None = None,
        test_dataset: Dataset[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.datasets = {"train": train_dataset, "val": val_dataset, "test": test_dataset}

    @override
    def dataset(self, split: Split) -> Dataset[Any] | None:
        return self.datasets[split]
