"""Studies: which cells a file means, what a table makes of results written by hand, and what is refused."""

import csv
import dataclasses
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from msssl.cli.sweep import sweep
from msssl.errors import UserError
from msssl.studies import read_study, report
from msssl.studies.cells import cell_folder, check_base, states
from msssl.studies.cells import results_of as cells_on_disk
from msssl.studies.figure import draw
from msssl.studies.folder import content_hash
from msssl.studies.lock import exclusive_lock, is_locked
from msssl.studies.measures import ONLINE, Result, curve_of
from msssl.studies.study import plain
from msssl.studies.table import as_csv, csv_of_cells, differences, lines_of
from msssl.studies.table import cells as cells_of
from msssl.studies.worker import Worker

STUDY = {
    "title": "A study",
    "base": ["demo.yaml"],
    "set": {"trainer.max_epochs": 1},
    "seeds": [0, 1, 2],
    "measures": {
        "linear": {"protocol": "standard"},
        "kNN": {"protocol": "standard", "head": "knn"},
        "on val": {"protocol": "standard", "split": "val"},
        "minutes to 0.5": {"minutes_to": 0.5},
        "online": {"online": ONLINE},
    },
    "arms": {
        "a": {
            "set": {"model": "msssl.BarlowTwins"},
            "grid": {"model.proj_dim": [8, 16], "K": {"two": {"data.views.n_views": 2}, "all": {"data.fraction": 1.0}}},
            "choose": {"model.beta": ["auto", 0.1]},
            "published": [[0.5, 0.01], None, [0.25, 0.02], None],
        },
        "b": {"set": {"model": "msssl.VICReg"}, "grid": {"model.proj_dim": [8, 16]}},
    },
    "figure": {"x": "proj_dim", "log": True},
    "differs": ["it is small"],
}
PROBE = "--protocol standard"


@pytest.fixture
def study_of(tmp_path):
    """Writes a study, changed by dotted keys, and reads it."""

    def read(**changes):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
        return read_study([str(path)])

    return read


def result(test, val, knn=0.1, curve=((1.0, 0.1), (2.0, 0.6)), data_id="01", minutes=3.0):
    row = {"features": "pretrained encoder", "test_top1": test, "val_top1": val, "test_knn": knn}
    of_run = {"minutes": minutes}
    content = {"rows": [row], "reported_on": "test", "data_id": data_id, "run": of_run, "protocol": "a protocol"}
    content |= {"images": {"test": 2000}, "data_class": "Shapes", "versions": {"msssl": "0"}}
    points = [{"step": 10.0 * i, "epoch": i, "minutes": at, ONLINE: top1} for i, (at, top1) in enumerate(curve)]
    return Result({PROBE: content}, points, "somewhere")


def results_of(study, seed=0):
    """Results of all cells, drawn at random; the choice is by `val`, so that test must not decide."""
    generator = np.random.default_rng(seed)
    return {name: result(*generator.uniform(0, 1, 3)) for name in study.cells}


def test_cells_are_all_combinations_once(study_of):
    study = study_of()
    expected = []
    for dim, K, beta, seed in itertools.product([8, 16], ["two", "all"], ["auto", 0.1], [0, 1, 2]):
        of_k = {"data.views.n_views": 2} if K == "two" else {"data.fraction": 1.0}
        settings = {"model": "msssl.BarlowTwins", "model.proj_dim": dim, **of_k, "model.beta": beta}
        expected.append((json.dumps(settings, sort_keys=True), seed))
    for dim, seed in itertools.product([8, 16], [0, 1, 2]):
        expected.append((json.dumps({"model": "msssl.VICReg", "model.proj_dim": dim}, sort_keys=True), seed))
    found = [(json.dumps(cell.settings, sort_keys=True), cell.seed) for cell in study.cells.values()]
    assert sorted(found) == sorted(expected)
    assert [seed for _, seed in found] == sorted(seed for _, seed in found)  # whole seeds first
    assert len({cell.id for cell in study.cells.values()}) == len(expected)


def test_rows_that_are_the_same_run_share_it(study_of):
    study = study_of(arms={"a": STUDY["arms"]["b"], "b": STUDY["arms"]["b"]})
    assert len(study.rows) == 4
    assert len(study.cells) == 6


