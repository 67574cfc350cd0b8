"""`msssl sweep` as it is started: bad input, a study from its file to its table, and workers that are killed."""

import csv
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from msssl.studies import read_study
from msssl.studies.cells import results_of

ROOT = Path(__file__).parents[1]
MINIATURE = {  # an overlay of any study on the demonstration
    "set": {
        **{"trainer.max_epochs": 2, "trainer.enable_progress_bar": False, "data.train_images": 80},
        **{"data.test_images": 20, "data.batch_size": 8, "model.backbone": "msssl.ResNet"},
        **{"model.backbone.width": 2, "model.backbone.low_resolution": False, "rank_monitor": "null"},
    },
    "seeds": [0],
}


def study(arms, **more):
    return {"base": ["demo.yaml"], "measures": {"linear": {"protocol": "standard"}}, "arms": arms, **more}


GRID = {"a": {"grid": {"model.proj_dim": [8]}}}
WRONG = {
    "cell model.proj_dimm=8, seed 0: no option .*proj_dimm; did you mean proj_dim": study(
        {"a": {"grid": {"model.proj_dimm": [8]}}}
    ),
    "cell model.form=triples, seed 0: .*form": study({"a": {"grid": {"model.form": ["triples"]}}}),
    "study s, arm a: model.proj_dim is .*expected values": study({"a": {"grid": {"model.proj_dim": []}}}),
    "config nowhere.yaml is neither here": study(GRID, base=["nowhere.yaml"]),
    "study s: no key cells": study(GRID, cells=[]),
}


@pytest.mark.parametrize(("message", "content"), WRONG.items(), ids=range(len(WRONG)))
def test_a_wrong_study_is_one_line_and_leaves_nothing(msssl, tmp_path, message, content):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    code, _, err = msssl("sweep", "--config", "s.yaml")
    assert code == 2
    assert re.search(message, err), err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def run(folder, *args, **options):
    command = [sys.executable, "-m", "msssl", *args]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def finish(child):
    out, _ = child.communicate()
    return child.returncode, out.decode()


