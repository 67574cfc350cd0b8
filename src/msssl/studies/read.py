"""The files of a study and its overlays."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import get_loader

from msssl.studies.measures import check_measures
from msssl.studies.study import Cell, Row, Settings, Study

KEYS = ("title", "base", "set", "seeds", "arms", "measures", "figure", "differs", "replace", "prune")
OF_ARM = ("set", "grid", "choose", "search", "trials", "published")


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
    replace = content.get("replace", {})
    common = _replaced(content.get("set", {}), replace)
    seeds = _list(name, "seeds", content.get("seeds", [0]))
    rows: list[Row] = []
    for arm, of_arm in content["arms"].items():
        _check(f"{name}, arm {arm}", of_arm, OF_ARM)
        rows += _rows(name, arm, of_arm, seeds, replace)
    check_measures(name, content["measures"], [row.arm for row in rows])
    return Study(
        name,
        content.get("title", name),
        _list(name, "base", content["base"]),
        common,
        content["measures"],
        rows,
        content.get("figure", {}),
        content.get("differs", []),
        content.get("prune", False),
    )


def _rows(study: str, arm: str, of_arm: Settings, seeds: list[int], replace: Settings) -> Iterator[Row]:
    where = f"{study}, arm {arm}"
    grid = list(_combined(where, of_arm.get("grid", {})))
    published = of_arm.get("published", [None] * len(grid))
    if len(published) != len(grid):
        raise ValueError(f"study {where}: {len(published)} published values for the {len(grid)} points of its grid")
    search, draws = of_arm.get("search", {}), range(int(of_arm.get("trials", 0)))
    if bool(search) != bool(draws):
        raise ValueError(f"study {where}: search and trials, their number, go together")
    for (at, settings), value in zip(grid, published, strict=True):
        fixed = _replaced({**of_arm.get("set", {}), **settings}, replace)
        candidates = {}
        for labels, chosen in _combined(where, of_arm.get("choose", {})):
            label = ", ".join(f"{axis}={found}" for axis, found in labels.items())
            complete = {**fixed, **_replaced(chosen, replace)}
            candidates[label] = [Cell(complete, seed) for seed in seeds]
        if search:  # drawn for the first seed: what is found can stand in a grid
            candidates = {f"draw {draw}": [Cell(fixed, seeds[0], draw, search)] for draw in draws}
        yield Row(arm, at, candidates, None if value is None else (value[0], value[1]))


def _combined(where: str, axes: Mapping[str, Any]) -> Iterator[tuple[Settings, Settings]]:
    """Labels and settings of each combination. An axis is a flag with values, or a name with settings by label."""
    points = []
    for axis, values in axes.items():
        if not isinstance(values, dict | list) or not values:
            raise ValueError(f"study {where}: {axis} is {values!r}: expected values to go through")
        of_axis = values.items() if isinstance(values, dict) else [(value, {axis: value}) for value in values]
        points.append([(axis.rpartition(".")[2], label, settings) for label, settings in of_axis])
    for combination in itertools.product(*points):
        labels = {axis: label for axis, label, _ in combination}
        yield labels, {key: value for _, _, settings in combination for key, value in settings.items()}


def _merged(old: Settings, new: Settings) -> Settings:
    both = {key: _merged(old[key], new[key]) for key in old.keys() & new.keys() if _are_dicts(old[key], new[key])}
    return {**old, **new, **both}


def _are_dicts(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def _replaced(settings: Settings, replace: Settings) -> Settings:
    """Other names for flags and values; a flag whose other name is null is left out."""
    found = {}
    for key, value in settings.items():
        name = replace.get(key, key)
        if name is not None:
            found[name] = replace.get(value, value) if isinstance(value, str) else value
    return found


def _read(path: str) -> Settings:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no study {path}")
    content = get_loader("yaml")(Path(path).read_text())  # to which 1e-3 is a number, as in configs
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no study: expected {', '.join(KEYS)}")
    return content


def _check(where: str, content: Any, known: Sequence[str], needed: Sequence[str] = ()) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"study {where}: expected {', '.join(known)}, got {content!r}")
    for key in content:
        if key not in known:
            raise ValueError(f"study {where}: no key {key}; expected one of {', '.join(known)}")
    for key in needed:
        if not content.get(key):
            raise ValueError(f"study {where}: {key} is missing")


def _list(study: str, key: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"study {study}: {key} is {value!r}: expected a list")
    return value
