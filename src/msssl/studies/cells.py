"""The cells (runs) of a study on disk: the files in a cell's folder say whether it waits, runs, failed or is done."""

import json
from pathlib import Path

from msssl.errors import UserError
from msssl.run.files import LAST, write_text
from msssl.studies.lock import is_locked
from msssl.studies.measures import Result, curve_of
from msssl.studies.study import Cell, Settings, Study

TRAINED, FAILED, BASE = "trained", "failed.txt", "base.json"  # files of a cell, and of a study
DONE, RUNNING, WAITING, FAILURE = "done", "running", "waiting", "failed"  # states of a cell, in the order of messages


def folder_of(study: Study, root: str | Path) -> Path:
    """The folder of a study, in which each cell has a folder of its own."""
    return Path(root) / study.name


def cell_folder(study: Study, cell: Cell, root: str | Path) -> Path:
    """The folder of a cell: the locks, runs, logs and reports that belong to it."""
    return folder_of(study, root) / cell.id


def report_file(folder: Path, probe: str) -> Path:
    """The file in the folder of a cell in which the report of one of its probes is kept."""
    return folder / f"probe {probe}.json".replace("/", "_")


def checkpoint_of(folder: Path) -> Path:
    """The checkpoint of a cell that was trained: that of the newest run in its folder."""
    return max(folder.glob(f"*/{LAST}"))


def is_done(study: Study, folder: Path) -> bool:
    """Whether a cell was trained, and probed by every probe that the study asks for, and did not fail after that."""
    has_reports = all(report_file(folder, probe).is_file() for probe in study.probes)
    return (folder / TRAINED).is_file() and has_reports and not (folder / FAILED).is_file()


def state_of(study: Study, folder: Path) -> str:
    """The state of a cell; one that failed and is tried again counts as running."""
    if is_done(study, folder):
        return DONE
    if is_locked(folder):
        return RUNNING
    return FAILURE if (folder / FAILED).is_file() else WAITING


def states(study: Study, root: str | Path) -> dict[str, int]:
    """How many cells are in each state that occurs."""
    of_cells = [state_of(study, cell_folder(study, cell, root)) for cell in study.cells.values()]
    return {state: of_cells.count(state) for state in (DONE, RUNNING, WAITING, FAILURE) if state in of_cells}


def result_of(study: Study, folder: Path) -> Result:
    """What came out of a cell that is done."""
    reports = {probe: json.loads(report_file(folder, probe).read_text()) for probe in study.probes}
    run = checkpoint_of(folder).parent
    return Result(reports, curve_of(run), str(run))


def results_of(study: Study, root: str | Path) -> dict[str, Result]:
    """What came out of the cells of a study that are done, by the name of the cell."""
    folders = {name: cell_folder(study, cell, root) for name, cell in study.cells.items()}
    return {name: result_of(study, folder) for name, folder in folders.items() if is_done(study, folder)}


def check_base(study: Study, root: str | Path, base: Settings) -> None:
    """Keep the settings that all runs of a study share; UserError with the first key in which they have changed.

    They may change as long as no cell has begun.
    """
    path = folder_of(study, root) / BASE
    if path.is_file() and any(folder_of(study, root).glob("*/*/config.yaml")):
        old = json.loads(path.read_text())
        for key in sorted(old.keys() | base.keys()):
            if json.dumps(old.get(key)) != json.dumps(base.get(key)):
                raise UserError(
                    f"study {study.name}: its runs had {key} {old.get(key)}, which is now {base.get(key)}: put it "
                    "back, or give the study's file another name"
                )
    write_text(path, json.dumps(base, indent=1) + "\n")
