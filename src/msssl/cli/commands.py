"""The commands that are plain functions: their arguments are the flags."""

from collections.abc import Callable

from msssl.cli.sweep import sweep
from msssl.evaluation import export, probe
from msssl.studies import report

COMMANDS: dict[str, Callable[..., None]] = {"probe": probe, "export": export, "sweep": sweep, "report": report}