def test_another_probe_is_the_same_run_which_is_not_done_yet(study_of, tmp_path):
    study = study_of(seeds=[0])
    for cell in study.cells.values():
        leave_in(tmp_path, study, cell, result(0.5, 0.25))
    more = study_of(seeds=[0], measures={**STUDY["measures"], "paper": {"protocol": "paper", "test_patches": 1}})
    renamed = study_of(seeds=[0], measures={"another name": {"protocol": "standard"}, "time": {"minutes_to": 0.9}})
    assert [*study.cells] == [*more.cells] == [*renamed.cells]
    of_each = [states(each, tmp_path) for each in (study, more, renamed)]
    n = len(study.cells)
    assert of_each == [{"done": n}, {"waiting": n}, {"done": n}]


def test_overlays_win_and_replace(study_of, tmp_path):
    study_of()
    overlay = {
        "set": {"trainer.max_epochs": 7, "data.batch_size": 8},
        "seeds": [5],
        "replace": {"msssl.BarlowTwins": "mine.Loss", "model.beta": "model.lambd", "data.fraction": None},
    }
    (tmp_path / "over.yaml").write_text(yaml.safe_dump(overlay))
    study = read_study([str(tmp_path / "study.yaml"), str(tmp_path / "over.yaml")])
    assert study.name == "study-over"
    assert study.common == {"trainer.max_epochs": 7, "data.batch_size": 8}
    settings = [cell.settings for cell in study.cells.values() if cell.settings["model"] == "mine.Loss"]
    assert {each["model.lambd"] for each in settings} == {"auto", 0.1}
    assert all(each.keys() <= {"model", "model.lambd", "model.proj_dim", "data.views.n_views"} for each in settings)
    assert {cell.seed for cell in study.cells.values()} == {5}


def test_every_number_of_the_table_is_recomputed(study_of):
    study = study_of()
    found = results_of(study)
    lines = lines_of(study, found)
    by_settings = {(json.dumps(cell.settings, sort_keys=True), cell.seed): name for name, cell in study.cells.items()}

    def runs(settings):
        return [found[by_settings[json.dumps(settings, sort_keys=True), seed]] for seed in (0, 1, 2)]

    rows = list(csv.DictReader(as_csv(study, lines).splitlines()))
    assert len(rows) == 6 * len(STUDY["measures"])
    published = dict(zip(itertools.product([8, 16], ["two", "all"]), STUDY["arms"]["a"]["published"], strict=True))
    for row in rows:
        dim = int(row["proj_dim"])
        if row["arm"] == "a":
            of_k = {"data.views.n_views": 2} if row["K"] == "two" else {"data.fraction": 1.0}
            fixed = {"model": "msssl.BarlowTwins", "model.proj_dim": dim, **of_k}
            tried = {beta: runs({**fixed, "model.beta": beta}) for beta in ("auto", 0.1)}
            means = {b: np.mean([each.reports[PROBE]["rows"][-1]["val_top1"] for each in tried[b]]) for b in tried}
            best = max(means, key=means.get)
            assert row["chosen"] == f"beta={best}"
            of_row = tried[best]
            known = published[dim, row["K"]]
        else:
            of_row, known = runs({"model": "msssl.VICReg", "model.proj_dim": dim}), None
        last = [each.reports[PROBE]["rows"][-1] for each in of_row]
        expected = {
            "linear": [each["test_top1"] for each in last],
            "kNN": [each["test_knn"] for each in last],
            "on val": [each["val_top1"] for each in last],
            "minutes to 0.5": [2.0] * 3,
            "online": [0.6] * 3,
        }[row["measure"]]
        assert list(map(float, row["values"].split())) == expected
        assert float(row["mean"]) == pytest.approx(np.mean(expected), abs=1e-12)
        assert (row["low"], row["high"], row["over"]) == ("nan", "nan", "")  # three seeds
        shown = known if row["measure"] == "linear" else None
        assert [row["published"], row["deviation"]] == (["", ""] if shown is None else [str(each) for each in shown])
    first = lines[0]
    assert first.difference == pytest.approx(first.values["linear"].mean - 0.5)
    assert lines[1].difference is None


ARMS = {"a": {"grid": {"x": [1, 2]}}, "b": {"set": {"y": 1}, "grid": {"x": [1, 2, 3]}}}


