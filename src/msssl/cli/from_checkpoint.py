"""What `validate`, `test` and `predict` take from the checkpoint, whatever a config says: network and preprocessing."""

import logging
from pathlib import Path
from typing import Any

from torch import nn

from msssl.data import MultiViewDataModule
from msssl.errors import UserError
from msssl.evaluation.rebuild import build_module, data_of, preprocess_of
from msssl.methods import MultiViewModule
from msssl.run.reloadable import first_difference

log = logging.getLogger(__name__)

_NETWORK = ("backbone", "proj_dim", "proj_hidden_dim", "proj_layers", "feature_dim")


def module_of(path: Path, checkpoint: dict[str, Any], config: dict[str, Any] | None) -> MultiViewModule | None:
    """The module that a checkpoint was written with, still without its weights.

    Args:
        path: of the checkpoint, for messages.
        checkpoint: its content.
        config: of the module that is asked for; the log says which of its settings the checkpoint replaces.

    Returns:
        None where the checkpoint does not say how its module is built, and the config has to.

    Raises:
        ValueError: neither says it.
    """
    try:
        module = build_module(path, checkpoint)
    except ValueError:
        if config is None:
            raise
        return None
    if config is not None and (ignored := _differences(checkpoint, config)):
        log.info("%s brings its own network; ignored of the config: %s", path, ", ".join(ignored))
    return module


def own_data_of(path: Path, checkpoint: dict[str, Any]) -> MultiViewDataModule:
    """The data module of a checkpoint's run, not set up; ValueError where it does not say how that is built."""
    try:
        return data_of(path, checkpoint)
    except ValueError as error:
        raise UserError(
            f"{error}; or name other images, such as --data msssl.ImageFolder --data.data_dir FOLDER"
        ) from error


def prepare_alike(path: Path, checkpoint: dict[str, Any], data: MultiViewDataModule) -> None:
    """Have a data module prepare its images as the run of a checkpoint did; a warning where it is not known how."""
    try:
        preprocess = preprocess_of(path, checkpoint)
    except ValueError as error:
        log.warning("%s; mean and std are taken from the config", error)
        return
    if data.window not in (None, preprocess.window):
        log.warning("window %s is ignored: %s was trained with %s", data.window, path, preprocess.window)
    data.preprocess = preprocess


def check_weights(path: Path, checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Raise ValueError, which names the first of them, where the weights of a checkpoint do not fit a module."""
    if (difference := first_difference(checkpoint["state_dict"], module.state_dict())) is not None:
        name, in_file, in_module = difference
        raise UserError(
            f"{path} holds another network than the {type(module).__name__} that was built: {name} has shape "
            f"{in_file} in the file and {in_module} in the network (None: it is not there)"
        )


def _differences(checkpoint: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Keys of a config that would make another network than that of a checkpoint."""
    saved = checkpoint[MultiViewModule.CHECKPOINT_HYPER_PARAMS_KEY]
    given = config.get("init_args", {})
    differing = [name for name in _NETWORK if name in given and name in saved and given[name] != saved[name]]
    return [f"model.{name}" for name in differing]