def written(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "s.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder


@pytest.mark.long
def test_a_study_in_miniature(msssl, tmp_path):
    """A cell that fails does not stop the others, the base cannot change, and what is done is not run again."""
    arm = {"set": {"model.beta": 0.005}, "grid": {"model.proj_dim": [16]}, "published": [[0.5, 0.1]]}
    fails = {"set": {"data.train_images": 5}}  # not one batch
    content = {**study({"one": arm, "fails": fails}), **MINIATURE}
    content["measures"] = {"linear": {"protocol": "standard"}, "kNN": {"protocol": "standard", "head": "knn"}}
    written(tmp_path, content)
    code, out, err = msssl("sweep", "--config", "s.yaml")
    assert code == 1, err
    assert "study s: 1 done, 1 failed of 2 cells; cell " in err
    assert "data.train_images=5" in err
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/s/*/*/last.ckpt")}
    assert len(trained) == 1
    del content["arms"]["fails"]
    written(tmp_path, content)
    code, out, err = msssl("sweep", "s.yaml")
    assert code == 0, err
    assert "all 1 cells are done: msssl report s.yaml" in out + err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/s/*/*/last.ckpt")} == trained
    assert msssl("report", "s.yaml")[0] == 0
    with (tmp_path / "runs/s/s.csv").open(newline="") as file:
        linear, knn = csv.DictReader(file)
    kept = json.loads(next(tmp_path.glob("runs/s/*/*/probe.json")).read_text())
    assert [float(row["mean"]) for row in (linear, knn)] == [
        kept["rows"][0][f"test_{name}"] for name in ("top1", "knn")
    ]
    assert [each["features"] for each in kept["rows"]] == ["pretrained encoder"]
    content["set"]["data.batch_size"] = 4
    written(tmp_path, content)
    code, _, err = msssl("sweep", "s.yaml")
    assert code == 2
    assert "study s: its runs had set.data.batch_size 8, which is now 4" in err


@pytest.mark.slow
def test_other_programs_spread_a_study_cell_by_cell(tmp_path):
    """As docs/paper.md has it: by the number of a SLURM array's task, and two at a time by xargs."""
    folder = written(tmp_path, study({"a": {"grid": {"model.proj_dim": [4, 8, 16]}}}, **MINIATURE))
    code, out = finish(run(folder, "sweep", "s.yaml", "--list"))
    assert code == 0, out
    assert [line.split()[:2] for line in out.splitlines()] == [[str(n), "waiting"] for n in (1, 2, 3)]
    assert not (folder / "runs").exists()
    msssl = f"{shlex.quote(sys.executable)} -m msssl sweep --config s.yaml --cell"
    shell = {"cwd": folder, "shell": True, "check": True, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    subprocess.run(f"{msssl} $SLURM_ARRAY_TASK_ID", **{**shell, "env": {**os.environ, "SLURM_ARRAY_TASK_ID": "2"}})
    code, out = finish(run(folder, "sweep", "s.yaml", "--list"))
    assert [line.split()[1] for line in out.splitlines()] == ["waiting", "done", "waiting"]
    subprocess.run(f"seq 3 | xargs -P 2 -I {{}} {msssl} {{}}", **shell)
    assert set(rows_of(folder)[1].values()) == {1}
    assert len(rows_of(folder)[0]) == 3
    code, out = finish(run(folder, "sweep", "s.yaml", "--cell", "4"))
    assert code == 2
    assert "study s: there is no cell 4, only 1 to 3" in out


TWELVE = study(
    {
        "Barlow Twins": {"grid": {"model.proj_dim": [4, 8, 16], "data.views.n_views": [2, 3]}},
        "VICReg": {"set": {"model": "msssl.VICReg"}, "grid": {"model.proj_dim": [4, 8, 16]}},
        "chosen": {"set": {"model.form": "pairs"}, "choose": {"model.beta": [0.1, 0.01, 0.001]}},
    },
    **MINIATURE,
)


def rows_of(folder):
    """The numbers of each cell's report, by its id, and how often it was begun anew: a resumed run keeps its folder."""
    results = results_of(read_study([str(folder / "s.yaml")]), folder / "runs")
    times = {name: len([*(folder / "runs/s" / name).glob("*/last.ckpt")]) for name in results}
    return {name: [each["rows"] for each in result.reports.values()] for name, result in results.items()}, times


@pytest.mark.slow
def test_workers_killed_at_ten_points(tmp_path):
    whole, killed = (written(tmp_path / name, TWELVE) for name in ("whole", "killed"))
    undisturbed = run(whole, "sweep", "s.yaml")
    choose = random.Random(0)
    for i in range(10):
        child = run(killed, "sweep", "s.yaml", start_new_session=True)
        time.sleep(choose.uniform(12, 40))
        assert child.poll() is None, finish(child)[1]
        if i % 3 == 2:  # the worker alone: what it started lives on
            child.kill()
        else:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    codes = [finish(each) for each in [run(killed, "sweep", "s.yaml") for _ in range(2)]]
    assert [code for code, _ in codes] == [0, 0], codes
    code, out = finish(undisturbed)
    assert code == 0, out
    expected, _ = rows_of(whole)
    found, times = rows_of(killed)
    assert len(expected) == 12
    assert found == expected
    assert set(times.values()) == {1}


@pytest.mark.slow
def test_a_stopped_worker_goes_on(tmp_path):
    longer = {**MINIATURE, "set": {**MINIATURE["set"], "trainer.max_epochs": 40}}
    folder = written(tmp_path, study(GRID, **longer))
    child = run(folder, "sweep", "s.yaml")
    while not any(folder.glob("runs/s/*/*/last.ckpt")):
        time.sleep(0.2)
        assert child.poll() is None, finish(child)[1]
    child.terminate()
    code, out = finish(child)
    assert code == 128 + signal.SIGTERM, out
    assert "stopped: the same command goes on" in out
    log = next(folder.glob("runs/s/*/log.txt")).read_text()
    assert "stopped by SIGTERM" in log
    child = run(folder, "sweep", "s.yaml")
    code, out = finish(child)
    assert code == 0, out
    assert len(list(folder.glob("runs/s/*/*/last.ckpt"))) == 1
