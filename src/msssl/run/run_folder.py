"""Makes the folder of a run, finds that of a requeued SLURM job, and deletes that of a run which failed at once."""

import hashlib
import logging
import os
import shlex
import shutil
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only

from msssl.run.files import LAST, PREVIOUS

log = logging.getLogger(__name__)
_CHOSEN = "MSSSL_RUN_FOLDER"


def new_run_folder(root: Path) -> Path:
    """Make a new folder for this run on rank 0, named after the time or SLURM's job, and return it on all ranks."""
    name = _slurm_name() or datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ["", *(f"-{i}" for i in range(2, 1000))]:
        folder = root / (name + suffix)
        if rank() > 0:  # processes that rank 0 started inherit its choice
            return Path(os.environ.get(_CHOSEN, folder))
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"trainer.default_root_dir is {root}, in which no folder can be made: {reason}") from error
        os.environ[_CHOSEN] = str(folder)
        return folder
    raise FileExistsError(f"{root / name}: too many runs in one second")


def is_requeued() -> bool:
    """Whether this is a SLURM job that was requeued."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0


def requeued_run(root: str) -> Path | None:
    """The folder in which this command of a requeued job left a checkpoint, or None."""
    name = _slurm_name()
    folders = [*Path(root).glob(f"{name}*"), *(path.parent for path in Path(root).glob(f"*/.{name}"))]
    with_checkpoint = [path for path in folders if (path / LAST).is_file() or (path / PREVIOUS).is_file()]
    return max(with_checkpoint, key=lambda path: path.stat().st_mtime, default=None)


def tag_with_slurm_job(folder: Path) -> None:
    """Leave the name of a SLURM job in the folder of an older run that it resumes, to find it when it is requeued."""
    name = _slurm_name()
    if name is not None and rank() == 0:
        (folder / f".{name}").touch()


def _slurm_name() -> str | None:
    """A name for this command of a SLURM job, which stays the same when the job is requeued; None without SLURM."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    given = " ".join(sys.orig_argv)  # in `sys.argv` names of configs become paths
    command = hashlib.sha256(given.encode()).hexdigest()[:6]
    return "-".join(["slurm", job, *([task] if task else []), command])


def clean_up_failed_run(folder: Path, error: BaseException, *, ran: bool, keep: bool) -> None:
    """After a run failed: log how to resume it, or delete its folder if it took no step.

    Args:
        folder: folder of the run.
        error: the exception that ended the run.
        ran: whether it took a step.
        keep: whether to keep the folder in any case, such as that of a resumed run.
    """
    if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
        error.code = 130  # Lightning's is 1
    if rank() > 0:
        return
    if not ran and not keep:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # where it holds other runs
            folder.parent.rmdir()
    elif ran and (folder / LAST).is_file() and not isinstance(error, FloatingPointError):  # which would happen again
        log.info("go on with: %s", shlex.join(["msssl", "fit", "--ckpt_path", str(folder)]))


def rank() -> int:
    """Rank of this process, which is known before there is a trainer."""
    return getattr(rank_zero_only, "rank", 0)
