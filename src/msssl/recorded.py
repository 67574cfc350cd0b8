"""Objects of msssl as plain data: their class and the arguments that they were built with."""

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
    """Base of a class whose objects remember what they were built with, so that a checkpoint can name them."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """The object, before its `__init__`; a copy is made without arguments, and takes over what it remembers."""
        built = super().__new__(cls)
        vars(built)["_built_with"] = (args, kwargs)
        return built


def describe(value: Any) -> Any:
    """A value as plain data, of which `build` makes the same again.

    Raises:
        TypeError: for anything but plain data, paths and objects of msssl that are as they were built.

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
    """The path that a checkpoint names a class by: for one of msssl its package, as the files within it may move."""
    package = kind.__module__
    if package.startswith("msssl."):
        package = ".".join(package.split(".")[:2])
    return f"{package}.{kind.__qualname__}"


def build(description: Any) -> Any:
    """The value of which `describe` returned this; only classes of msssl are built."""
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
    """How a value, or what its description builds, prints: with all of its parts, for a module."""
    if isinstance(value, nn.Module):
        return repr(value)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # without weights
        return repr(build(value))
