"""Commands of msssl as processes of their own."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msssl.run.files import writing

log = logging.getLogger(__name__)


@contextmanager
def alone(folder: Path) -> Iterator[int]:
    """A lock that the commands hold too: whoever outlives a killed `sweep` is waited for."""
    from fcntl import LOCK_EX, LOCK_NB, flock

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            log.info("%s: waiting for a process that still works in it", folder)
            flock(file, LOCK_EX)
        yield file.fileno()


@contextmanager
def command(args: list[str], folder: Path, lock: int) -> Iterator[subprocess.Popen[bytes]]:
    """A command of msssl, whose output goes to `log.txt`; ChildProcessError with its last line if it fails."""
    path = folder / "log.txt"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with path.open("ab") as file:
        words = [sys.executable, "-m", "msssl", *args]
        child = subprocess.Popen(words, stdout=file, stderr=file, pass_fds=[lock], env=environment)
        try:
            yield child
            child.wait()
        except BaseException:
            child.terminate()  # a fit saves its state first
            child.wait()
            raise
    if child.returncode:
        last = path.read_text(errors="replace").strip().splitlines()[-1:]
        raise ChildProcessError(f"msssl {args[0]} ended with {child.returncode}, see {path}: {''.join(last).strip()}")
