"""What a checkpoint holds, built again: the module, the data module, the views, and how images are prepared."""

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


def n_pretrained_on(state: dict[str, Any]) -> int | None:
    """How many images a run was pretrained on."""
    seen = state.get("pretrained_on")
    return None if seen is None else len(seen)
