"""A study: runs that differ in a few settings, as one YAML file describes them."""

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from msssl.studies.folder import StudyFolder
from msssl.studies.measures import probe_flags

Settings = dict[str, Any]
CURVES, FRONT = "epochs", "minutes"  # what a figure can show along x, beside an axis of the grid


@dataclass(frozen=True)
class Cell:
    """One run: what it sets beyond the base, and its seed.

    Attributes:
        settings: values by the flags of `msssl fit`.
        seed: of the run.
    """

    settings: Settings
    seed: int

    @property
    def id(self) -> str:
        """A name that no other settings have."""
        return short_hash([self.settings, self.seed])

    def __str__(self) -> str:
        return ", ".join([*(f"{name}={plain(value)}" for name, value in self.settings.items()), f"seed {self.seed}"])


@dataclass(frozen=True)
class Row:
    """One line of the study's table.

    Attributes:
        arm: its name.
        at: label by axis of the grid.
        candidates: label of what is chosen, and the cells of all seeds, best of which by validation is reported.
        published: mean and deviation in the paper; None where they are not known, or there are none.
    """

    arm: str
    at: Settings
    candidates: dict[str, list[Cell]]
    published: tuple[float, float] | None


@dataclass(frozen=True)
class Study:
    """What a study's files say.

    Attributes:
        name: of its files, which names its folder too.
        title: a sentence.
        base: names of configs of `msssl fit`.
        common: settings of all runs.
        measures: by their names; see docs/paper.md.
        rows: of its table.
        figure: what the picture shows along x, and whether `log`.
        differs: how it differs from what is published, in a line each.
        folder: what the folder of its images must hold; None where the configs name the data.
    """

    name: str
    title: str
    base: list[str]
    common: Settings
    measures: dict[str, Settings]
    rows: list[Row]
    figure: Settings
    differs: list[str]
    folder: StudyFolder | None = None

    @functools.cached_property
    def cells(self) -> dict[str, Cell]:
        """All runs by their id, each once, those of one seed before those of the next."""
        every = [cell for row in self.rows for cells in row.candidates.values() for cell in cells]
        seeds = list(dict.fromkeys(cell.seed for cell in every))
        return {cell.id: cell for cell in sorted(every, key=lambda cell: seeds.index(cell.seed))}

    @property
    def axes(self) -> list[str]:
        """Of the grids of all arms."""
        return list(dict.fromkeys(axis for row in self.rows for axis in row.at))

    @property
    def probes(self) -> dict[str, list[str]]:
        """Arguments of each `msssl probe` that the measures need, by the name under which its report is kept."""
        of_measures = [probe_flags(measure) for measure in self.measures.values()]
        return {" ".join(flags): flags for flags in of_measures if flags is not None}


def short_hash(content: Any) -> str:
    """Of plain data: a name that no other content has."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def plain(value: Any) -> str:
    """A value as text, as it is printed and given to a flag.

    >>> plain(1e-05), plain([1, None]), plain("auto")
    ('1e-05', '[1, null]', 'auto')
    """
    return value if isinstance(value, str) else json.dumps(value)
