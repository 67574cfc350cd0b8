"""`Recorded`: stores views, backbones and the like in checkpoints as class and arguments, and rebuilds them."""

import importlib
import inspect
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from msssl.errors import UserError

_PLAIN = (str, int, float, bool, type(None))
_KEYS = {"class_path", "init_args"}


class Recorded:
    """Base of classes whose objects remember the arguments that they were built with, for checkpoints."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember the arguments of `__init__`; a copy is made without arguments, and copies what is remembered."""
        built = super().__new__(cls)
        vars(built)["_built_with"] = (args, kwargs)
        return built


def describe(value: Any) -> Any:
    """A value as plain data, from which `build` makes an equal value.

    Raises:
        TypeError: the value is not plain data, a path or an object of msssl, or was changed since it was built.

    >>> import msssl
    >>> describe(msssl.ResNet(18, width=8))
    {'class_path': 'msssl.backbones.ResNet', 'init_args': {'depth': 18, 'width': 8}}
    """
    if is_plain(value):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return type(value)(map(describe, value))
    if not (isinstance(value, Recorded) and type(value).__module__.startswith("msssl.")):
        raise TypeError(f"it is a {type(value).__name__}: expected plain data, or an object of msssl")
    description = {"class_path": public_path(type(value)), "init_args": _arguments(value)}
    if _shown(value) != _shown(description):
        raise TypeError(f"the {type(value).__name__} was changed: expected it as it was built")
    return description


def public_path(kind: type) -> str:
    """The class path for checkpoints: a class of msssl is named by its package, as files within it may move."""
    package = kind.__module__
    if package.startswith("msssl."):
        package = ".".join(package.split(".")[:2])
    return f"{package}.{kind.__qualname__}"


def build(description: Any) -> Any:
    """The value that `describe` described; only classes of msssl are built.

    Raises:
        ValueError: the description names another class.
    """
    if isinstance(description, list | tuple):
        return type(description)(map(build, description))
    if not isinstance(description, dict) or description.keys() != _KEYS:
        return description
    module, _, name = description["class_path"].rpartition(".")
    kind = getattr(importlib.import_module(module), name, None) if module.startswith("msssl.") else None
    if not (isinstance(kind, type) and issubclass(kind, Recorded)):
        raise UserError(f"the checkpoint names {description['class_path']}, which is no class that msssl records")
    return kind(**{key: build(value) for key, value in description["init_args"].items()})


def is_plain(value: Any) -> bool:
    """Whether a value is made of strings, numbers, booleans and None, in lists, tuples and dictionaries."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    return type(value) in _PLAIN


def _arguments(value: Recorded) -> dict[str, Any]:
    args, kwargs = vars(value)["_built_with"]
    bound = inspect.signature(type(value)).bind(*args, **kwargs)
    return {name: describe(argument) for name, argument in bound.arguments.items()}


def _shown(value: Any) -> str:
    """The `repr` of a value, or of what its description builds; that of a module shows all of its submodules."""
    if isinstance(value, nn.Module):
        return repr(value)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # without weights
        return repr(build(value))
