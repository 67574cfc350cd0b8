"""Finds the checkpoint that `--ckpt_path` means: a file, the folder of a run, or `last` for the newest run."""

import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from msssl.errors import UserError
from msssl.run.files import CONFIG, LAST, PREVIOUS, damage

log = logging.getLogger(__name__)


def find(spec: str, root: str | Path = "runs") -> Path:
    """The path of the checkpoint that a `--ckpt_path` means.

    If `last.ckpt` is incomplete or damaged, `previous.ckpt` is returned instead, with a warning.

    Args:
        spec: path of a file or of a run's folder, or `last` for the newest run that msssl made below `root`.
        root: folder of the runs.

    Raises:
        FileNotFoundError: there is no such checkpoint; the message names what was searched.
        ValueError: both files are damaged.
    """
    path = _newest_run(Path(root)) if spec == "last" else Path(spec)
    if path.is_dir():
        path = path / LAST
    candidates = (path, path.with_name(PREVIOUS)) if path.name == LAST else (path,)
    existing = [candidate for candidate in candidates if candidate.is_file()]
    if not existing:
        why = ": its run ended before it wrote one; start it anew" if path.with_name(CONFIG).is_file() else ""
        raise FileNotFoundError(f"ckpt_path {spec}: {path} is not a file{why}")
    if path.name != LAST:
        return path
    last, *earlier = existing
    reason = damage(last)
    if reason is not None and earlier:
        log.warning("%s is passed over for %s, the one before: %s", last, earlier[0].name, reason)
        last, reason = earlier[0], damage(earlier[0])
    if reason is not None:
        raise UserError(f"ckpt_path {spec}: {last} cannot be read as a checkpoint: {reason}")
    return last


def _newest_run(root: Path) -> Path:
    runs = sorted(_runs_below(root), key=_last_change, reverse=True)
    originals = (run for run in runs if not _is_copy(run, runs))  # reads the checkpoints of the newest runs only
    newest = next(originals, None)
    if newest is not None and _checkpoints_in(newest):
        return newest
    older = next((run for run in originals if _checkpoints_in(run)), None)
    if newest is None or older is None:
        raise FileNotFoundError(f"ckpt_path last: there is no {LAST} below {root} in the folder of a run")
    raise FileNotFoundError(  # going on with an older run, for hours, may not be what was meant
        f"ckpt_path last: the newest run, {newest}, has no checkpoint yet; the newest that has one is "
        f"{older}: name it if you mean it"
    )


def _runs_below(folder: Path) -> Iterator[Path]:
    """Folders of runs at any depth below a folder. Hidden folders and the folders of runs are not searched."""
    if _is_run(folder):
        yield folder
        return
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:  # there is no such folder, or it may not be read, such as `lost+found`
        return
    for path in below:
        if not path.is_symlink():
            yield from _runs_below(path)
        elif _is_run(path):  # a run that was moved to another disk; other links may form a loop
            yield path


def _is_run(folder: Path) -> bool:
    """Whether this is the folder of a run of msssl, judged by its saved configuration, or else by its checkpoint."""
    config = folder / CONFIG
    if config.is_file():
        saved = config.read_text(errors="replace")
        return all(re.search(rf"^{key}:", saved, flags=re.MULTILINE) for key in ("model", "data", "last_checkpoint"))
    return _was_written_in(folder, _home(folder))  # a run of a Python script, with the callback `LastCheckpoint`


def _is_copy(run: Path, runs: list[Path]) -> bool:
    """Whether a run's folder is a copy, such as by `cp -r`: its checkpoint was written in the folder of another run."""
    home = _home(run)
    if home is None or _was_written_in(run, home):
        return False
    original = next((candidate for candidate in runs if _was_written_in(candidate, home)), None)
    if original is not None:
        log.info("%s is passed over: it is a copy of %s", run, original)
    return original is not None


def _home(run: Path) -> Path | None:
    """The folder in which a run's checkpoint was written, by its name at that time; None if that is unknown."""
    for path in _checkpoints_in(run):
        with suppress(Exception):  # a damaged file, or one of another program
            callbacks = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["callbacks"]
            written = next(state["dirpath"] for name, state in callbacks.items() if name.startswith("LastCheckpoint"))
            return Path(*(part for part in Path(written).parts if part != ".."))
    return None


def _was_written_in(folder: Path, home: Path | None) -> bool:
    """Whether a folder has the name `home`, which may be relative to a working directory that is not known."""
    return home is not None and folder.resolve().parts[-len(home.parts) :] == home.parts


def _checkpoints_in(run: Path) -> list[Path]:
    return [run / name for name in (LAST, PREVIOUS) if (run / name).is_file()]


def _last_change(run: Path) -> float:
    paths = (run / name for name in (LAST, PREVIOUS, CONFIG))
    return max(path.stat().st_mtime for path in paths if path.is_file())
