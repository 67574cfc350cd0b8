"""What a report is about: a checkpoint, the run that it is of, and the images that it is judged by."""

import copy
import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
import torchvision
from torch import Tensor

import msssl
from msssl.data import MultiViewDataModule
from msssl.data.pixels.cache import fingerprint
from msssl.data.pixels.images import class_names_of, strings_of
from msssl.errors import UserError
from msssl.evaluation.probe.cross_validation import Folds, make_folds
from msssl.evaluation.probe.features import content_of
from msssl.evaluation.probe.heads import MIN_VAL
from msssl.methods import MultiViewModule
from msssl.run.files import read, sha256_of
from msssl.run.find import find
from msssl.run.reloadable import MissingArgumentsError, load_state
from msssl.views import MultiView, Preprocess

SPLITS = ("probe", "val", "test")
PATHS = ("data_dir", "cache_dir", "manifest", "classes")  # arguments of data modules that may be paths
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
            "images": _n_seen(self.state),
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
            "pretrained_on": _n_seen(self.state),
            "transfer": self.transferred,
            "versions": {module.__name__: module.__version__ for module in (msssl, torch, torchvision, lightning)},
        }


def epochs_of(checkpoint: dict[str, Any]) -> int:
    """Epochs that a checkpoint has behind it; the one that it was written at the end of counts."""
    loop = checkpoint["loops"]["fit_loop"]
    progress, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
    under_way = progress["ready"] > progress["completed"]
    return int(progress["completed"] + (under_way and batches["is_last_batch"]))


def preprocess_of(path: Path, checkpoint: dict[str, Any]) -> Preprocess:
    """What evaluation does to an image, as the content of a checkpoint says.

    Raises:
        ValueError: naming the file, where it does not say so: its run used a data module of another library, or it is
            of version 0.1 and its data module cannot be built again.
    """
    if "preprocess" in checkpoint:
        return Preprocess.from_dict(checkpoint["preprocess"])
    if MultiViewDataModule.CHECKPOINT_HYPER_PARAMS_KEY not in checkpoint:
        raise UserError(
            f"{path} does not say how images are normalised: its run had no data module of msssl. Build one of them in "
            "Python, with the mean and std of your images, for the run"
        )
    return data_of(path, checkpoint, without=()).preprocess  # as version 0.1 wrote it


def data_of(path: Path, checkpoint: dict[str, Any], without: Sequence[str] = ("views",)) -> MultiViewDataModule:
    """The data module that a checkpoint was written with; not set up, and of the views the default ones.

    Raises:
        ValueError: naming the file, where its images cannot be known from it.
    """
    names = ["a data module of another library"]
    saved = checkpoint.get(MultiViewDataModule.CHECKPOINT_HYPER_PARAMS_KEY)
    if saved is not None:
        try:
            paths: dict[str, Any] = paths_where_it_began(checkpoint, saved)
            data = MultiViewDataModule.from_checkpoint(checkpoint, without=without, **paths)
            if "data_dir" not in saved:  # the default
                data.data_dir = paths_where_it_began(checkpoint, vars(data)).get("data_dir", data.data_dir)
            return data
        except MissingArgumentsError as error:
            names = error.names
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error
    raise UserError(
        f"{path} does not say where its images are, as they were given in Python ({', '.join(names)}): name images by "
        f"--config OTHER.yaml or --data, or in Python by msssl.probe({str(path)!r}, data=...)"
    )


def paths_where_it_began(checkpoint: dict[str, Any], arguments: Mapping[str, Any]) -> dict[str, str]:
    """The relative paths among a data module's arguments, made absolute if they exist where the run began.

    Paths are left as they are where the command runs in the same directory, or where nothing is there any more.
    """
    began_in = checkpoint.get("working_dir")
    if began_in is None or Path(began_in) == Path.cwd():
        return {}
    given = {name: arguments[name] for name in PATHS if isinstance(arguments.get(name), str)}
    found = {name: str(Path(began_in, path)) for name, path in given.items() if not Path(path).is_absolute()}
    found = {name: path for name, path in found.items() if Path(path).exists()}
    for name, path in found.items():
        log.info("%s: %s, as the run began in %s", name, path, began_in)
    return found


def views_of(path: Path, checkpoint: dict[str, Any], preprocess: Preprocess) -> MultiView:
    """The random views that a checkpoint was trained on.

    Raises:
        ValueError: naming the file, where they cannot be built again.
    """
    key = MultiViewDataModule.CHECKPOINT_HYPER_PARAMS_KEY
    saved = checkpoint.get(key, {})
    given = {name: saved[name] for name in ("views", "_instantiator") if name in saved}
    recorded = [name for name in saved.get("_recorded", []) if name == "views"]
    # Any data module builds views of these arguments: this one has images at hand.
    standing_in = {**given, "_recorded": recorded, "_class_path": "msssl.Shapes"}
    views = MultiViewDataModule.from_hyperparameters({key: standing_in}).views
    size = preprocess.image_size
    if size is None or tuple(views.recipe(size)) != preprocess.recipe:  # they were of another library's augmentations
        raise UserError(
            f"{path} does not hold the views of its run, which features of test_patches are averaged over: leave out "
            "test_patches, or give it as 1"
        )
    views.normalize_by(preprocess.mean, preprocess.std)
    return views


def build_module(path: Path, checkpoint: dict[str, Any]) -> MultiViewModule:
    """The module that a checkpoint names, without its weights; how it learned does not matter.

    Raises:
        ValueError: naming the file, and what its module was built with that no checkpoint can hold.
    """
    try:
        return MultiViewModule.from_hyperparameters(checkpoint, without=("optimizer", "lr_scheduler"))
    except MissingArgumentsError as error:
        flags = " ".join(f"--model.{name}.class_path FILE.CLASS" for name in error.names)
        raise UserError(
            f"{path} does not hold the {', '.join(error.names)} that {error.owner} was built with in Python: build it "
            f"again, by --model {error.owner} {flags}, or in Python by model={error.owner}(...)"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def module_of(path: Path, checkpoint: dict[str, Any], model: MultiViewModule | None = None) -> MultiViewModule:
    """The module of a checkpoint, or one that was built again for it, with its weights; ValueError naming the file."""
    module = model or build_module(path, checkpoint)
    try:
        load_state(module, checkpoint)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return module


def data_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What the data module of the run keeps in a checkpoint, under the name of its class; empty if it kept nothing."""
    given = checkpoint.get(MultiViewDataModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
    parts = given.get("_class_path", "").split(".")
    names = (".".join(parts[start:]) for start in range(len(parts)))  # its module and its name, of unknown lengths
    return next((checkpoint[name] for name in names if name in checkpoint), {})


def _n_seen(state: dict[str, Any]) -> int | None:
    """How many images a run was pretrained on."""
    seen = state.get("pretrained_on")
    return None if seen is None else len(seen)


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
