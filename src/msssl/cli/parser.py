"""The argument parser: one line for a mistake, no abbreviations, and the commands that are plain functions."""

import inspect
from argparse import SUPPRESS
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from msssl.cli.errors import condense

_load_yaml = get_loader("yaml")


PLATEAU = "ReduceLROnPlateau"  # the short name of two classes


def plateau_path(has_monitor: bool) -> str:
    """The class that the short name means: Lightning's takes a `monitor`; torch's is given the training loss."""
    return f"{'lightning.pytorch.cli' if has_monitor else 'torch.optim.lr_scheduler'}.{PLATEAU}"


def load(text: str) -> Any:
    """YAML as configs are read: what looks like a date is text, and the key `on` is a word, not the boolean true."""
    return _with_words(_load_yaml(text))


def _with_words(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_words(item) for item in value]
    if isinstance(value, dict):
        words = {"on" if key is True else key: _with_words(item) for key, item in value.items()}
        if words.get("class_path") == PLATEAU:
            words["class_path"] = plateau_path("monitor" in (words.get("init_args") or {}))
        return words
    return value


class ParsingError(SystemExit):
    """Arguments that cannot be parsed; `message` is one line. It is no `ValueError`, which jsonargparse would catch."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


class Parser(LightningArgumentParser):
    """A parser whose errors are one line that names the key and the nearest right one."""

    def __init__(self, *args: Any, classes_required: bool = True, **kwargs: Any) -> None:
        set_loader("yaml", load, exceptions=(yaml.YAMLError,))  # jsonargparse keeps one for the whole process
        kwargs["allow_abbrev"] = False
        super().__init__(*args, **kwargs)
        self.usage = "%(prog)s [OPTIONS]"  # all of them follow, a line each
        self._classes_required = classes_required

    @override
    def add_lightning_class_args(
        self, lightning_class: Any, nested_key: str, subclass_mode: bool = False, required: bool = True
    ) -> list[str]:
        required = required and self._classes_required
        return super().add_lightning_class_args(lightning_class, nested_key, subclass_mode, required)

    @override
    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        self.commands = super().add_subcommands(*args, **kwargs)  # to which those that are functions are added
        return self.commands

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # jsonargparse tries types with parsers of this class and catches their errors
            super().error(message, ex)
        raise ParsingError(condense(message, self._keys()))

    @override
    def validate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> None:
        super().validate(namespace, *args, **kwargs)
        for action in self._actions:  # jsonargparse takes null for every type
            hint = getattr(action, "_typehint", None)
            if hint is None or action.default in (None, SUPPRESS):
                continue
            kinds = _kinds(hint)
            if namespace.get(action.dest, action.default) is None and not {Any, object, NoneType, None} & {*kinds}:
                names = "\n".join(f"  - Expected a {kind}. Got value: null" for kind in kinds)
                raise TypeError(f'Parser key "{action.dest}":\n{names}')

    def _keys(self) -> list[str]:
        """Keys of this parser and of its commands."""
        parsers: list[Any] = [self]
        for action in self._actions:
            if isinstance(action.choices, dict):
                parsers += [choice for choice in action.choices.values() if hasattr(choice, "_actions")]
        return sorted({action.dest for parser in parsers for action in parser._actions})


def _kinds(hint: Any) -> list[Any]:
    """The types of a union, and the values of a `Literal`."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType, Literal) else ()
    return [kind for part in parts for kind in _kinds(part)] if parts else [hint]


NO_FLAGS_OF_A_TRAINER = {"callbacks", "default_root_dir", "logger", "plugins", "profiler"}


def parser_of(function: Callable[..., None], description: str) -> Parser:
    """A parser of a function's arguments; lists take several words, and one without a default needs no flag.

    An argument `trainer` is a dict of the arguments of Lightning's trainer, each of which is a flag.
    """
    parser = Parser(description=description)
    lists, switches = {}, []
    parameters = inspect.signature(function, eval_str=True).parameters
    if "trainer" in parameters:
        parser.add_class_arguments(
            Trainer, "trainer", skip=NO_FLAGS_OF_A_TRAINER, instantiate=False, fail_untyped=False
        )
    for name, parameter in parameters.items():
        if parameter.default is False:
            switches.append(name)
        kinds = [kind for kind in (parameter.annotation, *get_args(parameter.annotation)) if get_args(kind)]
        if kinds and getattr(kinds[-1], "__origin__", None) is list:
            lists[name] = get_args(kinds[-1])[0], parameter.default
    parser.add_function_arguments(function, skip={*lists, *switches, "trainer"})
    for name in switches:
        parser.add_argument(f"--{name}", action="store_true")
    for name, (kind, default) in lists.items():
        if default is inspect.Parameter.empty:
            parser.add_argument(name, nargs="+", type=kind)
        else:
            parser.add_argument(f"--{name}", nargs="+", type=kind, default=default)
    return parser
