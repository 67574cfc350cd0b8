"""Builds again what a checkpoint describes: the module, the data module, the views, and how images are prepared."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msssl.data import MultiViewDataModule
from msssl.errors import UserError
from msssl.methods import MultiViewModule
from msssl.run.reloadable import MissingArgumentsError, load_state
from msssl.views import MultiView, Preprocess

PATHS = ("data_dir", "cache_dir", "manifest", "classes")  # arguments of data modules that may be paths
log = logging.getLogger(__name__)


def epochs_of(checkpoint: dict[str, Any]) -> int:
    """Number of epochs that were complete when a checkpoint was written, including one that was just ending."""
    loop = checkpoint["loops"]["fit_loop"]
    progress, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
    under_way = progress["ready"] > progress["completed"]
    return int(progress["completed"] + (under_way and batches["is_last_batch"]))


def preprocess_of(path: Path, checkpoint: dict[str, Any]) -> Preprocess:
    """How images are prepared for evaluation, from the content of a checkpoint.

    Raises:
        ValueError: the checkpoint does not say so, because its run used a data module of another library, or because
            version 0.1 wrote it and its data module cannot be built again. The message names the file.
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
    """The data module of a checkpoint's run, not set up.

    Arguments named in `without` keep their defaults.

    Raises:
        ValueError: the checkpoint does not say where its images are; the message names the file.
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
    """The relative paths among a data module's arguments, as absolute paths below the run's working directory.

    Only those that exist there are returned, and none where the command runs in that same directory.
    """
    began_in = checkpoint.get("working_dir")
    if began_in is None or Path(began_in) == Path.cwd():
        return {}
    existing = {}
    for name in PATHS:
        path = arguments.get(name)
        if isinstance(path, str) and not Path(path).is_absolute() and Path(began_in, path).exists():
            existing[name] = str(Path(began_in, path))
            log.info("%s: %s, as the run began in %s", name, existing[name], began_in)
    return existing


def views_of(path: Path, checkpoint: dict[str, Any], preprocess: Preprocess) -> MultiView:
    """The random views that the run of a checkpoint trained on.

    Raises:
        ValueError: they cannot be built again; the message names the file.
    """
    key = MultiViewDataModule.CHECKPOINT_HYPER_PARAMS_KEY
    saved = checkpoint.get(key, {})
    arguments = {name: saved[name] for name in ("views", "_instantiator") if name in saved}
    recorded = [name for name in saved.get("_recorded", []) if name == "views"]
    # Any data module builds the views from these arguments; `Shapes` needs no files.
    arguments |= {"_recorded": recorded, "_class_path": "msssl.Shapes"}
    views = MultiViewDataModule.from_hyperparameters({key: arguments}).views
    size = preprocess.image_size
    if size is None or tuple(views.recipe(size)) != preprocess.recipe:  # they were of another library's augmentations
        raise UserError(
            f"{path} does not hold the views of its run, which features of test_patches are averaged over: leave out "
            "test_patches, or give it as 1"
        )
    return views.with_statistics(preprocess.mean, preprocess.std)


def build_module(path: Path, checkpoint: dict[str, Any]) -> MultiViewModule:
    """The module of a checkpoint without its weights, optimizer and schedule.

    Raises:
        ValueError: a checkpoint cannot hold the objects that the module was built with; the message names them.
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
    """The module of a checkpoint with its weights; they are loaded into `model` if it is given.

    Raises:
        ValueError: the weights do not fit, or the module cannot be built; the message names the file.
    """
    module = model or build_module(path, checkpoint)
    try:
        load_state(module, checkpoint)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return module


def data_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The state of the run's data module in a checkpoint, under the name of its class; empty if it has none."""
    saved = checkpoint.get(MultiViewDataModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
    parts = saved.get("_class_path", "").split(".")
    names = (".".join(parts[start:]) for start in range(len(parts)))  # its module and its name, of unknown lengths
    return next((checkpoint[name] for name in names if name in checkpoint), {})