def by_arm(study, accuracies):
    """Results of a study without choices: accuracies by arm, place on x and seed."""
    return {
        cell.id: result(accuracies[row.arm, row.at["x"]][cell.seed], 0.5)
        for row in study.rows
        for cell in row.candidates[""]
        if cell.seed < len(accuracies[row.arm, row.at["x"]])
    }


ACCURACIES = {
    ("a", 1): [0.1, 0.7, 0.4, 0.9, 0.2],
    ("a", 2): [0.2, 0.6, 0.5, 0.8, 0.3],
    ("b", 1): [0.12, 0.73, 0.42, 0.94],
    ("b", 2): [0.99, 0.9, 1.0, 0.7, 1.0],
    ("b", 3): [0.3, 0.4],
}


@pytest.fixture
def two_arms(study_of):
    study = study_of(seeds=[0, 1, 2, 3, 4], arms=ARMS, measures={"linear": {}, "on val": {"split": "val"}}, figure={})
    found = by_arm(study, ACCURACIES)
    for each in found.values():
        each.reports[""] = each.reports[PROBE]
    return study, found


def test_from_four_seeds_on_an_interval_stands_in_the_table_and_below_the_values(two_arms):
    study, found = two_arms
    lines = lines_of(study, found)
    for line in lines:
        values = ACCURACIES[line.row.arm, line.row.at["x"]]
        shown = cells_of(study, line)
        assert shown["linear"] == (f"{np.mean(values):.3f}" if np.mean(values) < 1 else "1.000")
        if len(values) < 4:
            assert shown["values, or 95 % interval"] == ", ".join(f"{each:.3f}" for each in values)
            continue
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert shown["values, or 95 % interval"] == f"{max(low, 0):.3f} to {min(high, 1):.3f}"
        assert shown["on val"] == "0.500 (0.500 to 0.500)"
    rows = [row for row in csv.DictReader(as_csv(study, lines).splitlines()) if row["measure"] == "linear"]
    assert [row["over"] for row in rows] == ["seeds"] * 4 + [""]
    assert all(0 <= float(row["low"]) <= float(row["high"]) <= 1 for row in rows[:4])
    assert [row["values"] for row in rows] == [" ".join(map(str, each)) for each in ACCURACIES.values()]


def test_differences_are_to_the_first_arm_at_the_same_place_and_paired_by_seed(two_arms):
    study, found = two_arms
    lines = lines_of(study, found)
    compared = {(line.row.arm, line.row.at["x"]): each for line, each in differences(study, lines, "linear")}
    assert {place: each.reference for place, each in compared.items()} == {
        ("a", 2): "a, x=1",
        ("b", 1): "a, x=1",
        ("b", 2): "a, x=2",
    }
    gains = np.subtract(ACCURACIES["b", 1], ACCURACIES["a", 1][:4])
    difference = compared["b", 1]
    assert difference.seeds == [0, 1, 2, 3]
    assert difference.over_seeds.values == pytest.approx(gains.tolist())
    low, high = stats.t.interval(0.95, 3, loc=gains.mean(), scale=stats.sem(gains))
    assert (difference.over_seeds.low, difference.over_seeds.high) == pytest.approx((low, high))
    assert low > 0  # although the arms' own intervals are 10 times as wide
    rows = list(csv.DictReader(as_csv(study, lines).splitlines()))
    (row,) = [row for row in rows if (row["arm"], row["x"], row["measure"]) == ("b", "1", "linear")]
    assert (row["reference"], row["difference_seeds"]) == ("a, x=1", "0 1 2 3")
    assert [float(each) for each in row["differences"].split()] == pytest.approx(gains.tolist())
    assert [float(row[f"difference{end}"]) for end in ("", "_low", "_high")] == pytest.approx([gains.mean(), low, high])


def test_a_run_that_two_arms_share_has_no_difference(study_of):
    arms = {"a": {"grid": {"x": [1, 2]}}, "b": {"grid": {"x": [1, 2]}}}
    study = study_of(arms=arms, figure={})
    lines = lines_of(study, results_of(study))
    assert [line.name for line, _ in differences(study, lines, "linear")] == ["a, x=2"]


