"""Where the results of a study are: trials in a storage of Optuna, one for each time a cell is run."""

import json
import warnings
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from msssl.errors import MissingPackageError, UserError
from msssl.run.files import writing
from msssl.studies.measures import Result
from msssl.studies.study import Settings, Study

if TYPE_CHECKING:
    import optuna

HEARTBEAT, GRACE = 15, 60  # seconds between two signs of life, and after which a process without them is dead
FILE = "study.db"
CELL, RESULT, REASON, BASE = "cell", "result", "reason", "base"  # attributes of a trial, the last of all of them
STATES = {"COMPLETE": "done", "PRUNED": "pruned", "RUNNING": "running", "WAITING": "waiting", "FAIL": "failed"}


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
        raise MissingPackageError(f"studies need Optuna: pip install 'msssl[sweep]' ({error})") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # ours says what fails
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # heartbeats are, since 2021
    folder = folder_of(study, root)
    url = storage or f"sqlite:///{folder / FILE}"
    try:
        if not create:
            return optuna.load_study(study_name=study.name, storage=_storage(url))
        with writing(folder):
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
        raise UserError(f"study {study.name}: nothing of it is in {_shown(url)}") from error
    except (SQLAlchemyError, ArgumentError, ImportError) as error:
        told = error.__cause__ if isinstance(error, ImportError) else error  # the driver's name
        reason = str(told).partition("\n")[0]
        raise UserError(f"study {study.name}: its storage {_shown(url)} cannot be reached: {reason}") from error


def _storage(url: str) -> Any:
    """A storage in which who shows no sign of life is found dead, and what it did waits again."""
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
    from sqlalchemy import event

    is_file = url.startswith("sqlite")
    storage = RDBStorage(
        url,
        heartbeat_interval=HEARTBEAT,
        grace_period=GRACE,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        engine_kwargs={"connect_args": {"timeout": 60}} if is_file else None,
    )
    if is_file:  # SQLite locks no rows: without this, two processes that ask at once get the same trial

        @event.listens_for(storage.engine, "connect")
        def _begin_ourselves(connection: Any, record: Any) -> None:
            connection.isolation_level = None

        @event.listens_for(storage.engine, "begin")
        def _begin(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return storage


def check_base(study: Study, trials: "optuna.Study", base: Settings) -> None:
    """ValueError with the first key in which the base of a study differs from that of its runs."""
    old = trials.user_attrs.get(BASE, {})
    if any(trial.state.name != "WAITING" for trial in _live(study, trials)):
        for key in sorted(old.keys() | base.keys()):
            if json.dumps(old.get(key)) != json.dumps(base.get(key)):
                raise UserError(
                    f"study {study.name}: its runs had {key} {old.get(key)}, which is now {base.get(key)}: put it "
                    "back, or give the study's file another name"
                )
    trials.set_user_attr(BASE, base)


def enqueue(study: Study, trials: "optuna.Study", root: str, names: Collection[str]) -> None:
    """Have these cells run that are neither finished nor under way; what a search has drawn stays."""
    with FileLock(folder_of(study, root) / ".lock"):
        there = {trial.user_attrs[CELL] for trial in _live(study, trials)}
        drawn = {trial.user_attrs.get(CELL): trial.params for trial in trials.get_trials(deepcopy=False)}
        for name in names:
            if name not in there:
                attributes = {CELL: name, "settings": str(study.cells[name])}
                trials.enqueue_trial(drawn.get(name, {}), user_attrs=attributes)


def is_double(study: Study, trials: "optuna.Study", trial: Any) -> bool:
    """Whether an earlier trial has the same cell: two machines have enqueued it at once."""
    same = trial.user_attrs[CELL]
    return any(each.user_attrs[CELL] == same and each.number < trial.number for each in _live(study, trials))


def fail_dead(study: Study, trials: "optuna.Study", root: str) -> None:
    """Have run again what a process was at that shows no sign of life."""
    from optuna import storages, trial
    from sqlalchemy import text

    storages.fail_stale_trials(trials)
    running = [each for each in _live(study, trials) if each.state.name == "RUNNING"]
    storage: Any = trials._storage
    with getattr(storage, "_backend", storage).engine.connect() as connection:
        lived = {row[0] for row in connection.execute(text("SELECT trial_id FROM trial_heartbeats"))}
    for each in running:  # Optuna leaves alone who died before its first sign
        if each._trial_id not in lived and (datetime.now() - each.datetime_start).total_seconds() > GRACE:
            storage.set_trial_state_values(each._trial_id, trial.TrialState.FAIL)
            enqueue(study, trials, root, [each.user_attrs[CELL]])


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
    found = dict.fromkeys(study.cells, "FAIL")
    order = ["COMPLETE", "PRUNED", "RUNNING", "WAITING", "FAIL"]
    for trial in _live(study, trials):
        name = trial.user_attrs[CELL]
        if name in found:
            found[name] = min(found[name], trial.state.name, key=order.index)
    return Counter(STATES[state] for state in found.values())


def failures(study: Study, trials: "optuna.Study") -> dict[str, str]:
    """Why cells failed that have not been finished since, by name."""
    live = {trial.user_attrs[CELL] for trial in _live(study, trials)}
    reasons = {trial.user_attrs.get(CELL): trial.user_attrs.get(REASON) for trial in trials.get_trials(deepcopy=False)}
    return {name: why for name, why in reasons.items() if why and name in study.cells and name not in live}


def keep(trial: Any, result: Result) -> None:
    """Put what came out into the storage."""
    trial.set_user_attr(RESULT, asdict(result))


def _live(study: Study, trials: "optuna.Study") -> list[Any]:
    """Trials that are finished, under way or waiting; what was pruned counts as long as the study prunes."""
    dead = ("FAIL",) if study.prune else ("FAIL", "PRUNED")
    every = trials.get_trials(deepcopy=False)
    return [each for each in every if each.state.name not in dead and CELL in each.user_attrs]


def _shown(url: str) -> str:
    from sqlalchemy.engine import make_url

    with suppress(Exception):
        return make_url(url).render_as_string(hide_password=True)
    return url
