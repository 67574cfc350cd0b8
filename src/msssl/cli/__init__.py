"""The command line: `msssl fit`, `validate`, `test`, `predict`, and the commands that are plain functions."""

import sys
from pathlib import Path

from msssl.cli.help import COMMANDS, answer, page


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
    from msssl.cli import commands  # imports torch and lightning
    from msssl.cli.errors import failure, user_message
    from msssl.cli.run import run

    try:
        run(sys.argv[1:], commands.COMMANDS)
    except Exception as error:
        if (reason := failure(error)) is not None:
            sys.stderr.write(f"msssl: error: {reason}\n")
            sys.exit(1)
        message = user_message(error)
        if message is None:
            raise
        sys.stderr.write(f"msssl: error: {message}\n")
        sys.exit(2)