def test_one_seed_has_the_interval_over_images(study_of):
    study = study_of(seeds=[0], arms={"a": {"set": {"x": 1}}}, figure={})
    found = {name: result(0.8, 0.5) for name in study.cells}
    (one,) = found.values()
    one.reports[PROBE]["rows"][-1] |= {"test_confusion": [[60, 20], [20, 100]], "test_knn_interval": (0.05, 0.2)}
    (line,) = lines_of(study, found)
    shown = cells_of(study, line)
    wilson = stats.binomtest(160, 200).proportion_ci(method="wilson")
    assert shown["values, or 95 % interval"] == f"{wilson.low:.3f} to {wilson.high:.3f} (images)"
    assert shown["kNN"].startswith("0.100 (0.0")
    assert shown["on val"] == "0.500"


def test_what_was_not_reached_or_not_run_says_so(study_of):
    study = study_of()
    found = results_of(study)
    names = [cells[0].id for cells in study.rows[4].candidates.values()]
    found[names[0]] = result(0.3, 0.3, curve=((1.0, 0.1), (2.0, 0.4)))  # one seed below 0.5
    for cells in study.rows[0].candidates.values():
        for cell in cells:
            del found[cell.id]
    del found[study.rows[1].candidates["beta=auto"][2].id]  # a seed
    lines = lines_of(study, found)
    assert not lines[0].values
    assert lines[0].difference is None
    assert lines[4].values["minutes to 0.5"].mean is None
    assert lines[4].values["minutes to 0.5"].values == [None, 2.0, 2.0]
    assert lines[1].chosen != "beta=auto" or lines[1].seeds == [0, 1]
    assert lines[1].n_tried == 2


def test_a_time_to_an_arm_is_to_its_end_with_the_same_seed(study_of):
    arms = {"a": {"grid": {"model.proj_dim": [8, 16]}}, "b": {"set": {"model": "msssl.VICReg"}}}
    study = study_of(measures={"minutes to b": {"minutes_to": "b"}}, arms=arms)
    found = {name: result(0.5, 0.5, curve=((1.0, 0.2), (2.0, 0.7), (3.0, 0.9))) for name in study.cells}
    for cell, end in zip(study.rows[-1].candidates[""], [0.6, 0.8, 0.95], strict=True):
        found[cell.id] = result(0.5, 0.5, curve=((1.0, 0.1), (4.0, end)))
    lines = lines_of(study, found)
    assert [line.values["minutes to b"].values for line in lines] == [[2.0, 3.0, None]] * 2 + [[4.0] * 3]
    with pytest.raises(ValueError, match="measure m: the time to a: expected an arm with one row"):
        study_of(measures={"m": {"minutes_to": "a"}}, arms=arms)


def test_different_images_are_refused(study_of):
    study = study_of()
    found = results_of(study)
    last = list(found)[-1]
    found[last] = result(0.5, 0.5, data_id="02")
    with pytest.raises(ValueError, match=f"images 01, but cell {last} .* on 02"):
        lines_of(study, found)


