"""Answers `--help`, `--version` and unknown commands before torch or Lightning is imported."""

import difflib

from msssl import __version__
from msssl.cli.commands import COMMANDS

OVERVIEW = """\
msssl pretrains image encoders without labels.

usage: msssl COMMAND [OPTIONS]

{commands}

examples:
  msssl fit --config demo.yaml                a first run, minutes on a CPU
  msssl fit --config imagefolder.yaml --data.data_dir my_images
  msssl probe --ckpt_path last                how good is the newest encoder?

msssl COMMAND --help describes a command; msssl --version prints the version.
"""


def answer(args: list[str]) -> tuple[str, int] | None:
    """The text and the exit code for these arguments; None if there is a command to run."""
    if args == ["--version"]:
        return f"msssl {__version__}\n", 0
    if not args or args[0] in ("--help", "-h", "help"):
        asked = args[1] if args[:1] == ["help"] and args[1:] and args[1] in COMMANDS else None
        return (page(asked) if asked else overview()), 0 if args else 2
    name, *rest = args
    if name in COMMANDS:
        return (page(name), 0) if _asks_for_help(rest) else None
    if name.startswith("-"):  # an option before its command
        return None
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
    return f"msssl: error: no command {name}; {hint}\n", 2


def _asks_for_help(options: list[str]) -> bool:
    """Whether a page is asked for, and not `--help all`."""
    place = next((i for i, option in enumerate(options) if option in ("--help", "-h")), None)
    return place is not None and options[place + 1 :] != ["all"]


def overview() -> str:
    """All commands, each with a sentence."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.sentence}" for name, command in COMMANDS.items()]
    return OVERVIEW.format(commands="\n".join(lines))


def page(name: str) -> str:
    """What a command is for, examples and the options that matter."""
    usage = f"usage: msssl {name} {'RUNS... ' if name == 'report' else ''}[OPTIONS]"
    return f"{COMMANDS[name].sentence}\n\n{usage}\n\n{COMMANDS[name].page}\nEvery option: msssl {name} --help all\n"
