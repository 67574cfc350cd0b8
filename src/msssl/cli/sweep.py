"""`msssl sweep`: trains and probes all runs of a study; several processes can share the work."""

import json
import logging
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from msssl.cli.arguments import find_config
from msssl.cli.check import check_fit
from msssl.cli.parser import load
from msssl.cli.resume import flat
from msssl.errors import UserError
from msssl.evaluation.table import print_line
from msssl.studies import read_study
from msssl.studies.cells import DONE, FAILED, cell_folder, check_base, state_of, states
from msssl.studies.study import Cell, Study
from msssl.studies.worker import Worker, counts_of, fit_of

log = logging.getLogger(__name__)


def sweep(
    config: list[str], root: str = "runs", list: bool = False, cell: int | None = None, data_dir: str | None = None
) -> None:
    """Train and probe all cells of a study that are not done yet.

    The same command goes on with what was stopped, and tries again what failed. Started several times it shares the
    work: once for each GPU, on any number of machines that share the folder. What is written goes to
    `<root>/<name of the study>/`.

    Args:
        config: the study, and overlays that win over it.
        root: of the folders of runs.
        list: print the cells with their number, state and settings, and run none.
        cell: run this one only, by its number, so that another program can spread a study.
        data_dir: folder of the images, where the study names what it must hold.

    Raises:
        ValueError: naming the study and the key or cell that is wrong.
        ChildProcessError: some cells failed.
    """
    study = read_study(config)
    if list:
        _print_cells(study, root)
        return
    cells = [*study.cells.values()]
    if cell is not None and not 1 <= cell <= len(cells):
        raise UserError(f"study {study.name}: there is no cell {cell}, only 1 to {len(cells)}")
    _check_folder(study, data_dir)
    chosen = cells if cell is None else [cells[cell - 1]]
    paths = [find_config(name) for name in study.base]
    texts = {name: Path(path).read_text() for name, path in zip(study.base, paths, strict=True)}
    commands = {str(one): fit_of(study, one, paths, data_dir) for one in _without_repetition(chosen)}
    check_fit({f"study {study.name}, cell {name}: ": command for name, command in commands.items()})
    for measure in study.measures.values():
        find_config(measure.get("config", paths[0]))
    base = {**{name: load(text) for name, text in texts.items()}, "set": study.common}
    check_base(study, root, dict(flat(base)))
    _work(Worker(study, root, texts, data_dir), None if cell is None else chosen[0])
    folders = [cell_folder(study, one, root) for one in chosen]
    left = [folder for folder in folders if state_of(study, folder) != DONE]
    if left:
        reasons = [(folder / FAILED).read_text() for folder in left if (folder / FAILED).is_file()]
        why = reasons[0] if reasons else "stopped elsewhere: the same command goes on"
        counts = counts_of(states(study, root))
        raise ChildProcessError(f"study {study.name}: {counts} of {len(cells)} cells; {why}")
    what = f"all {len(cells)} cells are" if cell is None else f"cell {cell} is"
    log.info("%s done: msssl report %s", what, shlex.join(config))


def _check_folder(study: Study, data_dir: str | None) -> None:
    """Raise ValueError unless there is a folder where the study needs one, and it holds the study's images."""
    if study.folder is None:
        if data_dir is not None:
            raise UserError(f"study {study.name} names its data itself: leave out --data_dir")
    elif data_dir is None:
        raise UserError(f"study {study.name} is of {study.folder.name}: name their folder with --data_dir")
    else:
        study.folder.check(data_dir)


def _print_cells(study: Study, root: str) -> None:
    for number, cell in enumerate(study.cells.values(), start=1):
        print_line(f"{number:4}  {state_of(study, cell_folder(study, cell, root)):8} {cell.id}  {cell}")


def _work(worker: Worker, cell: Cell | None) -> None:
    """Let it work, on all cells or on one, until it is done or a signal stops it."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        worker.work() if cell is None else worker.work_on(cell)
    except KeyboardInterrupt as stop:
        log.info("stopped: the same command goes on")
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))


def _without_repetition(cells: list[Cell]) -> Iterator[Cell]:
    """Cells in which each value of each flag stands at least once; to parse all of them takes minutes."""
    seen: set[str] = set()
    for cell in cells:
        flags = {json.dumps([cell.settings.get("model"), key, value]) for key, value in cell.settings.items()}
        if not flags <= seen or not seen:
            seen |= {"", *flags}
            yield cell


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(signum)