@pytest.mark.parametrize("x", ["proj_dim", "K", "epochs", "minutes"])
def test_figures_are_drawn(study_of, tmp_path, x):
    study = study_of(figure={"x": x}, arms={"a": STUDY["arms"]["a"]})
    found = results_of(study)
    for cells in study.rows[0].candidates.values():
        for cell in cells:
            del found[cell.id]
    draw(study, lines_of(study, found), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_figures_show_each_seed_and_from_four_on_an_interval(two_arms, study_of, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **kwargs: figures.append(figure) or path.touch())
    study, found = two_arms
    draw(dataclasses.replace(study, figure={"x": "x"}), lines_of(study, found), tmp_path / "figure.png")
    (axes,) = figures[0].axes
    bars = [container.lines[2][0].get_segments()[0][:, 1] for container in axes.containers]
    several = [values for values in ACCURACIES.values() if len(values) >= 4]
    expected = [stats.t.interval(0.95, len(v) - 1, loc=np.mean(v), scale=stats.sem(v)) for v in several]
    assert np.array(bars) == pytest.approx(np.clip(expected, 0, 1))
    points = [list(line.get_ydata()) for line in axes.lines if list(line.get_xdata()) == [3, 3]]
    assert points == [ACCURACIES["b", 3]]


WRONG = {
    "no key arm": {"arm": {}},
    "arms is missing": {"arms": {}},
    "proj_dim is []": {"arms": {"a": {"grid": {"model.proj_dim": []}}}},
    "1 published values for the 2 points": {
        "arms": {"a": {"grid": {"model.proj_dim": [8, 16]}, "published": [[0.5, 0.1]]}}
    },
    "seeds is []": {"seeds": []},
    "seeds has a value twice: [0, 1, 0]": {"seeds": [0, 1, 0]},
    "measure m: no key patches": {"measures": {"m": {"protocol": "paper", "patches": 3}}},
    "measure m: head is 'tree'": {"measures": {"m": {"head": "tree"}}},
    "measure m: protocol is 'papr'": {"measures": {"m": {"protocol": "papr"}}},
    "measure m: the paper's protocol has": {"measures": {"m": {"protocol": "paper", "head": "knn"}}},
    "measure minutes: its name": {"measures": {"minutes": {"minutes_to": 0.5}}},
    "arm a: grid is None": {"arms": {"a": {"grid": None}}},
    "arm a: grid is {}": {"arms": {"a": {"grid": {}}}},
    "arm a: model.lr is [1, 2]: expected values to go through, of another name": {
        "arms": {"a": {"choose": {"lr": [1, 2], "model.lr": [1, 2]}}}
    },
    "has a value twice: [1, '1']": {"arms": {"a": {"grid": {"x": [1, "1"]}}}},
    "published is [0.5]": {"arms": {"a": {"grid": {"x": [1]}, "published": [[0.5]]}}},
    "figure.x is typo": {"figure": {"x": "typo"}},
    "arms is ['a']": {"arms": ["a"]},
    "no key search": {"arms": {"a": {"search": {"model.beta": [1, 2]}}}},
    "arm a: no key grids": {"arms": {"a": {"grids": {}}}},
}


@pytest.mark.parametrize(("message", "changes"), WRONG.items(), ids=str)
def test_a_wrong_study_names_itself_and_the_key(study_of, message, changes):
    with pytest.raises(ValueError, match="study study") as error:
        study_of(**changes)
    assert message in str(error.value)


def test_minutes_are_those_of_a_run_and_not_of_its_pauses(tmp_path):
    for start, steps in ((1000.0, (0, 1, 2)), (5000.0, (2, 3))):  # stopped in the third minute, on after an hour
        writer = EventFileWriter(str(tmp_path), filename_suffix=f".{start:.0f}")
        for i, step in enumerate(steps):
            time = start + 60 * i
            for tag, value in {"lr-Adam": 0.001, **({ONLINE: 0.1 * step} if step else {})}.items():
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                writer.add_event(Event(wall_time=time, step=step, summary=summary))
        writer.close()
    for i, path in enumerate(sorted(tmp_path.iterdir(), key=lambda path: path.suffix)):
        path.rename(tmp_path / f"events.out.tfevents.{i}")
    rows = "".join(f"{step - 1},{step},0.001,{0.1 * step if step else ''}\n" for step in range(4))
    (tmp_path / "metrics.csv").write_text(f"epoch,step,lr-Adam,{ONLINE}\n{rows}")
    found = curve_of(tmp_path)
    assert [point["minutes"] for point in found] == [1.0, 2.0, 3.0]
    assert [point[ONLINE] for point in found] == pytest.approx([0.1, 0.2, 0.3])
    assert [point["epoch"] for point in found] == [0, 1, 2]


def leave_in(folder, study, cell, a_result):
    """Files of a cell that was trained and probed."""
    run = folder / study.name / cell.id / "20260101-000000"
    run.mkdir(parents=True)
    for name in ("last.ckpt", "config.yaml"):
        (run / name).touch()
    rows = "".join(f"{point['epoch']},{point['step']:.0f},{point[ONLINE]}\n" for point in a_result.curve)
    (run / "metrics.csv").write_text(f"epoch,step,{ONLINE}\n{rows}")
    for probe, content in a_result.reports.items():
        (run.parent / f"probe {probe}.json").write_text(json.dumps(content))
    (run.parent / "trained").touch()


def test_the_state_of_a_cell_is_what_lies_in_its_folder(study_of, tmp_path):
    study = study_of(seeds=[0])
    done, failed, locked, half, *waiting = study.cells.values()
    assert states(study, tmp_path) == {"waiting": len(study.cells)}
    leave_in(tmp_path, study, done, result(0.5, 0.25))
    for cell in (failed, locked, half):
        cell_folder(study, cell, tmp_path).mkdir(parents=True)
    (cell_folder(study, failed, tmp_path) / "failed.txt").write_text("no")
    (cell_folder(study, half, tmp_path) / "trained").touch()  # and not probed
    with exclusive_lock(cell_folder(study, locked, tmp_path)):
        assert states(study, tmp_path) == {"done": 1, "running": 1, "waiting": len(waiting) + 1, "failed": 1}
    assert states(study, tmp_path) == {"done": 1, "waiting": len(waiting) + 2, "failed": 1}
    found = cells_on_disk(study, tmp_path)
    assert [*found] == [done.id]
    assert found[done.id].reports == result(0.5, 0.25).reports
    (cell_folder(study, done, tmp_path) / "failed.txt").write_text("there is no accuracy to choose by")
    assert states(study, tmp_path) == {"waiting": len(waiting) + 2, "failed": 2}
    assert cells_on_disk(study, tmp_path) == {}


def test_a_base_may_change_until_a_cell_has_begun(study_of, tmp_path):
    study = study_of(arms={"b": STUDY["arms"]["b"]}, seeds=[0])
    check_base(study, tmp_path, {"set.x": 1})
    check_base(study, tmp_path, {"set.x": 3})
    leave_in(tmp_path, study, next(iter(study.cells.values())), result(0.5, 0.25))
    check_base(study, tmp_path, {"set.x": 3})
    with pytest.raises(ValueError, match=r"study study: its runs had set\.x 3, which is now 2"):
        check_base(study, tmp_path, {"set.x": 2})


def test_a_lock_is_held_by_a_child_that_outlives_its_parent_and_is_free_when_it_ends(tmp_path):
    code = (
        "import subprocess, sys; from pathlib import Path; from msssl.studies.lock import exclusive_lock\n"
        "with exclusive_lock(Path(sys.argv[1])) as lock:\n"
        "    child = subprocess.Popen(['sleep', '60'], pass_fds=[lock], stdout=subprocess.DEVNULL)\n"
        "    print(child.pid, flush=True)\n"
        "    __import__('os')._exit(0)"
    )
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, check=True).stdout
    assert is_locked(tmp_path)
    os.kill(int(out), signal.SIGKILL)
    with exclusive_lock(tmp_path, wait=True) as lock:
        assert lock is not None
    assert not is_locked(tmp_path)


