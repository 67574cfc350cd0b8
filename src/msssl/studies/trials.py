"""Where the results of a study are: trials in a storage of Optuna, one for each time a cell is run."""

import json
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from msssl.studies.measures import Result
from msssl.studies.study import Study

if TYPE_CHECKING:
    import optuna

HEARTBEAT, GRACE = 15, 60  # seconds between two signs of life, and after which a process without them is dead
FILE = "study.db"
CELL, RESULT, REASON, BASE = "cell", "result", "reason", "base"


def folder_of(study: Study, root: str) -> Path:
    """Of a study's runs and, unless it has a storage elsewhere, of its results."""
    return Path(root) / study.name


def open_trials(study: Study, root: str, storage: str | None, create: bool) -> "optuna.Study":
    """The trials of a study.

    Args:
        study: whose.
        root: folder of all runs.
        storage: URL of a database, by default an SQLite file in the study's folder.
        create: whether to make what is not there.

    Raises:
        ImportError: without Optuna.
        ValueError: the storage cannot be reached, or holds nothing of this study.
    """
    try:
        import optuna
        from sqlalchemy.exc import ArgumentError, SQLAlchemyError
    except ImportError as error:
        raise ImportError(f"studies need Optuna: pip install 'msssl[sweep]' ({error})") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # ours says what fails
    folder = folder_of(study, root)
    url = storage or f"sqlite:///{folder / FILE}"
    try:
        if not create:
            return optuna.load_study(study_name=study.name, storage=_storage(url))
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # two processes that make the tables at once trip over each other
            return optuna.create_study(
                study_name=study.name,
                storage=_storage(url),
                direction="maximize",
                load_if_exists=True,
                sampler=optuna.samplers.TPESampler(constant_liar=True),  # others draw at the same time
                pruner=optuna.pruners.MedianPruner() if study.prune else optuna.pruners.NopPruner(),
            )
    except KeyError as error:
        raise ValueError(f"study {study.name}: nothing of it is in {_shown(url)}") from error
    except (SQLAlchemyError, ArgumentError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"study {study.name}: its storage {_shown(url)} cannot be reached: {reason}") from error


def _storage(url: str) -> Any:
    """A storage in which who shows no sign of life is found dead, and what it did waits again."""
    from optuna import exceptions, storages

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exceptions.ExperimentalWarning)  # heartbeats are, since 2021
        return storages.RDBStorage(
            url,
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=storages.RetryHeartbeatStaleTrialCallback(),
            engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None,
        )


def enqueue(study: Study, trials: "optuna.Study", base: dict[str, Any], root: str) -> None:
    """Have each cell run that is neither finished nor under way; those that failed are tried again.

    Raises:
        ValueError: cells have run with another base, which names the first key that differs.
    """
    old = trials.user_attrs.get(BASE)
    if old is not None:
        _check_base(study.name, old, base)
    trials.set_user_attr(BASE, base)
    with FileLock(folder_of(study, root) / ".lock"):
        there = {trial.user_attrs[CELL] for trial in _live(trials)}
        for name, cell in study.cells.items():
            if name not in there:
                trials.enqueue_trial({CELL: number(name)}, user_attrs={CELL: name, "settings": str(cell)})


def number(cell_id: str) -> int:
    """A cell's id as a parameter of Optuna."""
    return int(cell_id, 16)


def is_double(trials: "optuna.Study", trial: Any) -> bool:
    """Whether an earlier trial of the same cell is finished or under way: two machines have enqueued it at once."""
    same = trial.user_attrs[CELL]
    return any(each.user_attrs[CELL] == same and each.number < trial.number for each in _live(trials))


def finished(study: Study, trials: "optuna.Study") -> dict[str, Result]:
    """What came out of the study's cells, by name."""
    found = {}
    for trial in trials.get_trials(deepcopy=False):
        name = trial.user_attrs.get(CELL)
        if trial.state.name == "COMPLETE" and name in study.cells and name not in found:
            found[name] = Result(**trial.user_attrs[RESULT])
    return found


def results_of(study: Study, root: str, storage: str | None) -> dict[str, Result]:
    """What came out of the study's cells, by name; none where nothing was run. Errors as `open_trials` has them."""
    if storage is None and not (folder_of(study, root) / FILE).is_file():
        return {}
    return finished(study, open_trials(study, root, storage, create=False))


def states(study: Study, trials: "optuna.Study") -> Counter[str]:
    """How many of the study's cells are done, pruned, running, waiting and failed."""
    rank = ["COMPLETE", "RUNNING", "WAITING", "PRUNED", "FAIL"]
    best: dict[str, str] = {}
    for trial in trials.get_trials(deepcopy=False):
        name = trial.user_attrs.get(CELL)
        if name in study.cells:
            best[name] = min(best.get(name, "FAIL"), trial.state.name, key=rank.index)
    return Counter(best.values())


def failures(study: Study, trials: "optuna.Study") -> dict[str, str]:
    """Why cells failed that have not been finished since, by id."""
    done = {trial.user_attrs.get(CELL) for trial in _live(trials)}
    reasons = {trial.user_attrs.get(CELL): trial.user_attrs.get(REASON) for trial in trials.get_trials(deepcopy=False)}
    return {name: why for name, why in reasons.items() if why and name in study.cells and name not in done}


def keep(trial: Any, result: Result) -> None:
    """Put what came out into the storage."""
    trial.set_user_attr(RESULT, asdict(result))


def _live(trials: "optuna.Study") -> list[Any]:
    every = trials.get_trials(deepcopy=False)
    return [each for each in every if each.state.name != "FAIL" and CELL in each.user_attrs]


def _check_base(name: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    for key in sorted(old.keys() | new.keys()):
        if json.dumps(old.get(key)) != json.dumps(new.get(key)):
            raise ValueError(
                f"study {name}: its runs had {key} {old.get(key)}, which is now {new.get(key)}: put it back, or give "
                "the study's file another name"
            )


def _shown(url: str) -> str:
    from sqlalchemy.engine import make_url

    with suppress(Exception):
        return make_url(url).render_as_string(hide_password=True)
    return url
