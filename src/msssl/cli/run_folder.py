"""A folder for each run, and nothing of a run that never started."""

import shutil
from datetime import datetime
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only


def new_run_folder(root: Path) -> Path:
    """A folder of its own for this run, named after the time; made on rank 0, the one that writes."""
    name = datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ["", *(f"-{i}" for i in range(2, 1000))]:
        folder = root / (name + suffix)
        if rank() > 0:
            return folder
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{root / name}: too many runs in one second")


def discard(folder: Path) -> None:
    """Remove the folder of a run that failed before its first step, and its root if nothing else is in it."""
    if rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()


def rank() -> int:
    """Rank of this process, known before there is a trainer."""
    return getattr(rank_zero_only, "rank", 0)
