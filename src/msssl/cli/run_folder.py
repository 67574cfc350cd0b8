"""A folder for each run, and nothing of a run that never started."""

import os
import shutil
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only

_CHOSEN = "MSSSL_RUN_FOLDER"


def new_run_folder(root: Path) -> Path:
    """A folder of its own for this run, named after the time; made on rank 0, the one that writes."""
    name = datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ["", *(f"-{i}" for i in range(2, 1000))]:
        folder = root / (name + suffix)
        if rank() > 0:  # processes that rank 0 started know its choice
            return Path(os.environ.get(_CHOSEN, folder))
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        os.environ[_CHOSEN] = str(folder)
        return folder
    raise FileExistsError(f"{root / name}: too many runs in one second")


def discard(folder: Path) -> None:
    """Remove the folder of a run that failed before its first step, and its root if nothing else is in it."""
    if rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # other runs are in it
            folder.parent.rmdir()


def rank() -> int:
    """Rank of this process, known before there is a trainer."""
    return getattr(rank_zero_only, "rank", 0)
