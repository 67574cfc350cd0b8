"""Command lines that are parsed and not run."""

from collections.abc import Mapping
from contextlib import suppress

from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from typing_extensions import override

from msssl.cli.parser import Parser
from msssl.cli.run import MultiViewCLI, start


class _CheckedError(Exception):
    pass


def check_fit(commands: Mapping[str, list[str]]) -> None:
    """Exit with code 2 if one of these `msssl fit` cannot be parsed; its key stands before the error."""

    class Check(MultiViewCLI):
        @override
        def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
            for Parser.subject, each in commands.items():
                parser.parse_args(each)
            raise _CheckedError

    try:
        with suppress(_CheckedError):
            start(Check, "fit")
    finally:
        Parser.subject = ""
