"""`msssl sweep`: the runs of a study, by any number of processes at once."""

import json
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import yaml

from msssl.cli.arguments import find_config
from msssl.cli.resume import flat
from msssl.cli.worker import Worker, fit_of
from msssl.studies import read_study
from msssl.studies.study import Cell, Settings, Study
from msssl.studies.trials import (
    enqueue,
    failures,
    folder_of,
    open_trials,
)

log = logging.getLogger(__name__)


def sweep(config: list[str], storage: str | None = None, root: str = "runs") -> None:
    """Train and probe all cells of a study that are not finished yet.

    The same command goes on with what was stopped, and tries again what failed. Started several times it shares the
    work: once for each GPU, on any number of machines. What is written goes to `<root>/<name of the study>/`.

    Args:
        config: the study, and overlays that win over it.
        storage: URL of a database, such as `postgresql://...`, for machines without a common file system; by default
            a file in the study's folder.
        root: of the folders of runs.

    Raises:
        ValueError: naming the study and the key, cell or storage that is wrong.
        ChildProcessError: some cells failed.
    """
    from msssl.cli.check import check_fit  # which imports the commands, this one among them

    study = read_study(config)
    base = dict(flat({**_base(study), "set": study.common}))
    check_fit({f"study {study.name}, cell {cell}: ": fit_of(study, cell) for cell in _distinct(study)})
    trials = open_trials(study, root, storage, create=True)
    enqueue(study, trials, base, root)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        Worker(study, trials, folder_of(study, root)).work()
    except KeyboardInterrupt as stop:
        log.info("stopped: the same command goes on")
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))
    if failed := failures(study, trials):
        raise ChildProcessError(f"study {study.name}: {len(failed)} cells failed, one by {next(iter(failed.values()))}")
    log.info("all %d cells are done: msssl report %s", len(study.cells), " ".join(config))


def _base(study: Study) -> Settings:
    """What the configs of a study say, the last one last."""
    return {name: yaml.safe_load(Path(find_config(name)).read_text()) for name in study.base}


def _distinct(study: Study) -> Iterator[Cell]:
    """Cells in which each value of each flag stands at least once; to parse all of them takes minutes."""
    seen: set[str] = set()
    for cell in study.cells.values():
        found = {json.dumps([cell.settings.get("model"), key, value]) for key, value in cell.settings.items()}
        if not found <= seen or not seen:
            seen |= {"", *found}
            yield cell


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(signum)
