"""What a probe evaluates: a checkpoint, the run that wrote it, and the images that it is evaluated on."""

import copy
import functools
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
import torchvision

import msssl
from msssl.data import MultiViewDataModule
from msssl.data.pixels.labels import class_names_of, fingerprint, strings_of
from msssl.errors import UserError
from msssl.evaluation import rebuild
from msssl.evaluation.probe.cross_validation import Folds, make_folds
from msssl.evaluation.probe.features import Encoder, Split, content_of, extract, load_or_extract
from msssl.evaluation.probe.heads import MIN_VAL
from msssl.methods import MultiViewModule
from msssl.run.files import read, sha256_of
from msssl.run.find import find
from msssl.views import Preprocess

SPLITS = ("probe", "val", "test")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A checkpoint with the images that it is evaluated on; made by `open_subject`, or without labels by `open_run`.

    Attributes:
        path: path of the checkpoint.
        sha256: fingerprint of this file.
        checkpoint: content of this file.
        preprocess: how images are prepared for evaluation.
        data: data module of the images that the checkpoint is evaluated on, set up.
        transferred: whether `data` was given for the probe, and is not that of the checkpoint's run.
        module: the pretrained module, in evaluation mode.
        model: the module as the user built it again, where the checkpoint cannot; its weights are not used.
    """

    path: Path
    sha256: str
    checkpoint: dict[str, Any]
    preprocess: Preprocess
    data: MultiViewDataModule
    transferred: bool
    module: MultiViewModule
    model: MultiViewModule | None = None

    @property
    def state(self) -> dict[str, Any]:
        """The state of the run's data module in the checkpoint; empty if that module is not one of msssl."""
        return rebuild.data_state(self.checkpoint)

    @property
    def n_pretrained_on(self) -> int | None:
        """The number of images that the run was pretrained on, where it is known."""
        indices = self.state.get("pretrained_on")
        return None if indices is None else len(indices)

    @property
    def splits(self) -> list[str]:
        """Those of `probe`, `val` and `test` that have labelled images."""
        return [name for name in SPLITS if self._n_labelled(name)]

    @property
    def num_classes(self) -> int:
        """The number of classes of the evaluated images."""
        number = self.data.num_classes
        assert number is not None  # `open_subject` saw to it
        return number

    @property
    def class_names(self) -> list[str]:
        """The names of the classes; their numbers where they have no names."""
        names = class_names_of(self.data.splits["probe"].dataset)
        return [str(name) for name in names or range(self.num_classes)]

    @functools.cached_property
    def contents(self) -> dict[str, str | None]:
        """The fingerprint of each split's images; kept, as it may be necessary to read all images for it."""
        return {name: content_of(self.data, name) for name in self.splits}

    def features(
        self,
        name: str | None,
        encoder: Encoder,
        data: MultiViewDataModule,
        device: str,
        n_patches: int = 1,
        seed: int = 0,
    ) -> dict[str, Split]:
        """Features and labels of each split, from the folder of the run where an earlier command has kept them.

        Args:
            name: what tells the encoder from others of the same checkpoint; None: its features are not kept.
            encoder: maps normalised images (N, C, H, W) to features (N, F); in evaluation mode, on `device`.
            data: the images, prepared as the encoder wants them.
            device: of the encoder.
            n_patches: V, see `extract`.
            seed: of the random views.
        """
        make = functools.partial(self.features_of, name, encoder, data, device, n_patches=n_patches, seed=seed)
        return {split: make(split, None if name is None else self.contents[split]) for split in self.splits}

    def features_of(
        self,
        name: str | None,
        encoder: Encoder,
        data: MultiViewDataModule,
        device: str,
        split: str,
        content: str | None,
        n_patches: int = 1,
        seed: int = 0,
    ) -> Split:
        """Features and labels of one split, whose images need no labels; its `content` is what `content_of` returns."""
        drawn = f"{n_patches} {seed} {self.data.batch_size}" if n_patches > 1 else ""
        key = content and f"{self.sha256} {name} {content} {data.preprocess.image_size} {device} {drawn}"
        make = functools.partial(extract, encoder, data, split, device, n_patches, seed)
        return load_or_extract(self.path.with_name("features"), key, make)

    def _n_labelled(self, split: str) -> int:
        return int((self.data.split_labels(split) >= 0).sum()) if split in self.data.splits else 0

    @functools.cached_property
    def folds(self) -> Folds | None:
        """Folds of the images of `probe` and `val`, where `val` has too few labels to choose hyperparameters on.

        None where `val` has enough labels, where fewer than two classes have two groups each, and where nothing is to
        be chosen because `val_fraction` is 0 and there is no `val`.
        """
        if self._n_labelled("val") >= MIN_VAL or ("val" not in self.data.splits and self.data.val_fraction == 0):
            return None
        names = [name for name in ("probe", "val") if name in self.splits]
        groups: list[str] = []
        has_groups = False
        for name in names:
            split = self.data.splits[name]
            of_dataset = strings_of(split.dataset, "groups")
            has_groups |= bool(of_dataset)
            groups += [of_dataset[i] if of_dataset else f"image {i} of {name}" for i in split.indices.tolist()]
        labels = torch.cat([self.data.split_labels(name) for name in names])
        return make_folds(labels, groups if has_groups else None)

    def check_measurable(self, what: str) -> None:
        """Raise ValueError if neither `test` nor `val` has labelled images, which `what` needs."""
        if {"val", "test"} & set(self.splits):
            return
        reason = "val_fraction is 0" if self.data.val_fraction == 0 else "there are too few to hold some out"
        data = f"{type(self.data).__name__} in {self.data.data_dir}"
        raise UserError(f"{what} needs labelled test or validation images, and {data} has none: {reason}")

    @property
    def began_from_weights(self) -> bool:
        """Whether the run started from given weights instead of random ones."""
        settings = self.checkpoint.get(MultiViewModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
        return settings.get("weights") is not None

    def with_random_weights(self) -> MultiViewModule:
        """The same network with random weights, drawn from a fixed seed, even where its run started from given ones."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            if self.model is None:
                return rebuild.build_module(self.path, self.checkpoint).eval()
            module = copy.deepcopy(self.model)
            for part in module.modules():
                if callable(reset := getattr(part, "reset_parameters", None)):
                    reset()
            return module.eval()

    def run(self) -> dict[str, Any]:
        """The settings of the run and what it cost, as plain data."""
        seconds = self.checkpoint.get("callbacks", {}).get("Timer", {}).get("time_elapsed", {}).get("train")
        settings = {
            "model": self.checkpoint.get(MultiViewModule.CHECKPOINT_HYPER_PARAMS_KEY, {}),
            "data": self.checkpoint.get(MultiViewDataModule.CHECKPOINT_HYPER_PARAMS_KEY, {}),
        }
        # The K of the run, not of the evaluated images; unknown if another library's data module made the views.
        n_views = self.preprocess.n_views if self.state else None
        global_batch = self.state.get("global_batch")
        n_batches: int = self.checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
        return {
            "method": settings["model"].get("_class_path"),
            "epochs": rebuild.epochs_of(self.checkpoint),
            "steps": self.checkpoint["global_step"],
            "minutes": None if seconds is None else seconds / 60,
            "images": self.n_pretrained_on,
            "n_views": n_views,
            "views_seen": None if n_views is None or global_batch is None else n_batches * int(global_batch) * n_views,
            "settings": settings,
        }

    def name_of_files(self, kind: str, data_id: str | None, *suffixes: str) -> str:
        """Name of the files of a report without ending: `kind` alone for the last checkpoint on the run's own data."""
        parts = [kind, *([] if self.path.stem == "last" else [self.path.stem])]
        if self.transferred:
            parts += [type(self.data).__name__, *([data_id[:8]] if data_id else [])]
        return "-".join([*parts, *suffixes])

    def provenance(self) -> dict[str, Any]:
        """What was evaluated on which images, with fingerprints of both and the versions of libraries, as plain data.

        `data_id` is the fingerprint of the images of all splits and their labels; None where they have none.
        """
        contents = list(self.contents.values())
        data_id = None if None in contents else hashlib.sha256("".join(map(str, contents)).encode()).hexdigest()[:16]
        return {
            "checkpoint": str(self.path),
            "sha256": self.sha256,
            "epoch": self.checkpoint["epoch"],
            "run": self.run(),
            "data_class": type(self.data).__name__,
            "data": {name: fingerprint(dataset) for name, dataset in self.data.datasets.items()},
            "data_id": data_id,
            "images": {split: len(self.data.splits[split]) for split in self.splits},
            "classes": self.class_names,
            "pretrained_on": self.n_pretrained_on,
            "transfer": self.transferred,
            "versions": {module.__name__: module.__version__ for module in (msssl, torch, torchvision, lightning)},
        }


def open_subject(
    ckpt_path: str,
    data: MultiViewDataModule | None = None,
    model: MultiViewModule | None = None,
    random_views: bool = False,
) -> Subject:
    """Load a checkpoint, and set up the data module of the labelled images that it is evaluated on.

    Args:
        ckpt_path: a checkpoint, the folder of a run, or `last` for the newest run.
        data: images to evaluate on, which are prepared as those of the pretraining were; by default those of the run.
        model: the module, built again, where the checkpoint does not hold all that is needed to build it.
        random_views: whether the probe needs the random views of the run, and not only clean images.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: an unreadable checkpoint, no labels, one class, or no labelled images to measure on.
    """
    subject = open_run(ckpt_path, data, model, random_views)
    where = f"{type(subject.data).__name__} in {subject.data.data_dir}"
    if subject.data.num_classes is None:
        raise UserError(f"{subject.path} cannot be probed: {where} has no labels, so there is nothing to tell apart")
    if subject.data.num_classes < 2:
        raise UserError(f"{subject.path} cannot be probed: {where} has one class")
    _check_splits(subject, where)
    return subject


def open_run(
    ckpt_path: str,
    data: MultiViewDataModule | None = None,
    model: MultiViewModule | None = None,
    random_views: bool = False,
) -> Subject:
    """Load a checkpoint, and set up the data module of images that need no labels; arguments as of `open_subject`."""
    path = find(ckpt_path)
    checkpoint = read(path)
    module = rebuild.module_of(path, checkpoint, copy.deepcopy(model)).eval()
    transferred = data is not None
    data = data or rebuild.data_of(path, checkpoint)
    _prepare_alike(path, checkpoint, data)
    if random_views:
        data.views = rebuild.views_of(path, checkpoint, data.preprocess)
    if data.preprocess.image_size is None and transferred:
        log.warning("%s does not say the size of its images: those of another set are not resized", path)
    data.prepare_data()
    data.setup()
    return Subject(path, sha256_of(path), checkpoint, data.preprocess, data, transferred, module, model)


def _prepare_alike(path: Path, checkpoint: dict[str, Any], data: MultiViewDataModule) -> None:
    """Make a data module prepare its images as the run of the checkpoint did, if the checkpoint says how."""
    if "preprocess" in checkpoint or MultiViewDataModule.CHECKPOINT_HYPER_PARAMS_KEY in checkpoint:
        data.preprocess = rebuild.preprocess_of(path, checkpoint)
    else:
        log.warning("%s does not say how images are normalised: they are as %s says", path, type(data).__name__)


def _check_splits(subject: Subject, where: str) -> None:
    """Raise ValueError without labelled images to fit on or to measure on; log which splits are left out."""
    if "probe" not in subject.splits:
        raise UserError(f"{subject.path} cannot be probed: {where} has no labels in probe")
    for split in ("val", "test"):
        if split in subject.data.splits and split not in subject.splits:
            log.warning("%s has no labels in %s: nothing is measured there", where, split)
    if subject.folds is None:
        subject.check_measurable("a probe")
