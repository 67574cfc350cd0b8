"""`Reloadable`: stores the class and arguments of modules and data modules in checkpoints, and builds them again."""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import torch
import yaml
from lightning import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin, _given_hyperparameters
from lightning.pytorch.utilities.parsing import collect_init_args
from torch import Tensor

from msssl.errors import UserError
from msssl.recorded import build, describe, is_plain, public_path
from msssl.run.files import read

TRUSTED = ("msssl", "torch", "torchvision", "timm", "kornia")
_LEFT_OUT, _RECORDED = "_left_out", "_recorded"  # keys of names of arguments: not stored, and stored by `recorded.py`
_REQUIRED = inspect.Parameter.empty
_RENAMED = {"modules": "methods"}  # packages of msssl, as checkpoints of version 0.1 name them


class MissingArgumentsError(UserError):
    """A checkpoint does not hold all arguments that its object was built with; `names` are the missing ones."""

    def __init__(self, owner: str, names: list[str]) -> None:
        super().__init__(f"{owner} was built in Python with {', '.join(names)}: give the same again, by keyword")
        self.owner = owner
        self.names = names


class Reloadable(HyperparametersMixin):
    """Base of classes whose checkpoints hold their class path and arguments, so that they can be built again.

    Arguments are stored if they are plain data (strings, numbers, booleans and None, lists and dictionaries of them,
    and paths) or objects of msssl, such as a `ResNet`, which are stored as their class and arguments. Of other
    arguments only the names are stored.
    """

    CHECKPOINT_HYPER_PARAMS_KEY: str

    def save_plain_hyperparameters(self) -> None:
        """Store the arguments of the object that is being built; to be called in the `__init__` of the base class."""
        frame = inspect.stack(context=0)[1].frame
        if _given_hyperparameters.get():  # built by the command line, whose arguments are plain data
            self.save_hyperparameters(frame=frame)
            return
        levels = collect_init_args(frame, [], classes=(HyperparametersMixin,))
        arguments = levels[-1]  # of the class that is being built, not those that it passes to its bases
        not_plain = [name for name, value in arguments.items() if not is_plain(value)]
        of_bases = {name for level in levels for name in level} - arguments.keys()
        self.save_hyperparameters(ignore=[*not_plain, *of_bases], frame=frame)
        defaults = defaults_of(type(self))
        self.hparams["_class_path"] = public_path(type(self))
        not_default = [name for name in not_plain if arguments[name] is not defaults.get(name)]
        recorded = {}
        for name in not_default:
            with suppress(TypeError):
                recorded[name] = describe(arguments[name])
        self.hparams.update(recorded)
        self.hparams[_RECORDED] = list(recorded)
        self.hparams[_LEFT_OUT] = [name for name in not_default if name not in recorded]

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: str | Path, map_location: str | torch.device = "cpu", strict: bool = True, **kwargs: Any
    ) -> Self:
        """Build the object of a checkpoint again, of this class or of the subclass that the checkpoint names.

        Args:
            checkpoint_path: a file that was written during training.
            map_location: device of the module.
            strict: whether the module must have exactly the parameters of the checkpoint.
            **kwargs: arguments that replace those in the checkpoint.

        Raises:
            ValueError: the file cannot be read, its class is not trusted, its weights do not fit, or an argument is
                missing: a checkpoint cannot hold functions and objects of other libraries, which must be given again.
                The message names them.
        """
        loaded: Any = cls.from_checkpoint(read(checkpoint_path), strict, **kwargs)
        if isinstance(loaded, LightningModule):
            loaded.to(torch.device(map_location))
        return loaded  # type: ignore[no-any-return]

    @classmethod
    def from_checkpoint(
        cls, checkpoint: dict[str, Any], strict: bool = True, without: Sequence[str] = (), **kwargs: Any
    ) -> Self:
        """Build the object of a checkpoint's content with its state, on the CPU.

        Arguments that are named in `without` and have a default keep it, and are not taken from the checkpoint.
        """
        loaded: Any = cls.from_hyperparameters(checkpoint, without, **kwargs)
        if isinstance(loaded, LightningModule):
            load_state(loaded, checkpoint, strict)
        elif type(loaded).__qualname__ in checkpoint:  # where Lightning keeps the state of a data module
            loaded.load_state_dict(checkpoint[type(loaded).__qualname__])
        return loaded  # type: ignore[no-any-return]

    @classmethod
    def from_hyperparameters(cls, checkpoint: dict[str, Any], without: Sequence[str] = (), **kwargs: Any) -> Self:
        """Build the object of a checkpoint without its state; arguments and errors as in `from_checkpoint`."""
        arguments = dict(checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {}))
        class_path = arguments.pop("_class_path", None)
        from_cli = arguments.pop("_instantiator", None) is not None
        left_out, recorded = arguments.pop(_LEFT_OUT, []), arguments.pop(_RECORDED, [])
        if class_path is not None:
            _check_trusted(class_path)
        target = cls if class_path is None else _resolve(class_path)
        if not (isinstance(target, type) and issubclass(target, cls)):
            raise UserError(f"the checkpoint holds a {class_path}, not a {cls.__name__}")
        if inspect.isabstract(target):
            raise UserError(f"the checkpoint does not say which {cls.__name__} it was made with")
        defaults = defaults_of(target)
        optional = [name for name in without if defaults.get(name, _REQUIRED) is not _REQUIRED]
        arguments = {name: value for name, value in arguments.items() if name not in (*kwargs, *optional)}
        for path in _class_paths(arguments):
            _check_trusted(path)
        if missing := [name for name in left_out if name not in (*kwargs, *optional)]:
            raise MissingArgumentsError(target.__name__, missing)
        arguments.update({name: build(arguments[name]) for name in recorded if name in arguments})
        arguments.update(kwargs)
        if from_cli:
            from lightning.pytorch.cli import instantiate_module  # a second of imports, for this only

            built: Self = instantiate_module(target, {"_class_path": class_path, **arguments})
            return built
        return target(**arguments)


