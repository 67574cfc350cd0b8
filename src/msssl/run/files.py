"""Files of a run: read without running code from them, and written completely or not at all."""

import errno
import hashlib
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch

from msssl.errors import UserError

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"  # the newest checkpoint of a run, and the one before it
CONFIG = "config.yaml"  # that `msssl fit` saves in the folder of each run


def damage(path: Path) -> str | None:
    """What is wrong with a file that `torch.save` wrote, according to its checksums; None if it is complete."""
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        return str(error)
    return damaged and f"{damaged} in it is damaged"


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of a training run to the CPU, without running code from it.

    Raises:
        ValueError: the file cannot be read, or holds something else; the message names it.
    """
    checkpoint = read_file(path)
    if "state_dict" not in checkpoint:
        raise UserError(f"{path} is not the checkpoint of a training run: it holds no state_dict")
    return checkpoint


def read_file(path: str | Path) -> dict[str, Any]:
    """Read a dict that `torch.save` wrote to the CPU, without running code from it; errors as in `read`."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = damage(Path(path)) or (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    return content


class NotWrittenError(OSError):
    """A file could not be written; an earlier file of this name is unchanged."""


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """A context in which a file or folder is written: errors of the system become a `NotWrittenError` that names it."""
    try:
        yield
    except NotWrittenError:
        raise
    except (OSError, RuntimeError) as raised:  # torch raises a RuntimeError in the context of an OSError
        error: BaseException | None = raised
        while error is not None and not isinstance(error, OSError):
            error = error.__context__
        if error is None:
            raise
        kept = "; what was there before is as it was" if Path(path).is_file() else ""
        reason = str(error.strerror or error)
        if isinstance(error, FileExistsError):  # a folder was to be made where there is a file
            reason = f"{error.filename} is not a directory"
        raise NotWrittenError(f"{path} cannot be written: {reason}{kept}") from error


def check_writable(folder: Path) -> None:
    """Raise NotWrittenError if no file can be made in a folder; called before work whose result is written there."""
    with writing(folder), TemporaryFile(dir=folder):
        pass


def check_file_writable(path: Path) -> None:
    """Raise NotWrittenError if a file cannot be written; its folder is made if it does not exist."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        with TemporaryFile(dir=path.parent):
            pass


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path, which is renamed to `path` if the context succeeds and deleted if it fails.

    The folder is made if it does not exist.

    Raises:
        NotWrittenError: the file cannot be written; the message names it.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, completely or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def write_file(path: Path, content: dict[str, Any], keep: Path | None = None) -> None:
    """Write a dict that `read_file` reads, completely or not at all; an earlier file is renamed to `keep` if given."""
    with atomic_write(path) as temporary:
        with temporary.open("wb") as file:  # given an open file, torch raises errors that say the reason
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)


def sha256_of(path: str | Path) -> str:
    """The SHA-256 fingerprint of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
