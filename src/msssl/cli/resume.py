"""Checks which settings may change when a run is resumed, logs the changes, and saves the config of a run."""

import logging
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from torch import Tensor, nn
from typing_extensions import override

from msssl.errors import UserError
from msssl.run.files import CONFIG, read, write_text
from msssl.run.reloadable import defaults_of, first_difference

log = logging.getLogger(__name__)

_OF_THE_RUN = ("seed_everything", "model.init_args.weights", "last_checkpoint.dirpath")  # chosen when it began
_OPTIMIZER = "model.init_args.optimizer"
_STATE = (  # theirs is in the checkpoint
    f"{_OPTIMIZER}.class_path",
    f"{_OPTIMIZER}.init_args.fused",
    f"{_OPTIMIZER}.init_args.capturable",
    f"{_OPTIMIZER}.init_args.amsgrad",
    f"{_OPTIMIZER}.init_args.centered",
    "model.init_args.decay_bias_and_norm",
    "model.init_args.backbone_lr_scale",
    "model.init_args.lr_scheduler",
)
_SCHEDULE = "model.init_args.lr_scheduler.init_args."
_FREE = tuple(f"{_SCHEDULE}{name}" for name in ("warmup", "final"))  # of `WarmupCosine`, whose state leaves them out


def saved_config(ckpt_path: str | Path) -> dict[str, Any] | None:
    """The config of the run in whose folder a checkpoint is, or None for a file elsewhere."""
    path = Path(ckpt_path).with_name(CONFIG)
    if not path.is_file():
        return None
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    return config


def go_on(ckpt_path: str | Path, config: dict[str, Any], module: nn.Module) -> tuple[int, bool]:
    """Compare a config with that of the run that a checkpoint is of, and log what has changed.

    Args:
        ckpt_path: a file; a `config.yaml` beside it is that of its run.
        config: of the run that goes on, plain.
        module: built from it.

    Returns:
        The number of steps that the run has taken, and whether it goes on in its folder: not if another root is given.

    Raises:
        ValueError: naming the key of a change that cannot be: of a shape, or of what the checkpoint holds the state of.
    """
    checkpoint = read(ckpt_path)
    missing = [name for name in ("global_step", "loops", "optimizer_states") if name not in checkpoint]
    if missing:
        raise UserError(
            f"ckpt_path {ckpt_path} holds no {missing[0]}, only weights: begin a run with them by --model.weights"
        )
    saved = saved_config(ckpt_path)
    changed = {} if saved is None else changes(saved, config)
    root = changed.pop("trainer.default_root_dir", None)
    elsewhere = root is not None and Path(root[1] or "runs").resolve() != Path(ckpt_path).resolve().parents[1]
    _check(changed, checkpoint["state_dict"], module.state_dict())
    if changed:
        listed = (f"{_flag(key)} {old} -> {new}" for key, (old, new) in sorted(changed.items()))
        log.info("changed: %s", ", ".join(listed))
    return int(checkpoint["global_step"]), saved is not None and not elsewhere


class SaveConfig(SaveConfigCallback):
    """Saves the resolved config in the run's folder, wherever the logger writes, once the run is sure to start."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: a flag with which a run cannot go on must not stay in its config."""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, "fit")

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not (Path(trainer.default_root_dir) / CONFIG).is_file():  # it had no step to take
            self.save_config(trainer, pl_module, "fit")

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = self.config.clone()
        config["ckpt_path"] = None  # used once: the saved config must not resume again
        text = self.parser.dump(config, skip_unset=False, skip_validation=True)  # it was validated when it was parsed
        write_text(Path(trainer.default_root_dir) / CONFIG, text)


def changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ between two configs, dotted, with both values.

    An argument that the older config lacks, since the class did not have it yet, counts as its default.

    >>> changes({"trainer": {"max_epochs": 2, "devices": 1}}, {"trainer": {"max_epochs": 3, "devices": 1}})
    {'trainer.max_epochs': (2, 3)}
    >>> old = {"model": {"class_path": "msssl.ResNet", "init_args": {"width": 8}}}
    >>> changes(old, {"model": {"class_path": "msssl.ResNet", "init_args": {"width": 8, "in_channels": 3}}})
    {}
    """
    before, after = dict(flat(old)), dict(flat(new))
    before |= {key: value for key, value in after.items() if key not in before and _is_default(after, key)}
    return {
        key: (before.get(key), after.get(key))
        for key in before.keys() | after.keys()
        if before.get(key) != after.get(key) and key != "ckpt_path"
    }


def _is_default(config: dict[str, Any], key: str) -> bool:
    """Whether the value of a dotted key is the default of an argument of the class that the config names there."""
    owner, _, name = key.rpartition(".init_args.")
    class_path = config.get(f"{owner}.class_path")
    target = None if class_path is None else pkgutil.resolve_name(class_path)
    if not isinstance(target, type):  # a function can stand there too
        return False
    default = defaults_of(target).get(name)
    return bool(config[key] == (list(default) if isinstance(default, tuple) else default))


def _check(changed: dict[str, tuple[Any, Any]], saved: dict[str, Tensor], built: dict[str, Tensor]) -> None:
    for key, (old, new) in sorted(changed.items()):
        if key in _OF_THE_RUN or (key.startswith(_STATE) and key not in _FREE):
            raise UserError(f"{_flag(key)} is {new}, but the run that goes on has {old}: leave it, or start a new run")
    if (difference := first_difference(saved, built)) is not None:
        name, of_checkpoint, of_network = difference
        given = [f"{_flag(key)} {new} (it was {old})" for key, (old, new) in changed.items() if "model." in key]
        reason = f"with {', '.join(sorted(given))}, " if given else ""
        raise UserError(
            f"{reason}{name} has shape {of_network}, but {of_checkpoint} in the checkpoint: "
            "leave it, or start a new run"
        )


def _flag(key: str) -> str:
    return "--" + key.replace(".init_args", "")


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of a nested dictionary by dotted keys."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value
