"""The command line: `msssl fit`, `validate`, `test`, `predict`, and the commands that are plain functions."""

import sys
from pathlib import Path

from msssl.cli.commands import COMMANDS
from msssl.cli.help import answer, page


def main() -> None:
    """Run the command in `sys.argv`: bad input ends in one line and exit code 2, a failed run in exit code 1."""
    if (answered := answer(sys.argv[1:])) is not None:
        text, code = answered
        (sys.stderr if code else sys.stdout).write(text)
        sys.exit(code)
    if sys.argv[-2:] in (["--help", "all"], ["-h", "all"]) and sys.argv[1] in COMMANDS:
        sys.stdout.write(page(sys.argv[1]) + "\n")
        sys.argv.pop()
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # classes in files of the working directory, found last
    from msssl.cli.errors import failure, user_message  # imports torch and lightning
    from msssl.cli.lightning_cli import run
    from msssl.cli.parser import ParsingError

    try:
        run(sys.argv[1:])
    except ParsingError as error:
        _end(error.message, 2)
    except Exception as error:
        if (reason := failure(error)) is not None:
            _end(reason, 1)
        if (message := user_message(error)) is None:
            raise
        _end(message, 2)


def _end(message: str, code: int) -> None:
    sys.stderr.write(f"msssl: error: {message}\n")
    sys.exit(code)
