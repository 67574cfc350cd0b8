"""The studies of configs/paper: they can be read, every run of theirs can be parsed, and what is published is there."""

import re
from pathlib import Path

import pytest

from msssl.cli.arguments import find_config
from msssl.cli.check import check_fit
from msssl.studies import read_study
from msssl.studies.worker import fit_of

CONFIGS = Path(__file__).parents[1] / "configs"
PAPER = CONFIGS / "paper"
OVERLAY = PAPER / "as-published.yaml"
STUDIES = sorted(set(PAPER.glob("*.yaml")) - {OVERLAY})
SMALL = sorted(set((PAPER / "small").glob("*.yaml")) - {PAPER / "small/base.yaml"})
# What Ghosh et al. (2024) print, by study and arm: per cent, or minutes; those that are in pictures only are not known.
D1 = {
    "Barlow Twins, fixed beta": "73.6 0.9 74.7 1.4 75.9 0.7 79.2 0.8 81.3 1.0 81.0 0.9 82.3 0.4 82.2 0.4",
    "Barlow Twins, tuned beta": "82.1 0.2 83.0 1.1 83.4 0.4 82.8 0.5 82.9 0.3 82.3 0.5 82.3 0.4 82.2 0.4",
    "VICReg, fixed": "68.9 0.2 70.6 0.1 75.3 0.2 79.3 0.4 79.2 0.9 80.6 0.0 80.5 0.3 80.4 1.5",
    "VICReg, tuned": "81.9 0.2 82.3 0.4 81.9 0.3 82.1 0.6 82.5 0.9 81.9 1.2 81.0 0.4 80.4 1.5",
}
E3 = {
    "Barlow Twins, D = 256": "86.43 0.72 91.73 0.16 92.71 0.19",
    "Barlow Twins, D = 8192": "85.44 0.54 91.40 0.32 92.40 0.13",
}
E1 = {"Barlow Twins, D = 256": "92.04 0.16 92.39 0.17 92.64 0.10"}
TABLE2 = {"barlow-twins": {"K = 4, D = 256": "43.09 0.20"}, "vicreg": {"K = 4, D = 256": "39.02 0.05"}}
TABLE3 = {
    "Barlow Twins": "63.43 0.02 39.52 0.04 28.25 0.01 27.74 0.01",
    "VICReg": "66.05 0.01 40.64 0.04 32.39 0.01 34.76 0.01",
}
PER_CENT = {"table1": D1, "fig3": E3, "e1": E1}
MINUTES = {"table2-barlow-twins": TABLE2["barlow-twins"], "table2-vicreg": TABLE2["vicreg"], "table3": TABLE3}


def published(name):
    """Values of a study's rows by arm, one after the other."""
    found = {}
    for row in read_study([str(PAPER / f"{name}.yaml")]).rows:
        if row.published is not None:
            found.setdefault(row.arm, []).extend(row.published)
    return found


def commands(*paths):
    """The `msssl fit` of the first run of each row."""
    study = read_study([str(path) for path in paths])
    cells = [next(iter(row.candidates.values()))[0] for row in study.rows]
    return {
        f"{study.name}, {cell}: ": fit_of(study, cell, [find_config(name) for name in study.base]) for cell in cells
    }


@pytest.mark.parametrize("path", STUDIES + SMALL, ids=lambda path: path.stem)
def test_study_has_runs_with_its_seeds_and_says_how_it_differs(path):
    study = read_study([str(path)])
    assert {cell.seed for cell in study.cells.values()} == ({0} if path.stem == "weights" else {0, 1, 2})
    assert study.title != study.name
    assert study.differs
    assert f"\n# {len(study.cells)} runs: " in path.read_text()
    assert study.figure["x"] in ("epochs", "minutes", *(axis for row in study.rows for axis in row.at))
    targets = [measure.get("minutes_to") for measure in study.measures.values()]
    assert {name for name in targets if isinstance(name, str)} <= {row.arm for row in study.rows}


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_small_studies_share_their_base_and_name_their_images(path):
    study = read_study([str(path)])
    assert study.base == ["paper/small/base.yaml"]
    assert study.folder is not None


@pytest.mark.parametrize("name", [*PER_CENT, *MINUTES])
def test_published_numbers_stand_in_the_study(name):
    unit = 100 if name in PER_CENT else 1
    expected = {
        arm: [float(value) / unit for value in values.split()] for arm, values in {**PER_CENT, **MINUTES}[name].items()
    }
    assert published(name) == {arm: pytest.approx(values) for arm, values in expected.items()}


def test_published_numbers_are_51_and_stand_nowhere_else():
    numbers = {path.stem: sum(map(len, published(path.stem).values())) // 2 for path in STUDIES}
    assert {name for name, number in numbers.items() if number} == {*PER_CENT, *MINUTES}
    assert sum(numbers.values()) == 51


def test_points_of_a_published_table_are_in_its_order():
    rows = read_study([str(PAPER / "table1.yaml")]).rows
    assert [row.at["proj_dim"] for row in rows] == [64, 128, 256, 512, 1024, 2048, 4096, 8192] * 4
    rows = read_study([str(PAPER / "fig3.yaml")]).rows
    assert [row.at["K"] for row in rows if row.published] == [2, 4, 8] * 2


def test_as_published_replaces_losses_and_their_weights():
    ours, theirs = (
        read_study([str(PAPER / "table1.yaml"), *overlay]).cells.values() for overlay in ([], [str(OVERLAY)])
    )
    assert len(ours) == len(theirs) == 408
    losses = {"msssl.BarlowTwins": "fastssl.FastSSLBarlowTwins", "msssl.VICReg": "fastssl.FastSSLVICReg"}
    for mine, other in zip(ours, theirs, strict=True):
        weight = mine.settings.get("model.beta", mine.settings.get("model.sim_coeff"))
        dim = mine.settings["model.proj_dim"]
        expected = {"model": losses[mine.settings["model"]], "model.lambd": weight, "model.proj_dim": dim}
        assert other.settings == expected


@pytest.mark.slow
def test_runs_of_every_study_can_be_parsed(monkeypatch):
    monkeypatch.chdir(CONFIGS / "examples")  # where per_instance.yaml finds its overlay
    monkeypatch.syspath_prepend(CONFIGS / "examples")
    monkeypatch.syspath_prepend(PAPER)
    found = commands(PAPER / "table1.yaml", OVERLAY) | commands(PAPER / "table2-vicreg.yaml", OVERLAY)
    for path in STUDIES + SMALL:
        found |= commands(path)
    # One of those that differ in numbers alone, as each takes half a second.
    distinct = {tuple(_without_numbers(flags)): name for name, flags in found.items()}
    check_fit({name: found[name] for name in distinct.values()})


def _without_numbers(flags):
    return [re.sub(r"=[\d.e-]+$", "=a number", part) for part in flags]
