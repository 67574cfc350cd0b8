"""A lock on a folder, which the operating system frees when the last process that holds it ends, however it ends."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msssl.run.files import writing

NAME = ".lock"
log = logging.getLogger(__name__)


@contextmanager
def exclusive_lock(folder: Path, *, wait: bool = False) -> Iterator[int | None]:
    """Lock a folder, which is made where it is missing.

    Gives the file descriptor of the lock, or None where another process holds it. A child process that inherits the
    descriptor holds the lock too: a fit that outlives a killed sweep keeps others out of its folder until it ends.

    Args:
        folder: to lock.
        wait: whether to wait for the other process instead.
    """
    from fcntl import LOCK_EX, LOCK_NB, flock  # which Windows does not have

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
            free = True
        except BlockingIOError:
            free = wait
            if wait:
                log.info("%s: waiting for a process that still works in it", folder)
                flock(descriptor, LOCK_EX)
        yield descriptor if free else None
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a folder."""
    if not (folder / NAME).is_file():
        return False
    with exclusive_lock(folder) as lock:
        return lock is None