class Recorded(Worker):
    """A worker whose runs are short: each is noted, and the first of some cells fails."""

    def __init__(self, *args, fails=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.begun, self.fails = [], fails

    def _run(self, cell, folder, lock):
        self.begun.append(cell.id)
        if cell.id in self.fails:
            raise ChildProcessError("no")
        leave_in(Path(self.root), self.study, cell, result(0.5, 0.25))
        (folder / "failed.txt").unlink(missing_ok=True)


def test_a_worker_runs_each_cell_once_and_what_failed_again_when_it_is_started_again(study_of, tmp_path):
    study = study_of(arms={"b": STUDY["arms"]["b"]}, seeds=[0, 1])
    first, *others = study.cells
    worker = Recorded(study, str(tmp_path), {"demo.yaml": "x"}, fails=[first])
    worker.work()
    assert worker.begun == [first, *others]
    assert states(study, tmp_path) == {"done": 3, "failed": 1}
    assert (tmp_path / "study" / first / "failed.txt").read_text().startswith(f"cell {first} (")
    time.sleep(0.02)  # the clock of a file system may be coarse
    again = Recorded(study, str(tmp_path), {"demo.yaml": "x"})
    again.work()
    assert again.begun == [first]
    assert states(study, tmp_path) == {"done": 4}


def test_one_cell_runs_alone(study_of, tmp_path):
    study = study_of(arms={"b": STUDY["arms"]["b"]}, seeds=[0, 1])
    worker = Recorded(study, str(tmp_path), {"demo.yaml": "x"})
    third = [*study.cells.values()][2]
    for _ in range(2):  # the second time it is done
        worker.work_on(third)
    assert worker.begun == [third.id]


def test_a_worker_takes_over_from_one_that_ends_without_a_result(study_of, tmp_path):
    study = study_of(arms={"b": {"set": {"model": "msssl.VICReg"}}}, seeds=[0, 1], figure={})
    held = next(iter(study.cells.values()))
    worker = Recorded(study, str(tmp_path), {"demo.yaml": "x"})
    with exclusive_lock(cell_folder(study, held, tmp_path)):
        thread = threading.Thread(target=worker.work)
        thread.start()
        while len(worker.begun) < 1:
            time.sleep(0.01)
        time.sleep(0.1)
        assert worker.begun == [[*study.cells][1]]
        assert thread.is_alive()
    thread.join(timeout=30)
    assert worker.begun == [*reversed(study.cells)]


def test_a_lucky_seed_is_no_candidate(study_of):
    study = study_of(arms={"a": {"choose": {"x": [1, 2]}}}, figure={})
    one, other = study.rows[0].candidates.values()
    found = {cell.id: result(0.5, 0.6) for cell in one} | {other[0].id: result(0.9, 0.9)}
    assert lines_of(study, found)[0].chosen == "x=1"


def test_a_baseline_without_the_axis_is_a_line(study_of, tmp_path):
    arms = {"a": {"set": {"model": "x"}}, "b": STUDY["arms"]["b"]}
    study = study_of(arms=arms)
    draw(study, lines_of(study, results_of(study)), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_a_report_says_what_was_not_run(study_of, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    study = study_of()
    report(["study.yaml"])
    assert "0 of 6 rows were run" in capsys.readouterr().out
    leave_in(Path("runs"), study, next(iter(study.cells.values())), result(0.5, 0.25))
    report(["study.yaml"])
    out = capsys.readouterr().out
    text = Path("runs/study/study.md").read_text()
    for each in (out, text):
        assert each.count("not run") == 5
        assert "1 of 6 rows were run" in each
        assert "differs from the paper: it is small" in each
        assert "0.500 ± 0.010" in each
    assert {"study.csv", "study.png"} <= {path.name for path in Path("runs/study").iterdir()}


def test_csv_of_cells_has_every_candidate_with_its_settings(study_of):
    study = study_of()
    found = results_of(study)
    missing = next(iter(found))
    del found[missing]
    rows = {row["cell"]: row for row in csv.DictReader(csv_of_cells(study, found).splitlines())}
    assert rows.keys() == found.keys()
    for name, row in rows.items():
        cell, last = study.cells[name], found[name].reports[PROBE]["rows"][-1]
        settings = {flag: plain(value) for flag, value in cell.settings.items()}
        assert {flag: row[flag] for flag in settings} == settings
        assert int(row["seed"]) == cell.seed
        values = [float(row[measure]) for measure in ("linear", "kNN", "on val", "minutes to 0.5", "online")]
        assert values == [last["test_top1"], last["test_knn"], last["val_top1"], 2.0, 0.6]
        assert float(row["chosen by"]) == last["val_top1"]


def test_folder_of_a_study_is_known_by_the_names_and_sizes_of_its_images(study_of, tmp_path):
    folder = tmp_path / "images"
    for name in ("train/a/1.png", "train/b/2.png"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"12345")
    (folder / "read.me").touch()
    expected = hashlib.sha256(b"train/a/1.png 5\ntrain/b/2.png 5\n").hexdigest()[:16]
    assert content_hash(folder) == (2, expected)
    needed = study_of(folder={"name": "two images", "files": 2, "sha256": expected}).folder
    needed.check(folder)
    needed.check(folder.rename(tmp_path / "moved"))
    (tmp_path / "moved/train/b/2.png").write_bytes(b"123456")
    with pytest.raises(UserError, match="moved holds 2 images, but their names or sizes are not those of two images"):
        needed.check(tmp_path / "moved")
    (tmp_path / "moved/train/b/2.png").unlink()
    with pytest.raises(UserError, match="moved holds 1 image, not the 2 of two images"):
        needed.check(tmp_path / "moved")
    with pytest.raises(UserError, match="nowhere is not a folder; the study needs two images"):
        needed.check(tmp_path / "nowhere")


def test_sweep_wants_the_folder_of_a_study_that_names_one(study_of, tmp_path):
    folder = {"name": "two images", "files": 2, "sha256": "0"}
    study_of(folder=folder)
    with pytest.raises(UserError, match="study study is of two images: name their folder with --data_dir"):
        sweep([str(tmp_path / "study.yaml")], root=str(tmp_path))
    study_of(folder=None)
    with pytest.raises(UserError, match="study study names its data itself: leave out --data_dir"):
        sweep([str(tmp_path / "study.yaml")], root=str(tmp_path), data_dir=str(tmp_path))
    for wrong, message in ({"files": 2}, "name is missing"), ({**folder, "md5": "0"}, "no key md5"):
        with pytest.raises(UserError, match=f"study study, folder: {message}"):
            study_of(folder=wrong)
