"""Checkpoints on disk: found, read without running code from them, written whole or not at all."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def find(spec: str, root: str = "runs") -> Path:
    """The checkpoint that a `--ckpt_path` means: a file, the `last.ckpt` of a run's folder, or `last`.

    Args:
        spec: path of a file or of a run's folder, or `last` for the newest run below `root`.
        root: folder of the runs.

    Raises:
        FileNotFoundError: naming what was looked for.
    """
    if spec == "last":
        found = sorted(Path(root).rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise FileNotFoundError(f"ckpt_path last: there is no last.ckpt below {root}")
        return found[-1]
    path = Path(spec, "last.ckpt") if Path(spec).is_dir() else Path(spec)
    if not path.is_file():
        raise FileNotFoundError(f"ckpt_path {spec}: {path} is not a file")
    return path


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
        reason = (str(error) or type(error).__name__).splitlines()[0]
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


def write_file(path: Path, content: dict[str, Any]) -> None:
    """Write what `read_file` reads, whole or not at all."""
    with whole(path) as growing:
        torch.save(content, growing)


def sha256_of(path: str | Path) -> str:
    """Fingerprint of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
