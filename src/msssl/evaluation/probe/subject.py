"""What a probe measures: a checkpoint, the run that it is from, and the images that it is evaluated on."""

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
from torch import Tensor

import msssl
from msssl.data import MultiViewDataModule
from msssl.data.pixels.labels import class_names_of, fingerprint, strings_of
from msssl.errors import UserError
from msssl.evaluation.probe.cross_validation import Folds, make_folds
from msssl.evaluation.probe.features import content_of
from msssl.evaluation.probe.heads import MIN_VAL
from msssl.evaluation.rebuild import (
    build_module,
    data_of,
    data_state,
    epochs_of,
    module_of,
    n_pretrained_on,
    preprocess_of,
    views_of,
)
from msssl.methods import MultiViewModule
from msssl.run.files import read, sha256_of
from msssl.run.find import find
from msssl.views import Preprocess

SPLITS = ("probe", "val", "test")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A checkpoint and its surroundings; `open_subject` makes one.

    Attributes:
        path: of the checkpoint.
        sha256: of its file.
        checkpoint: its content.
        preprocess: what evaluation does to an image.
        data: what it is judged by.
        transferred: whether these images were named for the probe, and are not those of the checkpoint's run.
        module: the pretrained one, in evaluation mode.
        model: as its user built it again, where the checkpoint cannot; its weights may be any.
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
        """What the data module of the run keeps in a checkpoint; empty if it is not one of msssl."""
        return data_state(self.checkpoint)

    @property
    def splits(self) -> list[str]:
        """Those of `probe`, `val` and `test` that have labelled images."""
        return [name for name in SPLITS if name in self.data.splits and self._n_labelled(name)]

    @property
    def num_classes(self) -> int:
        """Of the images that it is judged by."""
        number = self.data.num_classes
        assert number is not None  # `open_subject` saw to it
        return number

    @property
    def class_names(self) -> list[str]:
        """Of the images that it is judged by; numbers where they have none."""
        given = class_names_of(self.data.splits["probe"].dataset)
        return [str(name) for name in given or range(self.num_classes)]

    @functools.cached_property
    def contents(self) -> dict[str, str | None]:
        """A name for the images of each split; found once, as it may read all of them."""
        return {name: content_of(self.data, name) for name in self.splits}

    def labels(self, split: str) -> Tensor:
        """Of the images of a split."""
        return self.data.split_labels(split)

    def _n_labelled(self, split: str) -> int:
        return int((self.labels(split) >= 0).sum()) if split in self.data.splits else 0

    @functools.cached_property
    def folds(self) -> Folds | None:
        """Folds of the images of `probe` and then `val`, where `val` has too few labels to choose by, else None.

        None as well where fewer than two classes have two groups, and where nothing is to be chosen: `val_fraction` is
        0, and there is no `val`.
        """
        if self._n_labelled("val") >= MIN_VAL or ("val" not in self.data.splits and self.data.val_fraction == 0):
            return None
        names = [name for name in ("probe", "val") if name in self.splits]
        groups: list[str] = []
        for name in names:
            part = self.data.splits[name]
            of_dataset = strings_of(part.dataset, "groups")
            groups += [of_dataset[i] if of_dataset else f"image {i} of {name}" for i in part.indices.tolist()]
        labels = torch.cat([self.labels(name) for name in names])
        has_groups = any(strings_of(self.data.splits[name].dataset, "groups") for name in names)
        return make_folds(labels, groups if has_groups else None)

    def check_measurable(self, what: str) -> None:
        """Raise ValueError where there are labelled images neither in `test` nor in `val`, which `what` needs."""
        if {"val", "test"} & set(self.splits):
            return
        reason = "val_fraction is 0" if self.data.val_fraction == 0 else "there are too few to hold some out"
        data = f"{type(self.data).__name__} in {self.data.data_dir}"
        raise UserError(f"{what} needs labelled test or validation images, and {data} has none: {reason}")

    @property
    def began_from_weights(self) -> bool:
        """Whether the run began from given weights instead of random ones."""
        settings = self.checkpoint.get(MultiViewModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
        return settings.get("weights") is not None

    def with_random_weights(self) -> MultiViewModule:
        """The same network with random weights, from a seed of its own, whatever its run began from."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            if self.model is None:
                return build_module(self.path, self.checkpoint).eval()
            module = copy.deepcopy(self.model)
            for part in module.modules():
                if callable(reset := getattr(part, "reset_parameters", None)):
                    reset()
            return module.eval()

    def run(self) -> dict[str, Any]:
        """What the run was and what it cost, as plain data."""
        epochs = epochs_of(self.checkpoint)
        clock = self.checkpoint.get("callbacks", {}).get("Timer", {}).get("time_elapsed", {}).get("train")
        settings = {
            "model": self.checkpoint.get(MultiViewModule.CHECKPOINT_HYPER_PARAMS_KEY, {}),
            "data": self.checkpoint.get(MultiViewDataModule.CHECKPOINT_HYPER_PARAMS_KEY, {}),
        }
        return {
            "method": settings["model"].get("_class_path"),
            "epochs": epochs,
            "steps": self.checkpoint["global_step"],
            "minutes": None if clock is None else clock / 60,
            "images": n_pretrained_on(self.state),
            "n_views": self._n_views,
            "views_seen": self._views_seen(),
            "settings": settings,
        }

    @property
    def _n_views(self) -> int | None:
        """K of the run, not of the images that it is judged by; None if a data module of another library made views."""
        return self.preprocess.n_views if self.state else None

    def _views_seen(self) -> int | None:
        global_batch, n_views = self.state.get("global_batch"), self._n_views
        if global_batch is None or n_views is None:
            return None
        n_batches: int = self.checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
        return n_batches * int(global_batch) * n_views

    def provenance(self) -> dict[str, Any]:
        """Fingerprints of checkpoint and images, seeds and versions, as plain data.

        `data_id` names the images of all splits and their labels; None where there is no way to tell.
        """
        contents = list(self.contents.values())
        told = None if None in contents else hashlib.sha256("".join(map(str, contents)).encode()).hexdigest()[:16]
        return {
            "checkpoint": str(self.path),
            "sha256": self.sha256,
            "epoch": self.checkpoint["epoch"],
            "run": self.run(),
            "data_class": type(self.data).__name__,
            "data": {name: fingerprint(dataset) for name, dataset in self.data.datasets.items()},
            "data_id": told,
            "images": {split: len(self.data.splits[split]) for split in self.splits},
            "classes": self.class_names,
            "pretrained_on": n_pretrained_on(self.state),
            "transfer": self.transferred,
            "versions": {module.__name__: module.__version__ for module in (msssl, torch, torchvision, lightning)},
        }


def open_subject(
    ckpt_path: str,
    data: MultiViewDataModule | None = None,
    model: MultiViewModule | None = None,
    random_views: bool = False,
) -> Subject:
    """A checkpoint and its images, set up.

    Args:
        ckpt_path: a checkpoint, the folder of a run, or `last` for the newest run.
        data: images to judge it by, prepared as those that it was pretrained on; by default these.
        model: the module, built again where the checkpoint cannot do so.
        random_views: whether the random views of the run are needed, and not only clean images.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: an unreadable checkpoint, no labels, one class, or no labelled images to measure on.
    """
    path = find(ckpt_path)
    checkpoint = read(path)
    module = module_of(path, checkpoint, copy.deepcopy(model)).eval()
    transferred = data is not None
    data = data or data_of(path, checkpoint)
    _prepare_alike(path, checkpoint, data)
    if random_views:
        data.views = views_of(path, checkpoint, data.preprocess)
    if data.preprocess.image_size is None and transferred:
        log.warning("%s does not say the size of its images: those of another set are not resized", path)
    data.prepare_data()
    data.setup()
    where = f"{type(data).__name__} in {data.data_dir}"
    if data.num_classes is None:
        raise UserError(f"{path} cannot be probed: {where} has no labels, so there is nothing to tell apart")
    if data.num_classes < 2:
        raise UserError(f"{path} cannot be probed: {where} has one class")
    subject = Subject(path, sha256_of(path), checkpoint, data.preprocess, data, transferred, module, model)
    _check_splits(subject, where)
    return subject


def _prepare_alike(path: Path, checkpoint: dict[str, Any], data: MultiViewDataModule) -> None:
    """Have a data module prepare images as the run of a checkpoint did, where msssl prepared them there."""
    if "preprocess" in checkpoint or MultiViewDataModule.CHECKPOINT_HYPER_PARAMS_KEY in checkpoint:
        data.preprocess = preprocess_of(path, checkpoint)
    else:
        log.warning("%s does not say how images are normalised: they are as %s says", path, type(data).__name__)


def _check_splits(subject: Subject, where: str) -> None:
    """Raise ValueError where there are no labelled images to fit on or to measure on; log which splits are left out."""
    if "probe" not in subject.splits:
        raise UserError(f"{subject.path} cannot be probed: {where} has no labels in probe")
    for split in ("val", "test"):
        if split in subject.data.splits and split not in subject.splits:
            log.warning("%s has no labels in %s: nothing is measured there", where, split)
    if subject.folds is None:
        subject.check_measurable("a probe")
