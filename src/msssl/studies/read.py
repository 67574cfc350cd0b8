"""Reads a study from its YAML file and overlays, and checks them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import get_loader
from yaml import YAMLError

from msssl.errors import UserError
from msssl.studies.folder import StudyFolder
from msssl.studies.measures import check_measures
from msssl.studies.study import CURVES, FRONT, Cell, Row, Settings, Study

KEYS = ("title", "base", "set", "seeds", "arms", "measures", "figure", "differs", "replace", "folder")
OF_FOLDER = ("name", "files", "sha256")
OF_ARM = ("set", "grid", "choose", "published")


def read_study(paths: Sequence[str]) -> Study:
    """Read a study and its overlays, of which later ones win.

    Raises:
        ValueError: a file is no study, a key is unknown, or a grid is empty; the message names both.
    """
    name = "-".join(Path(path).stem for path in paths)
    content: Settings = {}
    for path in paths:
        content = _merged(content, _read(path))
    _check(name, content, KEYS, needed=("base", "arms", "measures"))
    replace = _dict(name, "replace", content.get("replace", {}))
    seeds = _list(name, "seeds", content.get("seeds", [0]))
    if len({str(seed) for seed in seeds}) < len(seeds):
        raise UserError(f"study {name}: seeds has a value twice: {seeds!r}")
    rows: list[Row] = []
    for arm, of_arm in _dict(name, "arms", content["arms"]).items():
        _check(f"{name}, arm {arm}", of_arm, OF_ARM)
        rows += _rows(name, arm, of_arm, seeds, replace)
    figure = _dict(name, "figure", content.get("figure", {}))
    axes = {axis for row in rows for axis in row.at}
    if figure.get("x", CURVES) not in (CURVES, FRONT, *axes):
        raise UserError(f"study {name}: figure.x is {figure['x']}: expected {CURVES}, {FRONT} or an axis: {axes}")
    check_measures(name, _dict(name, "measures", content["measures"]), [row.arm for row in rows])
    return Study(
        name,
        content.get("title", name),
        _list(name, "base", content["base"]),
        _replaced(_dict(name, "set", content.get("set", {})), replace),
        content["measures"],
        rows,
        figure,
        content.get("differs", []),
        _folder(name, content.get("folder")),
    )


def _folder(study: str, content: Any) -> StudyFolder | None:
    if content is None:
        return None
    _check(f"{study}, folder", content, OF_FOLDER, needed=OF_FOLDER)
    return StudyFolder(content["name"], content["files"], content["sha256"])


def _rows(study: str, arm: str, of_arm: Settings, seeds: list[int], replace: Settings) -> Iterator[Row]:
    where = f"{study}, arm {arm}"
    given = {key: _dict(where, key, of_arm[key]) for key in ("set", "grid", "choose") if key in of_arm}
    grid = list(_combined(where, given.get("grid", {})))
    published = _list(where, "published", of_arm.get("published", [None] * len(grid)))
    if len(published) != len(grid):
        raise UserError(f"study {where}: {len(published)} published values for the {len(grid)} points of its grid")
    for (at, settings), value in zip(grid, published, strict=True):
        fixed = _replaced({**given.get("set", {}), **settings}, replace)
        candidates = {}
        for labels, chosen in _combined(where, given.get("choose", {})):
            label = ", ".join(f"{axis}={value}" for axis, value in labels.items())
            complete = {**fixed, **_replaced(chosen, replace)}
            candidates[label] = [Cell(complete, seed) for seed in seeds]
        if value is not None and not (isinstance(value, list) and len(value) == 2):
            raise UserError(f"study {where}: published is {value!r}: expected mean and deviation, or null")
        yield Row(arm, at, candidates, None if value is None else (value[0], value[1]))


def _combined(where: str, axes: Mapping[str, Any]) -> Iterator[tuple[Settings, Settings]]:
    """Labels and settings of each combination. An axis is a flag with values, or a name with settings by label."""
    points: dict[str, list[tuple[Any, Settings]]] = {}
    for axis, values in axes.items():
        name = axis.rpartition(".")[2]
        if not isinstance(values, dict | list) or not values or name in points:
            raise UserError(f"study {where}: {axis} is {values!r}: expected values to go through, of another name")
        of_axis = values.items() if isinstance(values, dict) else [(value, {axis: value}) for value in values]
        points[name] = [(label, _dict(where, f"{axis}, {label}", settings)) for label, settings in of_axis]
        if len({str(label) for label, _ in points[name]}) < len(values):
            raise UserError(f"study {where}: {axis} has a value twice: {values!r}")
    for combination in itertools.product(*points.values()):
        labels = {axis: label for axis, (label, _) in zip(points, combination, strict=True)}
        yield labels, {key: value for _, settings in combination for key, value in settings.items()}


def _merged(old: Settings, new: Settings) -> Settings:
    both = {key: _merged(old[key], new[key]) for key in old.keys() & new.keys() if _are_dicts(old[key], new[key])}
    return {**old, **new, **both}


def _are_dicts(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def _replaced(settings: Settings, replace: Settings) -> Settings:
    """Other names for flags and values; a flag whose other name is null is left out."""
    replaced = {}
    for key, value in settings.items():
        name = replace.get(key, key)
        if name is not None:
            replaced[name] = replace.get(value, value) if isinstance(value, str) else value
    return replaced


def _read(path: str) -> Settings:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no study {path}")
    try:
        content = get_loader("yaml")(Path(path).read_text())  # to which 1e-3 is a number, as in configs
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"study {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no study: expected {', '.join(KEYS)}")
    return content


def _check(where: str, content: Any, known: Sequence[str], needed: Sequence[str] = ()) -> None:
    if not isinstance(content, dict):
        raise UserError(f"study {where}: expected {', '.join(known)}, got {content!r}")
    for key in content:
        if key not in known:
            raise UserError(f"study {where}: no key {key}; expected one of {', '.join(known)}")
    for key in needed:
        if not content.get(key):
            raise UserError(f"study {where}: {key} is missing")


def _dict(where: str, key: str, value: Any) -> Settings:
    if not isinstance(value, dict) or (not value and key in ("grid", "choose", "arms")):
        raise UserError(f"study {where}: {key} is {value!r}: expected what it sets")
    return value


def _list(study: str, key: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UserError(f"study {study}: {key} is {value!r}: expected a list")
    return value
