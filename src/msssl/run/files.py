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

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"  # of a run, and the one before it
CONFIG = "config.yaml"  # that `msssl fit` saves in the folder of each run


def damage(path: Path) -> str | None:
    """What is wrong with a file that `torch.save` wrote, by its checksums, or None."""
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        return str(error)
    return damaged and f"{damaged} in it is damaged"


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU, without running code from it; ValueError naming the file if unreadable."""
    checkpoint = read_file(path)
    if "state_dict" not in checkpoint:
        raise UserError(f"{path} is not the checkpoint of a training run: it holds no state_dict")
    return checkpoint


def read_file(path: str | Path) -> dict[str, Any]:
    """A dict that `torch.save` wrote, as `read` reads it."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = damage(Path(path)) or (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    return content


class NotWrittenError(OSError):
    """A file could not be written; what was there before is as it was."""


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """While a file or folder is written: an error of the system becomes a `NotWrittenError` that names it."""
    try:
        yield
    except NotWrittenError:
        raise
    except (OSError, RuntimeError) as raised:  # torch hides the first behind the second
        error: BaseException | None = raised
        while error is not None and not isinstance(error, OSError):
            error = error.__context__
        if error is None:
            raise
        kept = "; what was there before is as it was" if Path(path).is_file() else ""
        reason = str(error.strerror or error)
        if isinstance(error, FileExistsError):  # of making a folder where a file is
            reason = f"{error.filename} is not a directory"
        raise NotWrittenError(f"{path} cannot be written: {reason}{kept}") from error


def check_writable(folder: Path) -> None:
    """Raise NotWrittenError, before the work, if no file can be made in a folder."""
    with writing(folder), TemporaryFile(dir=folder):
        pass


def check_file_writable(path: Path) -> None:
    """Raise NotWrittenError, before the work, if a file cannot be written; its folder is made."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        with TemporaryFile(dir=path.parent):
            pass


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Where to write a file that gets its name once all of it is there; nothing is left of a part.

    Its folder is made, too. NotWrittenError naming the file, if that is not possible.
    """
    growing = path.with_name(f"{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield growing
            growing.replace(path)
        finally:
            with suppress(OSError):
                growing.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all."""
    with atomic_write(path) as growing:
        growing.write_text(text)


def write_file(path: Path, content: dict[str, Any], keep: Path | None = None) -> None:
    """Write what `read_file` reads, whole or not at all; what was there gets the name `keep`, if given."""
    with atomic_write(path) as growing:
        with growing.open("wb") as file:  # an open file, whose errors say what is wrong
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)


def sha256_of(path: str | Path) -> str:
    """Fingerprint of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
