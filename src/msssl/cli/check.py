"""Checks that command lines of `msssl fit` can be parsed, without running them."""

from collections.abc import Mapping
from contextlib import suppress

from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from typing_extensions import override

from msssl.cli.lightning_cli import MultiViewCLI, start
from msssl.cli.parser import ParsingError


class _CheckedError(Exception):
    pass


def check_fit(commands: Mapping[str, list[str]]) -> None:
    """Exit with code 2 and one line if one of these `msssl fit` cannot be parsed; the line begins with its key."""

    class Check(MultiViewCLI):
        @override
        def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
            for subject, words in commands.items():
                try:
                    parser.parse_args(words)
                except ParsingError as error:
                    raise ParsingError(f"{subject}{error.message}") from error
            raise _CheckedError

    with suppress(_CheckedError):
        start(Check, "fit")
