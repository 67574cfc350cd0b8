"""The argument parser: one line for a mistake, no abbreviations, and the commands that are plain functions."""

import sys
from collections.abc import Callable
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from msssl.cli.errors import condense
from msssl.evaluation import probe

COMMANDS: dict[str, Callable[..., None]] = {"probe": probe}


class Parser(LightningArgumentParser):
    """A parser whose errors are one line that names the key and the nearest right one, with exit code 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["allow_abbrev"] = False
        super().__init__(*args, **kwargs)

    @override
    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        self.commands = action = super().add_subcommands(*args, **kwargs)
        for name, function in COMMANDS.items():
            command = Parser(description=(function.__doc__ or "").partition("\n")[0])
            command.add_function_arguments(function)
            action.add_subcommand(name, command, help=command.description)
        return action

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # jsonargparse tries types with parsers of this class and catches their errors
            super().error(message, ex)
        sys.stderr.write(f"msssl: error: {condense(message, self._keys())}\n")
        sys.exit(2)

    def _keys(self) -> list[str]:
        """Keys of this parser and of its commands."""
        parsers: list[Any] = [self]
        for action in self._actions:
            if isinstance(action.choices, dict):
                parsers += [each for each in action.choices.values() if hasattr(each, "_actions")]
        return sorted({action.dest for parser in parsers for action in parser._actions})
