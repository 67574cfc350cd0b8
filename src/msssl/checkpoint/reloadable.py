"""Hyperparameters that load again, from classes that are trusted."""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import torch
import yaml
from lightning import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin, _given_hyperparameters
from lightning.pytorch.utilities.parsing import collect_init_args

from msssl.checkpoint.files import read

TRUSTED = ("msssl", "torch", "torchvision", "timm", "kornia")
_PLAIN = (str, int, float, bool, type(None))
_LEFT_OUT = "_left_out"


class Reloadable(HyperparametersMixin):
    """A class whose checkpoints hold its arguments as plain data, its class and the names of the other arguments."""

    CHECKPOINT_HYPER_PARAMS_KEY: str

    def save_plain_hyperparameters(self) -> None:
        """Call it in the base class's `__init__`: records the arguments of the class that is being built."""
        frame = inspect.stack(context=0)[1].frame
        if _given_hyperparameters.get():  # built by the CLI, which gives plain data
            self.save_hyperparameters(frame=frame)
            return
        levels = collect_init_args(frame, [], classes=(HyperparametersMixin,))
        arguments = levels[-1]  # of the class that is being built: what it gives its bases is its own affair
        other = [name for name, value in arguments.items() if not _is_plain(value)]
        inner = {name for level in levels for name in level} - arguments.keys()
        self.save_hyperparameters(ignore=[*other, *inner], frame=frame)
        defaults = _defaults(type(self))
        self.hparams["_class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        paths = [name for name in other if isinstance(arguments[name], Path)]
        self.hparams.update({name: str(arguments[name]) for name in paths})
        given = [name for name in other if name not in paths and arguments[name] is not defaults.get(name)]
        self.hparams[_LEFT_OUT] = given

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: str | Path, map_location: str | torch.device = "cpu", strict: bool = True, **kwargs: Any
    ) -> Self:
        """Rebuild the object that a checkpoint holds, of this class or the subclass that it names.

        Args:
            checkpoint_path: a file written during training.
            map_location: device of the rebuilt module.
            strict: whether the names of its parameters must be those of the checkpoint.
            **kwargs: arguments that replace those in the checkpoint.

        Raises:
            ValueError: an unreadable file, a class that is not trusted, or arguments that were not plain data (a
                module or function built in Python) and are not given again; the message names them.
        """
        loaded: Any = cls.from_checkpoint(read(checkpoint_path), strict, **kwargs)
        if isinstance(loaded, LightningModule):
            loaded.to(torch.device(map_location))
        return loaded  # type: ignore[no-any-return]

    @classmethod
    def from_checkpoint(cls, checkpoint: dict[str, Any], strict: bool = True, **kwargs: Any) -> Self:
        """Build the object that a checkpoint's content names, with its state, on the CPU."""
        loaded: Any = cls.from_hyperparameters(checkpoint, **kwargs)
        if isinstance(loaded, LightningModule):
            loaded.on_load_checkpoint(checkpoint)
            loaded.load_state_dict(checkpoint["state_dict"], strict=strict)
        elif type(loaded).__qualname__ in checkpoint:  # where Lightning keeps the state of a data module
            loaded.load_state_dict(checkpoint[type(loaded).__qualname__])
        return loaded  # type: ignore[no-any-return]

    @classmethod
    def from_hyperparameters(cls, checkpoint: dict[str, Any], **kwargs: Any) -> Self:
        """Build the object that a checkpoint names, without its state."""
        given = dict(checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {}))
        class_path = given.pop("_class_path", None)
        from_cli = given.pop("_instantiator", None) is not None
        missing = [name for name in given.pop(_LEFT_OUT, []) if name not in kwargs]
        for path in _class_paths([class_path, given]):
            _check_trusted(path)
        target = cls if class_path is None else _resolve(class_path)
        if not (isinstance(target, type) and issubclass(target, cls)):
            raise ValueError(f"the checkpoint holds a {class_path}, not a {cls.__name__}")
        if inspect.isabstract(target):
            raise ValueError(f"the checkpoint does not say which {cls.__name__} it was made with")
        if missing:
            names = ", ".join(missing)
            raise ValueError(f"{target.__name__} was built in Python with {names}: give the same again, by keyword")
        given.update(kwargs)
        if from_cli:
            from lightning.pytorch.cli import instantiate_module  # a second of imports, for this only

            built: Self = instantiate_module(target, {"_class_path": class_path, **given})
            return built
        return target(**given)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return type(value) in _PLAIN


def _defaults(cls: type) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            defaults.update({each.name: each.default for each in parameters})
    return defaults


def _class_paths(value: Any) -> Iterator[str]:
    """Every string that jsonargparse could take for a class: dotted names, also inside YAML in a string."""
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _class_paths(item)
    elif isinstance(value, str):
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            return
        if not isinstance(parsed, str):
            yield from _class_paths(parsed)
        elif re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", parsed) and _exists(parsed.partition(".")[0]):
            yield parsed


def _exists(package: str) -> bool:
    return package in sys.modules or find_spec(package) is not None


def _check_trusted(class_path: str) -> None:
    """A checkpoint from elsewhere must not import, hence run, whatever it names."""
    module = class_path.rpartition(".")[0]
    top = module.partition(".")[0]
    if top not in TRUSTED and module not in sys.modules and not Path(f"{top}.py").is_file():
        raise ValueError(f"the checkpoint names {class_path}, which is not imported: import it first if you trust it")


def _resolve(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the checkpoint names {class_path}, which cannot be imported: {error}") from error
