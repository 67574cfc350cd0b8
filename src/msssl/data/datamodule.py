"""`MultiViewDataModule`, the base class of all data modules: splits, loaders, and views made on the device."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from lightning import LightningDataModule
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from msssl.batch import Batch, Labelled, TrainBatch, ViewsBatch, is_for_training
from msssl.data.loaders import EvaluationLoader, TrainLoader, compare_global_batch
from msssl.data.pixels.images import Images
from msssl.data.pixels.item import formatted
from msssl.data.pixels.labels import labels_of
from msssl.data.pixels.pixel_format import ImageKind, PixelFormat
from msssl.data.pixels.storage import Storage, StorageKind, find_skipped
from msssl.data.predict import PredictLoader, PredictSplit, log_what_is_read
from msssl.data.splits import SPLITS, Part, make_splits, readable_rows
from msssl.data.splits import Split as Split
from msssl.data.statistics import find_window, mean_and_std
from msssl.distributed import rank_and_world_size
from msssl.errors import UserError
from msssl.run.reloadable import Reloadable
from msssl.views import MultiView, Preprocess
from msssl.views.preprocess import DType, Window, Windows, as_pairs, in_unit_range


class MultiViewDataModule(Reloadable, LightningDataModule, ABC):  # type: ignore[misc]  # as in modules
    """Batches for multi-view pretraining; subclasses implement `dataset(split)`.

    Images travel to the device as they are read, mostly as uint8; there, training batches become
    `{"views": (K, N, C, H, W) float32, "label": (N,) int64, "index": (N,) int64}` and evaluation batches
    `{"image": (N, C, H, W) float32 normalised, "label", "index"}`; label -1 means none. `index` is the position in
    `dataset(split)`. Order and views are functions of the seed of `seed_everything`, the epoch and the batch. A trainer
    does this by itself; a loop of one's own calls `make_views` on each batch of `train_dataloader()`, and its seed is
    the attribute `seed` (0).

    Args:
        data_dir: folder of the images.
        batch_size: N, images per device.
        num_workers: processes per device and loader that read images, at most the cores; 0 for none.
        views: how training images become views.
        fraction: share of the pretraining images to use, per class, in (0, 1]; nested: 0.25 is inside 0.5.
        val_fraction: share of the training images held out for validation where the set has no such split.
        split_seed: of `fraction` and `val_fraction`; not the seed of the run, so that runs share their splits.
        storage: where decoded images are kept. `memory`: decoded once, on the GPU where they take no more than a
            quarter of it; `cached`: a memory-mapped file, kept between runs; `stream`: decoded each time; `auto`:
            the first of these that fits. Images, order and views are the same.
        cache_dir: folder of the mapped files; by default `.msssl` in `data_dir`.
        on_error: what an unreadable image does: `stop` the run with its path, or be left out (`skip`).
        image_size: side in pixels of the squares that images become, the centre of each; by default they stay as they
            are.
        window: values that become black and white (0 and 1) in images of more than 8 bits: one pair, or a list with one
            for each channel. `auto`, the default, takes for each channel the values below which 0.1 % and 99.9 % of the
            training images' values are. Checkpoints keep it.
        channels: C, the number of channels. By default images of one channel are repeated to the three of RGB, and
            others stay as they are; 1 makes grey of RGB.
        dtype: `auto` keeps images of more than 8 bits as uint16 or float32, of two or four times the bytes; `uint8`
            reduces them to 8 bits by the window, which must be given then.

    Attributes:
        predict_split: which images `predict_dataloader` reads: those of `test`, of `val` (the images held out of the
            training set where it has no validation set), of `train` (the training set without the held-out images,
            whatever `fraction` is), or `all` of every set. None, the default: `test` where there is a test set,
            otherwise `all`.
    """

    def __init__(  # noqa: PLR0913  # each has its line in the documentation of the class
        self,
        data_dir: str = "data",
        batch_size: int = 256,
        num_workers: int = 2,
        views: MultiView | None = None,
        fraction: float = 1.0,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        storage: StorageKind = "auto",
        cache_dir: str | None = None,
        on_error: Literal["stop", "skip"] = "stop",
        image_size: int | None = None,
        window: Window | list[Window] | Literal["auto"] | None = None,
        channels: int | None = None,
        dtype: DType = "auto",
    ) -> None:
        super().__init__()
        self.save_plain_hyperparameters()
        self.data_dir = data_dir
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.views = views or MultiView()
        self.fraction = fraction
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.storage = storage
        self.cache_dir = cache_dir
        self.on_error = on_error
        self.image_size = image_size
        self.window = None if window is None or window == "auto" else _as_tuples(window)
        self.channels = channels
        self.dtype = dtype
        self.seed = 0
        self.predict_split: PredictSplit | None = None
        self.datasets: dict[str, Dataset[Any]] = {}
        self.splits: dict[str, Part] = {}
        self.skipped: dict[str, dict[int, str]] = {}  # why, by data set and position
        self.pretrained_on: Tensor | None = None  # positions in `dataset("train")` that the checkpoint's run saw
        self.pretrained_size: tuple[int, int] | None = None  # (H, W) of these images
        self._preprocess: Preprocess | None = None  # of the run that these images are prepared for, if of another one
        self._own_loader: TrainLoader | None = None  # of a loop without a trainer
        self._check_arguments()
        self._check_pixels()

    def _check_arguments(self) -> None:
        """Raise ValueError naming the first argument that is out of range."""
        if not 0 < self.fraction <= 1:
            raise UserError(f"fraction is {self.fraction}: expected a share in (0, 1]")
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"val_fraction is {self.val_fraction}: expected a share in [0, 1)")
        if self.batch_size < 2:
            raise UserError(f"batch_size is {self.batch_size}: the losses compare at least 2 images")
        if self.num_workers < 0:
            raise UserError(f"num_workers is {self.num_workers}: expected a number of processes, 0 for none")
        for name, known in (
            ("storage", get_args(StorageKind)),
            ("on_error", ("stop", "skip")),
            ("dtype", get_args(DType)),
        ):
            if (value := getattr(self, name)) not in known:
                raise UserError(f"{name} is {value!r}: expected one of {', '.join(known)}")

    def _check_pixels(self) -> None:
        """Raise ValueError for a side or number of channels below 1, or a window whose white is not above its black."""
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"image_size is {self.image_size}: expected pixels")
        if self.channels is not None and self.channels < 1:
            raise UserError(f"channels is {self.channels}: expected at least 1")
        pairs = () if self.window is None else as_pairs(self.window)
        if any(not low < high for low, high in pairs):
            raise UserError(f"window is {self.window}: expected the value that becomes black, and a larger one, white")
        if self.dtype == "uint8" and len(pairs) > 1:
            raise UserError(f"window has {len(pairs)} pairs: with dtype uint8 expected one for all channels")

    @abstractmethod
    def dataset(self, split: Split) -> Dataset[Any] | None:
        """Data set of (PIL image or tensor (C, H, W), integer label) pairs, or None if there is no such split.

        Rows `{"image", "label"}`, as Hugging Face's data sets have them, are taken too. Images of several sizes need
        `image_size`. Label -1 means none. Classes are counted and balanced by the data set's `targets` or `labels`,
        one integer an image, as torchvision has them, or a Hugging Face column `label`; without these it counts as
        unlabelled. It may have `groups` and `paths`, one string an image, `classes`, their names, and a `fingerprint`
        that names its content.
        """

    def probe_dataset(self) -> Dataset[Any] | None:
        """The labelled data set for the probes, if it is not the one to pretrain on, as for STL-10.

        Training batches then also contain some of its images, not augmented but normalised: `"probe": {"image":
        (N, C, H, W), "label": (N,)}`. `val_fraction` is held out of this data set; `fraction` does not apply to it.
        """
        return None

    @classmethod
    def from_datasets(  # type: ignore[override]
        cls,
        train_dataset: Dataset[Any],
        val_dataset: Dataset[Any] | None = None,
        test_dataset: Dataset[Any] | None = None,
        image_size: int | None = None,
        **kwargs: Any,
    ) -> "MultiViewDataModule":
        """A data module on data sets of one's own, which are as `dataset` describes them."""
        return FromDatasets(train_dataset, val_dataset, test_dataset, image_size, **kwargs)

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the labels, or None if there are none; known after `setup`."""
        labels = labels_of(self.splits["probe"].dataset) if self.splits else None
        return None if labels is None or labels.max() < 0 else int(labels.max()) + 1

    @override
    def setup(self, stage: str | None = None) -> None:
        if self.trainer is not None:  # ranks are seeded alike only if the user seeds them
            self.seed = self.trainer.strategy.broadcast(torch.initial_seed())
            self._prepare_as_the_module_saw(stage)
        if self.splits or (stage == "predict" and self.datasets):
            return
        cache_dir, skip = self.cache_dir or f"{self.data_dir}/.msssl", self.on_error == "skip"
        self.opened = Storage(self.storage, cache_dir, parallel=self.num_workers > 0, skip=skip, trainer=self.trainer)
        given: dict[str, Dataset[Any] | None] = {name: self.dataset(name) for name in SPLITS}
        given["probe"] = self.probe_dataset()
        datasets = {name: dataset for name, dataset in given.items() if dataset is not None}
        self._check_datasets(datasets)
        self.datasets = {name: formatted(dataset, name, self.pixel_format) for name, dataset in datasets.items()}
        self.skipped = {}
        if stage != "predict":  # which needs neither splits nor, perhaps, the other sets
            self._split()

    @property
    def pixel_format(self) -> PixelFormat:
        """What images become when they are read."""
        window: Any = self.window if self.dtype == "uint8" else None  # otherwise it is applied on the device
        return PixelFormat(self.image_size, self.channels, self.dtype, window)

    @property
    def _where(self) -> str:
        """How messages call this data module."""
        return f"{type(self).__name__} in {self.data_dir}"

    def _check_datasets(self, datasets: dict[str, Dataset[Any]]) -> None:
        """Raise ValueError where there are no training images, or a data set is empty or not map-style."""
        if "train" not in datasets:
            raise UserError(f"{self._where} has no train images")
        for name, dataset in datasets.items():
            if not hasattr(dataset, "__len__"):
                kind = type(dataset).__name__
                raise UserError(f"{name} of {self._where} is a {kind}: expected a data set with a length")
            if len(dataset) == 0:
                raise UserError(f"{self._where} has no {name} images")

    def _prepare_as_the_module_saw(self, stage: str | None) -> None:
        """Prepare images as the run did that a module is from, but for a fit, whose evaluation is that of its views."""
        if stage == "fit":
            self._preprocess = None
        elif (of_run := getattr(self.trainer.lightning_module, "preprocess", None)) is not None:  # type: ignore[union-attr]
            self.preprocess = of_run

    def _split(self) -> None:
        self._find_skipped(self.datasets)
        choice = {"fraction": self.fraction, "val_fraction": self.val_fraction}
        self.splits = make_splits(self.datasets, self.skipped, **choice, seed=self.split_seed)
        if self._needs_statistics:
            images = self.images("train")
            if self._needs_window(images.kind):
                self.window = find_window(images, self.num_workers)
            if self._needs_mean(images.kind):
                mean, std = mean_and_std(images, self.num_workers, self.window)
                self.views = self.views.with_statistics(mean, [value or 1.0 for value in std])  # of one value only

    @property
    def _needs_statistics(self) -> bool:
        """Whether window, mean or std are to be computed, as neither a checkpoint nor the user gave them."""
        if self.pretrained_on is not None or self._preprocess is not None:
            return False
        if self.views.automatic:
            return True
        kind = self.opened.kind_of(self.datasets["train"], "train")
        return self._needs_window(kind) or self._needs_mean(kind)

    def _needs_window(self, kind: ImageKind) -> bool:
        return kind.dtype != torch.uint8 and self.window is None

    def _needs_mean(self, kind: ImageKind) -> bool:
        return self.views.automatic or (self.views.by_default and kind.shape[0] != len(self.views.mean))

    def _find_skipped(self, names: Iterable[str]) -> None:
        if self.on_error == "skip":
            datasets = {name: self.datasets[name] for name in names if name not in self.skipped}
            self.skipped |= find_skipped(datasets, self.opened, **self._shard())

    def images(self, split: str) -> Images:
        """The images of `train`, `val`, `test` or `probe`, in their storage."""
        if not self.splits:
            raise RuntimeError(f"{type(self).__name__} is not set up: call setup() first")
        if split not in self.splits:
            raise UserError(f"{self._where} has no {split} images")
        return self._opened(self.splits[split])

    def _opened(self, part: Part) -> Images:
        opened = self.opened.open(part.dataset, part.name)
        return Images(opened, part.indices, part.name, self.opened.kind_of(part.dataset, part.name))

    def split_labels(self, split: str) -> Tensor:
        """Label (n,) of each image of `train`, `val`, `test` or `probe`, -1 for none; known after `setup`."""
        return self.splits[split].labels

    @property
    def labelled_apart(self) -> bool:
        """Whether the labelled images are another set than the one to pretrain on; known after `setup`."""
        return self.splits["probe"].dataset is not self.splits["train"].dataset

    @override
    def train_dataloader(self) -> TrainLoader:
        """Batches of uint8 images, of which `make_views` makes views.

        In a loop of one's own, without a trainer, each `iter` is the next epoch, in an order of its own. Such a loader
        is made once, so that a call in each epoch goes on likewise; its `state_dict` says where it is.
        """
        if self.trainer is None:
            self._own_loader = self._own_loader or self._train_loader(None)
            return self._own_loader
        trainer = self.trainer
        overfit = trainer.overfit_batches > 0  # type: ignore[attr-defined]
        return self._train_loader(lambda: trainer.current_epoch, same_order=overfit)

    def _train_loader(self, epoch: Callable[[], int] | None, same_order: bool = False) -> TrainLoader:
        return TrainLoader(
            self.images("train"),
            self.batch_size,
            seed=self.seed,
            epoch=epoch,
            probe=self.images("probe") if self.labelled_apart else None,
            same_order=same_order,
            **self._shard(),
        )

    @override
    def val_dataloader(self) -> EvaluationLoader | list[Any]:
        return self.evaluation_dataloader("val") if "val" in self.splits else []

    @override
    def test_dataloader(self) -> EvaluationLoader:
        return self.evaluation_dataloader("test")

    @override
    def predict_dataloader(self) -> PredictLoader:
        """Clean images of `predict_split`; the log says how many there are, and which."""
        split = self.predict_split or ("test" if "test" in self.datasets else "all")
        parts = [images for images in self._images_to_predict(split) if len(images)]
        log_what_is_read(parts, split, self.datasets, self.skipped, self._where)
        return PredictLoader([EvaluationLoader(images, self.batch_size, **self._shard()) for images in parts])

    def _images_to_predict(self, split: PredictSplit) -> list[Images]:
        if not self.splits and (split in ("train", "val") or self._needs_statistics):
            self._split()
        if split == "val" or (split == "train" and "probe" not in self.datasets):  # which depend on what is held out
            return [self.images("val" if split == "val" else "probe")]
        if split == "test" and "test" not in self.datasets:
            raise UserError(f"{self._where} has no test images")
        names = list(self.datasets) if split == "all" else [split]
        self._find_skipped(names)
        rows = {name: readable_rows(self.datasets[name], self.skipped.get(name, {})) for name in names}
        return [self._opened(Part(self.datasets[name], rows[name], name)) for name in names]

    def evaluation_dataloader(self, split: str, at_most: int | None = None, labelled: bool = False) -> EvaluationLoader:
        """Clean images of `val`, `test` or `probe` (the set to train a probe on, whatever `fraction` is).

        Args:
            split: one of these.
            at_most: so many, evenly spread; all by default.
            labelled: whether those without a label are left out.
        """
        images = self.images(split)
        if labelled:
            images = images.at(self.split_labels(split) >= 0)
        return EvaluationLoader(images.spread(at_most), self.batch_size, **self._shard())

    def _shard(self) -> dict[str, Any]:
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else rank_and_world_size()
        return {"rank": rank, "world_size": world_size, "num_workers": self.num_workers}

    @override
    def on_after_batch_transfer(self, batch: Batch | TrainBatch, dataloader_idx: int = 0) -> Batch | ViewsBatch:
        return self.make_views(batch)

    def make_views(self, batch: Batch | TrainBatch, device: torch.device | str | None = None) -> Batch | ViewsBatch:
        """What a loader's batch of uint8 images becomes, as the class says: views for training, normalised images else.

        A trainer calls it for each batch. In a loop of one's own it is the one call between the loader and the network.

        Args:
            batch: of one of the loaders of this data module.
            device: where the batch is moved to first, and the views are made; by default where it is.
        """
        if device is not None:
            batch = move_data_to_device(batch, torch.device(device))
        prepared = self._preprocess or self.views.preprocess(None, self.window, self.dtype)
        image, label, index = batch["image"], batch["label"], batch["index"]
        if not is_for_training(batch):
            return {"image": prepared.evaluate(image), "label": label, "index": index}
        self.pretrained_size, shard = (image.shape[-2], image.shape[-1]), self._shard()
        key = (self.seed, batch["epoch"], batch["batch"])
        views = self.views(in_unit_range(image, self.window), key, shard["rank"], shard["world_size"])
        made: ViewsBatch = {"views": views, "label": label, "index": index}
        if "probe" in batch:
            labelled = batch["probe"]
            made["probe"] = Labelled(image=prepared.evaluate(labelled["image"]), label=labelled["label"])
        return made

    @property
    def preprocess(self) -> Preprocess:
        """What evaluation does to an image; a checkpoint keeps it. Set it to prepare images as another run did."""
        if self._preprocess is not None:
            return self._preprocess
        if self.pretrained_size is None and self.splits:  # before the first step: that of an image
            self.pretrained_size = self.images("train").kind.shape[1:]
        return self.views.preprocess(self.pretrained_size, self.window, self.dtype)

    @preprocess.setter
    def preprocess(self, preprocess: Preprocess) -> None:
        self._preprocess = preprocess
        self.window = preprocess.window  # by which deeper images are read
        if preprocess.window is not None:
            self.dtype = preprocess.dtype
        if (channels := len(preprocess.mean)) != 3:
            self.channels = channels

    @override
    def state_dict(self) -> dict[str, Any]:
        seen = self.splits["train"].indices.int() if self.splits else self.pretrained_on
        statistics = {"mean": list(self.views.mean), "std": list(self.views.std), "window": self.window}
        of_run = {"seed": self.seed, "pretrained_on": seen, "pretrained_size": self.pretrained_size, **statistics}
        world_size = self._shard()["world_size"]
        shape = {"world_size": world_size, "global_batch": world_size * self.batch_size}
        return {**of_run, **shape, **super().state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seed = state_dict["seed"]  # a resumed run keeps its order and views
        self.pretrained_on = state_dict["pretrained_on"]
        size = state_dict.get("pretrained_size")
        self.pretrained_size = size and (size[0], size[1])
        self.views = self.views.with_statistics(state_dict["mean"], state_dict["std"])
        if self.hparams.get("window") in (None, "auto") and (window := state_dict.get("window")) is not None:
            self.window = _as_tuples(window)
        before = state_dict.get("global_batch")
        trainer = self.trainer
        if before is not None and trainer is not None and trainer.state.fn == "fit" and trainer.is_global_zero:
            compare_global_batch(self.batch_size * trainer.world_size, before)


def _as_tuples(window: Any) -> Windows:
    as_tuples: Windows = tuple(tuple(pair) if isinstance(pair, list | tuple) else pair for pair in window)
    return as_tuples


class FromDatasets(MultiViewDataModule):
    """Data sets of one's own; made by `MultiViewDataModule.from_datasets`."""

    def __init__(
        self,
        train_dataset: Dataset[Any],
        val_dataset: Dataset[Any] | None = None,
        test_dataset: Dataset[Any] | None = None,
        image_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size, **kwargs)
        self._given = {"train": train_dataset, "val": val_dataset, "test": test_dataset}

    @override
    def dataset(self, split: Split) -> Dataset[Any] | None:
        return self._given[split]