def load_state(module: LightningModule, checkpoint: dict[str, Any], strict: bool = True) -> None:
    """Load a checkpoint's weights into a module.

    Raises:
        ValueError: the weights do not fit; the message names the first parameter that does not.
    """
    module.on_load_checkpoint(checkpoint)
    saved, built = checkpoint["state_dict"], module.state_dict()
    try:
        module.load_state_dict(saved, strict=strict)
    except RuntimeError as error:
        name = type(module).__name__
        if (difference := first_difference(saved, built)) is None:
            raise UserError(f"the weights do not fit {name}: {' '.join(str(error).split())}") from error
        parameter, of_checkpoint, of_network = difference
        raise UserError(
            f"the weights do not fit {name}: {parameter} is {of_checkpoint or 'not'} in the checkpoint, and "
            f"{of_network or 'not'} in the network"
        ) from error


def first_difference(
    saved: Mapping[str, Tensor], built: Mapping[str, Tensor]
) -> tuple[str, tuple[int, ...] | None, tuple[int, ...] | None] | None:
    """The first parameter whose shape differs, with its shapes in `saved` and `built`; None if all are equal.

    A shape is None where the parameter does not exist.
    """
    for name in [*built, *saved]:
        shapes = [tuple(state[name].shape) if name in state else None for state in (saved, built)]
        if shapes[0] != shapes[1]:
            return name, shapes[0], shapes[1]
    return None


def defaults_of(cls: type) -> dict[str, Any]:
    """The defaults of the arguments of a class and of its bases; `inspect.Parameter.empty` where there is none."""
    defaults: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            defaults.update({parameter.name: parameter.default for parameter in parameters})
    return defaults


def _class_paths(value: Any) -> Iterator[str]:
    """Every string that jsonargparse could import as a class: dotted names, also within a string that is YAML."""
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
    """Raise ValueError for a class of an unknown module: a foreign checkpoint must not import, and so run, any code."""
    module = class_path.rpartition(".")[0]
    top = module.partition(".")[0]
    if top not in TRUSTED and module not in sys.modules and not Path(f"{top}.py").is_file():
        raise UserError(f"the checkpoint names {class_path}, which is not imported: import it first if you trust it")


def _resolve(class_path: str) -> Any:
    """The class of a path. Those of msssl are taken from the package that exports them, as files may have moved."""
    module, _, name = class_path.rpartition(".")
    if module.startswith("msssl."):
        package = module.split(".")[1]
        module = f"msssl.{_RENAMED.get(package, package)}"
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the checkpoint names {class_path}, which cannot be imported: {error}") from error
