"""`msssl sweep`: the runs of a study, by any number of processes at once."""

import json
import logging
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from msssl.cli.arguments import find_config
from msssl.cli.check import check_fit
from msssl.cli.parser import load
from msssl.cli.resume import flat
from msssl.cli.worker import Worker, fit_of
from msssl.studies import read_study
from msssl.studies.study import Cell, Settings, Study
from msssl.studies.trials import check_base, enqueue, failures, folder_of, open_trials, states

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
    study = read_study(config)
    paths = [find_config(name) for name in study.base]
    texts = {name: Path(path).read_text() for name, path in zip(study.base, paths, strict=True)}
    check_fit(
        {f"study {study.name}, cell {cell}: ": fit_of(study, cell, paths, drawn) for cell, drawn in _first(study)}
    )
    for measure in study.measures.values():
        find_config(measure.get("config", paths[0]))
    trials = open_trials(study, root, storage, create=True)
    base = {**{name: load(text) for name, text in texts.items()}, "set": study.common}
    check_base(study, trials, dict(flat(base)))
    enqueue(study, trials, root, study.cells)
    _work(Worker(study, trials, folder_of(study, root), texts))
    done = states(study, trials)
    if sum(done[state] for state in ("done", "pruned")) < len(study.cells):
        why = next(iter(failures(study, trials).values()), "stopped elsewhere: the same command goes on")
        left = ", ".join(f"{number} {state}" for state, number in done.items())
        raise ChildProcessError(f"study {study.name}: {left} of {len(study.cells)} cells; {why}")
    log.info("all %d cells are done: msssl report %s", len(study.cells), shlex.join(config))


def _work(worker: Worker) -> None:
    """Let it work, until it is done or a signal stops it."""
    from sqlalchemy.exc import SQLAlchemyError

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        worker.work()
    except KeyboardInterrupt as stop:
        log.info("stopped: the same command goes on")
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))
    except (SQLAlchemyError, AssertionError) as error:  # the second is Optuna's, where it cannot write
        reason = str(error.__context__ or error).partition("\n")[0]
        raise ChildProcessError(
            f"study {worker.study.name}: its storage cannot be reached any more: {reason}"
        ) from error


def _first(study: Study) -> Iterator[tuple[Cell, Settings]]:
    """Cells in which each value of each flag stands at least once, and a draw; to parse all of them takes minutes."""
    seen: set[str] = set()
    for cell in study.cells.values():
        drawn: dict[str, Any] = {key: of_key[0] if isinstance(of_key, list) else of_key["low"]
                                 for key, of_key in cell.search.items()}  # fmt: skip
        told = {**cell.settings, **drawn}
        found = {json.dumps([cell.settings.get("model"), key, value]) for key, value in told.items()}
        if not found <= seen or not seen:
            seen |= {"", *found}
            yield cell, drawn


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(signum)
