"""Checkpoints on disk: found, read without running code from them, written whole or not at all."""

import hashlib
import logging
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"  # of a run, and the one before it


def find(spec: str, root: str | Path = "runs") -> Path:
    """The checkpoint that a `--ckpt_path` means: a file, the last one of a run's folder, or `last`.

    A `last.ckpt` that is cut or damaged is passed over, with a warning, for `previous.ckpt`, the one before it.

    Args:
        spec: path of a file or of a run's folder, or `last` for the newest run below `root`.
        root: folder of the runs.

    Raises:
        FileNotFoundError: naming what was looked for.
        ValueError: neither is whole.
    """
    path = _newest_run(Path(root)) if spec == "last" else Path(spec)
    if path.is_dir():
        path = path / LAST
    found = [each for each in ([path, path.with_name(PREVIOUS)] if path.name == LAST else [path]) if each.is_file()]
    if not found:
        why = ": its run ended before it wrote one; start it anew" if path.with_name("config.yaml").is_file() else ""
        raise FileNotFoundError(f"ckpt_path {spec}: {path} is not a file{why}")
    if path.name != LAST:
        return path
    last, *before = found
    reason = _damage(last)
    if reason is not None and before:
        log.warning("%s is passed over for %s, the one before: %s", last, before[0].name, reason)
        last, reason = before[0], _damage(before[0])
    if reason is not None:
        raise ValueError(f"ckpt_path {spec}: {last} cannot be read as a checkpoint: {reason}")
    return last


def _newest_run(root: Path) -> Path:
    marks = [path for name in (LAST, PREVIOUS, "config.yaml") for path in root.rglob(name)]
    runs = list(dict.fromkeys(path.parent for path in sorted(marks, key=_age)))
    with_checkpoint = [run for run in runs if (run / LAST).is_file() or (run / PREVIOUS).is_file()]
    if not with_checkpoint:
        raise FileNotFoundError(f"ckpt_path last: there is no {LAST} below {root}")
    if runs[0] != with_checkpoint[0]:  # another run, hours of it, is not what was meant
        raise FileNotFoundError(
            f"ckpt_path last: the newest run, {runs[0]}, has no checkpoint yet; the newest that has one is "
            f"{with_checkpoint[0]}: name it if you mean it"
        )
    return runs[0]


def _age(path: Path) -> float:
    return -path.stat().st_mtime


def _damage(path: Path) -> str | None:
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
        raise ValueError(f"{path} is not the checkpoint of a training run: it holds no state_dict")
    return checkpoint


def read_file(path: str | Path) -> dict[str, Any]:
    """A dict that `torch.save` wrote, as `read` reads it."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = _damage(Path(path)) or (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    return content


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file that gets its name once all of it is there; nothing is left of a part."""
    growing = path.with_name(f"{path.name}.tmp")
    try:
        yield growing
        growing.replace(path)
    finally:
        growing.unlink(missing_ok=True)


def write_file(path: Path, content: dict[str, Any], keep: Path | None = None) -> None:
    """Write what `read_file` reads, whole or not at all; what was there gets the name `keep`, if given."""
    with whole(path) as growing:
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
