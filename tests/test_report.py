"""`msssl report` on reports made by hand: what stands in one table, in one row, and with which interval."""

import csv
import importlib
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from msssl.cli.errors import user_message
from msssl.studies import report

reporting = importlib.import_module("msssl.evaluation.compare.side_by_side")
draw = reporting._draw
FEATURES = ["raw pixels", "untrained encoder", "pretrained encoder"]
BATCH = "data.batch_size"


BASELINES = (0.1, 0.2)


def write(
    path, top1=0.5, *, seed=0, interval=(0.4, 0.6), knn=0.3, settings=None, baselines=BASELINES, more=None, **told
):
    """A report of the least that there is.

    `settings` are those of the run by dotted names, `more` is added to the row of the pretrained encoder, `told` to the
    report.
    """
    split = told.get("reported_on", "test")
    of_run = {"method": "msssl.BarlowTwins", "epochs": 10, "minutes": 1.5, "views_seen": 4000}
    of_run |= {name: told.pop(name) for name in [*of_run] if name in told}
    nested = {"model": {"_class_path": of_run["method"], "optimizer": {"lr": 0.1}}, "data": {"batch_size": 64}}
    for name, value in (settings or {}).items():
        *parents, last = name.split(".")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    rows = []
    for features, accuracy in zip(FEATURES, (*baselines, top1), strict=True):
        row = {"features": features, f"{split}_top1": accuracy}
        row |= {} if interval is None else {f"{split}_interval": interval}
        rows.append(row | ({} if knn is None else {f"{split}_knn": knn}))
    rows[-1] |= more or {}
    content = {
        **{"checkpoint": str(path.with_name("last.ckpt")), "sha256": str(path), "data_class": "Shapes"},
        **{"data_id": "0123", "protocol": "a protocol", "reported_on": split, "images": {"probe": 40, split: 2000}},
        **{"run": {**of_run, "settings": nested}, "seeds": {"run": seed}, "rows": rows, **told},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """Writes the report of some runs, and reads the rows of its CSV file, those of the pretrained encoder or all."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reporting, "_draw", lambda *args: None)  # most of the time

    def of(*runs, every=False):
        report([str(each) for each in runs], out="out/table")
        with Path("out/table.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [row for row in rows if every or row["features"] == FEATURES[2]]

    return of


def numbers(row, *names):
    return [float(row[name]) for name in names]


def page():
    return Path("out/table.md").read_text()


def test_seeds_are_one_row_with_students_interval(compare, tmp_path):
    values = [0.51, 0.6, 0.72, 0.55]
    runs = [
        write(tmp_path / f"{i}" / "probe.json", top1, seed=i, knn=top1 / 2, minutes=float(i), interval=(0.0, 1.0))
        for i, top1 in enumerate(values)
    ]
    (row,) = compare(*(path.parent for path in runs))
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert numbers(row, "mean", "low", "high") == pytest.approx([np.mean(values), low, high])
    assert row["over"] == "seeds"
    assert [float(each) for each in row["top1"].split()] == values
    assert row["seeds"] == "0 1 2 3"
    assert numbers(row, "knn", "epochs", "minutes", "views_seen") == pytest.approx([np.mean(values) / 2, 10, 1.5, 4000])
    assert f"| {low:.3f} to {high:.3f} |" in page()
    assert row["folders"] == ", ".join(str(path.parent) for path in runs)
    assert f"BarlowTwins: {row['folders']}" in page()


def test_an_interval_stays_within_accuracies(compare, tmp_path):
    for values, end in (([0.99, 0.9, 1.0, 0.7], "high"), ([0.01, 0.1, 0.0, 0.3], "low")):
        (row,) = compare(*(write(tmp_path / f"{i}.json", top1, seed=i) for i, top1 in enumerate(values)))
        assert float(row[end]) == (1.0 if end == "high" else 0.0)
        assert 0 <= float(row["low"]) < float(row["high"]) <= 1


@pytest.mark.parametrize("values", [(0.28, 0.38), (0.28, 0.38, 0.31)])
def test_below_four_seeds_stand_the_values_and_no_interval(compare, tmp_path, values):
    (row,) = compare(*(write(tmp_path / f"{i}.json", top1, seed=i) for i, top1 in enumerate(values)))
    assert float(row["mean"]) == pytest.approx(np.mean(values))
    assert (row["low"], row["high"], row["over"]) == ("nan", "nan", "")
    assert f"| {np.mean(values):.3f} | {', '.join(f'{each:.3f}' for each in values)} |" in page()
    assert "-0." not in page()


def test_one_seed_has_the_interval_over_images(compare, tmp_path):
    (row,) = compare(write(tmp_path / "probe.json", 0.5, interval=(0.45, 0.56)))
    assert numbers(row, "mean", "low", "high") == [0.5, 0.45, 0.56]
    assert row["over"] == "images"
    assert "0.450 to 0.560 (images)" in page()


def test_an_interval_of_version_0_1_is_made_anew(compare, tmp_path):
    """It was a bootstrap's, of width 0 where all images are right; and the tables of both versions are one."""
    old = "a protocol, 95 % bootstrap interval"
    confusion = {"test_confusion": [[30, 0], [0, 20]]}
    runs = [
        write(tmp_path / "0.json", 1.0, interval=(1.0, 1.0), protocol=old, more=confusion),
        write(tmp_path / "1.json", 0.9, seed=1, protocol=old.replace("bootstrap", "Wilson")),
    ]
    (row,) = compare(*runs)
    assert row["seeds"] == "0 1"
    (row,) = compare(runs[0])
    z = stats.norm.ppf(0.975)
    assert numbers(row, "low", "high") == pytest.approx([50 / (50 + z * z), 1.0])


def test_one_seed_without_an_interval_has_none(compare, tmp_path):
    (row,) = compare(write(tmp_path / "probe.json", 0.5, interval=None, knn=None, reported_on="val"))
    assert math.isnan(float(row["low"]))
    assert math.isnan(float(row["high"]))
    assert "knn" not in row
    assert "| 0 | 0.500 | - | 10 |" in page()


def test_a_run_and_its_repetition_count_once_and_it_is_said(compare, tmp_path):
    runs = [write(tmp_path / f"{i}" / "probe.json", top1, seed=seed).parent for i, (top1, seed) in enumerate(AGAIN)]
    (row,) = compare(*runs)
    assert (row["seeds"], row["top1"]) == ("0 1", "0.5 0.6")
    assert row["folders"] == f"{runs[0]}, {runs[2]}"
    assert f"{runs[1]} repeats {runs[0]} (seed 0, equal accuracies): counted once" in page()
    (row,) = compare(*runs[:2])
    assert (row["seeds"], row["top1"], row["over"]) == ("0", "0.5", "images")
    assert numbers(row, "low", "high") == [0.4, 0.6]


AGAIN = [(0.5, 0), (0.5, 0), (0.6, 1)]


def test_a_copy_of_a_checkpoint_counts_once(compare, tmp_path):
    runs = [write(tmp_path / f"{i}" / "probe.json", 0.5, seed=None, sha256="one").parent for i in range(2)]
    (row,) = compare(*runs)
    assert (row["seeds"], row["top1"]) == ("?", "0.5")
    assert f"{runs[1]} is the same checkpoint as {runs[0]}" in page()


def test_runs_without_a_seed_are_told_apart_by_their_checkpoints(compare, tmp_path):
    (row,) = compare(*(write(tmp_path / f"{i}" / "probe.json", 0.5 + i, seed=None).parent for i in range(2)))
    assert (row["seeds"], row["top1"]) == ("? ?", "0.5 1.5")


def test_a_seed_that_came_out_differently_is_not_averaged(compare, tmp_path):
    runs = [write(tmp_path / f"{i}" / "probe.json", top1).parent for i, top1 in enumerate((0.5, 0.53))]
    rows = compare(*runs)
    assert [(row["seeds"], float(row["mean"])) for row in rows] == [("0", 0.5), ("0", 0.53)]
    assert [row["run"] for row in rows] == [f"BarlowTwins ({run})" for run in runs]
    assert f"seed 0 came out differently: {runs[0]} 0.500, {runs[1]} 0.530; not averaged" in page()


def test_seeds_of_two_machines_are_rows_of_their_own(compare, tmp_path):
    """Told apart by their versions, in whatever order they are given."""
    runs = [
        write(tmp_path / version / f"{seed}.json", 0.5 + seed / 10 + i / 100, seed=seed, versions={"torch": version})
        for seed in (0, 1)
        for i, version in enumerate(("2.14", "2.15")[:: 1 - 2 * seed])
    ]
    rows = compare(*runs)
    assert [(row["run"], row["seeds"]) for row in rows] == [
        ("BarlowTwins torch=2.14", "0 1"),
        ("BarlowTwins torch=2.15", "0 1"),
    ]
    assert [row["top1"] for row in rows] == ["0.5 0.61", "0.51 0.6"]


def test_baselines_have_no_seeds_and_count_once(compare, tmp_path):
    runs = [
        write(tmp_path / f"{i}.json", 0.5 + i / 10, seed=seed, settings={"model.optimizer.lr": lr})
        for i, (lr, seed) in enumerate([(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)])
    ]
    rows = [row for row in compare(*runs, every=True) if row["features"] != FEATURES[2]]
    assert [(row["features"], row["run"], row["seeds"], row["folders"]) for row in rows] == [
        ("raw pixels", "all runs", "", ""),
        ("untrained encoder", "all runs", "", ""),
    ]
    assert [numbers(row, "mean", "low", "high") for row in rows] == [[0.1, 0.4, 0.6], [0.2, 0.4, 0.6]]
    assert {row["over"] for row in rows} == {"images"}


def test_untrained_encoders_that_differ_are_named_by_their_runs(compare, tmp_path):
    runs = [
        write(
            tmp_path / f"{i}.json",
            0.5 + i / 10,
            settings={"model.width": width, BATCH: batch},
            baselines=(0.1, width / 100),
        )
        for i, (width, batch) in enumerate([(16, 64), (16, 128), (32, 64)])
    ]
    rows = [row for row in compare(*runs, every=True) if row["features"] == "untrained encoder"]
    assert [(row["run"], float(row["mean"])) for row in rows] == [("width=16", 0.16), ("batch_size=64 width=32", 0.32)]


def test_differences_are_paired_by_seed(compare, tmp_path):
    """Seeds differ by far more than the arms do, of which each seed says the same."""
    seeds = [0, 1, 2, 3, 4]
    base, gain = np.array([0.1, 0.7, 0.4, 0.9, 0.2]), np.array([0.02, 0.03, 0.02, 0.04, 0.03])
    runs = [
        write(tmp_path / f"{lr}-{seed}.json", value, seed=seed, settings={"model.optimizer.lr": lr})
        for lr, values in ((0.1, base), (0.2, base + gain))
        for seed, value in zip(seeds, values, strict=True)
    ][:-1]  # a seed is missing
    compare(*runs[::-1][4:], *runs[:0:-1][:4])
    line = next(line for line in page().splitlines() if line.startswith("| BarlowTwins lr=0.2 | BarlowTwins lr=0.1"))
    low, high = stats.t.interval(0.95, 3, loc=gain[:4].mean(), scale=stats.sem(gain[:4]))
    _, _, _, found, mean, interval, _ = (cell.strip() for cell in line.split("|"))
    assert sorted(found.split()) == ["0", "1", "2", "3"]
    assert mean == f"{gain[:4].mean():+.3f}"
    assert interval == f"{low:+.3f} to {high:+.3f}"


def test_differences_of_few_seeds_are_the_values(compare, tmp_path):
    compare(
        *(
            write(tmp_path / f"{name}-{seed}.json", top1, seed=seed, method=f"msssl.{name}")
            for name, values in (("A", (0.5, 0.75)), ("B", (0.25, 0.5)), ("C", (0.625, 0.5)))
            for seed, top1 in enumerate(values)
        ),
        write(tmp_path / "D.json", 0.5, seed=9, method="msssl.D"),
    )
    assert "| B | A | 0 1 | -0.250 | -0.250, -0.250 |" in page()
    assert "| C | A | 0 1 | -0.062 | +0.125, -0.250 |" in page()
    assert "| D |" not in page()


def test_mlp_and_few_labels_are_shown_where_they_were_measured(compare, tmp_path):
    few = {count: {head: {"mean": mean} for head, mean in (("linear", 0.25), ("knn", 0.2))} for count in ("10", "1")}
    runs = [
        write(tmp_path / "0.json", 0.5, more={"test_mlp": 0.6, "few_labels": few}),
        write(tmp_path / "1.json", 0.5, seed=1, more={"test_mlp": 0.7}),
    ]
    (row,) = compare(*runs)
    assert (float(row["mlp"]), row["mlp values"]) == (pytest.approx(0.65), "0.6 0.7")
    assert (row["10 a class, linear"], row["10 a class, linear values"]) == ("", "0.25 None")
    headings, _, *lines = [line for line in page().splitlines() if line.startswith("|")][:5]
    assert [cell.strip() for cell in headings.split("|")][6:12] == [
        "MLP",
        "kNN",
        *(f"{count} a class, {head}" for count in (1, 10) for head in ("linear", "kNN")),
    ]
    assert "| 0.650 | 0.300 | 0.250 (1 of 2) | 0.200 (1 of 2) |" in lines[2]
    assert "| - | 0.300 | - | - |" in lines[0]
    compare(write(tmp_path / "2.json", 0.5, knn=None))
    assert "MLP" not in page()
    assert "kNN" not in page()


def test_what_is_not_a_number_is_a_dash(compare, tmp_path):
    (row,) = compare(write(tmp_path / "0.json", math.nan, interval=None, knn=math.nan))
    assert row["mean"] == ""
    assert "nan" not in page()


def test_a_run_is_named_with_its_folder(compare, tmp_path):
    compare(*(write(tmp_path / name / "probe.json", data_id=None).parent for name in "ab"))
    for name in "ab":
        assert f"| BarlowTwins ({tmp_path / name}) |" in page()


def test_a_table_is_titled_by_the_name_of_the_data_and_its_split(compare, tmp_path):
    rows = compare(write(tmp_path / "0.json", data_class="ImageFolder", data_dir="/sets/leaves"))
    assert rows[0]["table"] == "ImageFolder leaves, test: 2,000 images; a protocol (images 0123)"
    rows = compare(write(tmp_path / "0.json", data_id=None))
    assert rows[0]["table"].startswith("Shapes, test: 2,000 images; a protocol (images not identified, of ")


def test_transfer_tells_apart_what_was_pretrained_on_other_images(compare, tmp_path):
    runs = [
        write(tmp_path / f"{name}.json", 0.5 + i / 10, settings={"data.data_dir": name}, transfer=True)
        for i, name in enumerate("ab")
    ]
    assert [row["run"] for row in compare(*runs)] == ["BarlowTwins data_dir=a", "BarlowTwins data_dir=b"]


def test_runs_of_other_numbers_of_images_or_steps_are_no_seeds_of_each_other(compare, tmp_path):
    for name in ("images", "steps"):
        runs = []
        for i in range(2):
            path = write(tmp_path / f"{i}.json", 0.5 + i / 10, seed=i)
            content = json.loads(path.read_text())
            content["run"][name] = 100 + i
            path.write_text(json.dumps(content))
            runs.append(path)
        assert [row["run"] for row in compare(*runs)] == [f"BarlowTwins {name}=100", f"BarlowTwins {name}=101"]


def test_protocols_and_images_are_never_mixed(compare, tmp_path):
    kinds = [
        {"protocol": protocol, "data_id": data_id, "reported_on": split}
        for protocol in ("linear", "paper")
        for data_id in ("01", "02")
        for split in ("test", "val")
    ]
    runs = [
        write(tmp_path / f"{i}-{seed}.json", i / 10, seed=seed, **kind)
        for i, kind in enumerate(kinds)
        for seed in (0, 1)
    ]
    rows = compare(*runs)
    assert len({row["table"] for row in rows}) == len(rows) == 8
    for i, (row, kind) in enumerate(zip(rows, kinds, strict=True)):
        assert numbers(row, "mean") == pytest.approx([i / 10])
        assert row["seeds"] == "0 1"
        assert all(part in row["table"] for part in kind.values())
        assert "2,000 images" in row["table"]
    assert [line for line in page().splitlines() if line.startswith("## ")] == [f"## {row['table']}" for row in rows]


def test_reports_of_a_folder_have_a_table_each(compare, tmp_path):
    write(tmp_path / "run" / "probe.json", 0.5, protocol="linear")
    write(tmp_path / "run" / "probe-paper.json", 0.6, protocol="paper")
    write(tmp_path / "run" / "probe-CIFAR10-data.json", 0.7, protocol="linear", data_id="4567", data_class="CIFAR10")
    (tmp_path / "run" / "other.json").write_text("{}")
    rows = compare(tmp_path / "run")
    assert {(row["table"].partition(" (")[0], float(row["mean"])) for row in rows} == {
        ("Shapes, test: 2,000 images; linear", 0.5),
        ("Shapes, test: 2,000 images; paper", 0.6),
        ("CIFAR10, test: 2,000 images; linear", 0.7),
    }


DIFFERENT = {
    "model.optimizer.lr": (0.1, 0.2),
    "model.beta": (0.5, 1.0),
    BATCH: (64, 128),
    "data.fraction": (0.1, 1.0),
    "data.views.init_args.n_views": (2, 8),
    "data.views.init_args.augmentations": (["a"], ["b"]),
    "model.lr_scheduler": (None, {"class_path": "Cosine"}),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_settings_that_differ_are_rows_and_in_their_names(compare, tmp_path, name):
    runs = [
        write(tmp_path / f"{i}-{seed}.json", 0.5 + i / 10, seed=seed, settings={name: value})
        for i, value in enumerate(DIFFERENT[name])
        for seed in (0, 1)
    ]
    rows = compare(*runs)
    assert [float(row["mean"]) for row in rows] == pytest.approx([0.5, 0.6])
    assert [row["seeds"] for row in rows] == ["0 1", "0 1"]
    assert rows[0]["run"] != rows[1]["run"]
    for row, value in zip(rows, DIFFERENT[name], strict=True):
        assert row["run"].startswith("BarlowTwins ")
        told = "class_path=Cosine" if isinstance(value, dict) else json.dumps(value) if value else "lr_scheduler=None"
        assert told in row["run"]
        assert name.rpartition(".")[2] in row["run"] or isinstance(value, dict)
        assert "batch_size" not in row["run"] or name == BATCH  # equal in both


@pytest.mark.parametrize("name", ["data_dir", "cache_dir", "num_workers", "storage"])
def test_settings_that_change_no_accuracy_split_nothing(compare, tmp_path, name):
    runs = [
        write(tmp_path / f"{i}.json", 0.5 + i / 10, seed=i, settings={f"data.{name}": value})
        for i, value in enumerate((None, "x"))
    ]
    (row,) = compare(*runs)
    assert (row["run"], row["seeds"]) == ("BarlowTwins", "0 1")


def test_epochs_split_and_methods_have_their_names(compare, tmp_path):
    runs = [
        write(tmp_path / "0.json", 0.5),
        write(tmp_path / "1.json", 0.6, epochs=20),
        write(tmp_path / "2.json", 0.7, method="msssl.VICReg"),
    ]
    rows = compare(*runs)
    assert [row["run"] for row in rows] == ["BarlowTwins epochs=10", "BarlowTwins epochs=20", "VICReg epochs=10"]
    assert [float(row["epochs"]) for row in rows] == [10, 20, 10]


def test_methods_of_one_name_are_told_apart(compare, tmp_path):
    runs = [write(tmp_path / f"{i}.json", 0.5, seed=i, method=f"{i}_losses.Mine") for i in ("a", "b")]
    assert len(compare(*runs)) == 2


def test_last_and_best_of_a_run_are_not_two_seeds(compare, tmp_path):
    runs = [
        write(tmp_path / "probe.json", 0.5),
        write(tmp_path / "probe-best.json", 0.6, checkpoint=str(tmp_path / "best.ckpt")),
    ]
    rows = compare(*runs)
    assert [float(row["mean"]) for row in rows] == [0.5, 0.6]
    assert len({row["run"] for row in rows}) == 2


def test_images_without_a_fingerprint_are_compared_with_none(compare, tmp_path):
    runs = [write(tmp_path / f"{i}" / "probe.json", i / 10, data_id=None) for i in range(3)]
    known = write(tmp_path / "known" / "probe.json", 0.9)
    rows = compare(*runs, known)
    assert len({row["table"] for row in rows}) == len(rows) == 4


def test_nor_where_checkpoints_were_named_alike(compare, tmp_path):
    """`msssl probe --ckpt_path last.ckpt` in the folder of each run."""
    runs = [write(tmp_path / f"{i}" / "probe.json", i / 10, data_id=None, checkpoint="last.ckpt") for i in range(2)]
    rows = compare(*runs)
    assert len({row["table"] for row in rows}) == len(rows) == 2


def test_nor_two_sets_of_one_run(compare, tmp_path):
    """Transfer to two sets that cannot be told apart, by one checkpoint."""
    runs = [write(tmp_path / f"probe-FromDatasets-{i}.json", i / 10, data_id=None) for i in range(2)]
    rows = compare(*runs)
    assert len({row["table"] for row in rows}) == len(rows) == 2


def test_a_report_counts_once(compare, tmp_path):
    path = write(tmp_path / "run" / "probe.json", 0.5)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    given = [
        path,
        path.parent,
        os.path.relpath(path),
        tmp_path / "run" / ".." / "run" / "probe.json",
        tmp_path / "link",
    ]
    (row,) = compare(*given)
    assert (row["top1"], row["seeds"]) == ("0.5", "0")


def test_what_a_run_has_not_told_stays_empty(compare, tmp_path):
    (row,) = compare(write(tmp_path / "0.json", 0.5, minutes=None, views_seen=None))
    assert (row["minutes"], row["views_seen"], row["epochs"]) == ("", "", "10.0")
    assert "| 10 | - | - |" in page()
    # Means are over those that tell.
    rows = compare(write(tmp_path / "0.json", 0.5, minutes=None), write(tmp_path / "1.json", 0.5, seed=1, minutes=4.0))
    assert [row["minutes"] for row in rows] == ["4.0"]


def test_tables_of_markdown_have_as_many_cells_in_each_line(compare, tmp_path):
    runs = [
        write(tmp_path / f"{i}.json", 0.5, settings={"model.kind": kind, "data.names": ["a,b", 'c"d']})
        for i, kind in enumerate(("a|b", "c"))
    ]
    rows = compare(*runs)
    lines = page().partition("Differences")[0].splitlines()
    lines = [line for line in lines if line.startswith("|")]
    assert len(lines) == 2 + 4
    assert len({line.count("|") for line in lines}) == 1
    assert [row["run"] for row in rows] == ["BarlowTwins kind=a|b", "BarlowTwins kind=c"]


def test_the_command_writes_three_files(msssl, tmp_path):
    for i in range(3):
        write(tmp_path / "runs" / f"{i}" / "probe.json", 0.5 + i / 100, seed=i)
    code, out, err = msssl("report", *(f"runs/{i}" for i in range(3)), "--out", "tables/my.table")
    assert code == 0, err
    folder = tmp_path / "tables"
    assert {path.name for path in folder.iterdir()} == {"my.table.md", "my.table.csv", "my.table.png"}
    assert Image.open(folder / "my.table.png").size[0] > 1000
    assert "written to tables/my.table.md, tables/my.table.csv and tables/my.table.png" in out
    for text in (out, (folder / "my.table.md").read_text()):
        assert "0.500, 0.510, 0.520" in text
        assert "Shapes, test: 2,000 images; a protocol (images 0123)" in text
        assert "BarlowTwins: runs/0, runs/1, runs/2" in text


def test_the_picture_shows_pretrained_encoders_against_what_they_cost(compare, tmp_path, monkeypatch):
    """A point for each seed, and from four on the mean with its interval."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(reporting, "_draw", draw)
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **kwargs: figures.append(figure) or path.touch())
    many = [0.2, 0.4, 0.3, 0.5]
    runs = [
        *(write(tmp_path / f"{seed}.json", 0.5 + seed / 10, seed=seed) for seed in (0, 1)),
        write(tmp_path / "2.json", 0.6, epochs=20, minutes=None, views_seen=9000),
        *(write(tmp_path / f"{i}-many.json", top1, seed=i, epochs=30) for i, top1 in enumerate(many)),
        write(tmp_path / "3.json", 0.7, protocol="another", minutes=None),
    ]
    compare(*runs)
    axes = figures[0].axes
    assert [panel.get_xlabel() for panel in axes] == ["epochs", "minutes", "views"] * 2
    bars = [container.lines[0].get_data() for container in axes[0].containers]
    points = [line.get_data() for line in axes[0].lines if len(axes[0].lines) and line.get_marker() == "o"]
    assert [(list(x), list(y)) for x, y in points if len(x) > 1] == [([10, 10], [0.5, 0.6])]
    assert ([20], [0.6]) in [(list(x), list(y)) for x, y in points]
    assert [(float(x[0]), float(y[0])) for x, y in bars] == [(30, pytest.approx(0.35))]
    (bar,) = axes[0].containers[0].lines[2]
    expected = stats.t.interval(0.95, 3, loc=np.mean(many), scale=stats.sem(many))
    assert bar.get_segments()[0][:, 1] == pytest.approx(expected)
    assert [[list(line.get_xdata()) for line in panel.lines] for panel in axes[3:]] == [[[10]], [], [[4000]]]


def test_the_files_are_report_by_default(msssl, tmp_path):
    path = write(tmp_path / "run" / "probe.json", 0.5)
    assert msssl("report", path)[0] == 0
    assert {each.name for each in tmp_path.iterdir()} == {"run", "report.md", "report.csv", "report.png"}


BROKEN = {
    "text": "no report",
    "cut": '{"protocol": "a',
    "empty": "",
    "a list": "[1, 2]",
    "a number": "3",
    "null": "null",
    "another object": '{"protocol": "a protocol", "rows": []}',
    "half a report": json.dumps({"protocol": "x", "data_id": None, "run": {"epochs": 3}, "rows": [{}]}),
    "bytes": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_report_is_one_line(compare, tmp_path, name):
    path = tmp_path / "run" / "probe.json"
    path.parent.mkdir()
    content = BROKEN[name]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="is not a report of msssl probe") as error:
        compare(path.parent)
    message = user_message(error.value)
    assert message is not None
    assert len(message.splitlines()) == 1
    assert str(path) in message
    assert not (tmp_path / "out").exists()


ABSENT = "is neither a run nor a report; a study is named with its .yaml"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("absent", ABSENT),
        ("empty", "holds no probe.json: run msssl probe --ckpt_path empty"),
        ("empty/probe.json", ABSENT),
    ],
)
def test_a_run_that_was_not_probed_is_one_line(msssl, tmp_path, given, message):
    (tmp_path / "empty").mkdir()
    path = write(tmp_path / "run" / "probe.json", 0.5)
    code, _, err = msssl("report", path, given)
    assert code == 2, err
    last = err.strip().splitlines()[-1]
    assert last == f"msssl: error: {given} {message}"
    assert not list(tmp_path.glob("report*"))


def test_no_run_is_one_line(msssl):
    code, _, err = msssl("report")
    assert code == 2
    assert err.strip().splitlines()[-1].startswith("msssl: error: ")
    assert "runs" in err
    assert "Traceback" not in err


def test_an_encoder_without_its_baselines_is_compared_with_itself(compare, tmp_path):
    whole = write(tmp_path / "0" / "probe.json", 0.6, seed=0)
    alone = write(tmp_path / "1" / "probe.json", 0.8, seed=1)
    content = json.loads(alone.read_text())
    alone.write_text(json.dumps({**content, "rows": content["rows"][-1:]}))
    for runs in ((whole, alone), (alone, whole)):
        rows = {row["features"]: row for row in compare(*(path.parent for path in runs), every=True)}
        assert float(rows["pretrained encoder"]["mean"]) == pytest.approx(0.7)
        assert float(rows["raw pixels"]["mean"]) == pytest.approx(0.1)


def write_metrics(folder, ranks, accuracy=""):
    folder.mkdir(parents=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "step", "train/loss", "val/rankme", "val/alpha", "val/spread", "val/probe_top1"])
        for epoch, rank in enumerate(ranks):
            writer.writerow([epoch, 10 * epoch + 4, 3.5, "", "", "", ""])
            writer.writerow([epoch, 10 * epoch + 9, "", rank, 1.25 + epoch, 0.5, accuracy])


def test_a_run_without_labels_is_a_row_of_its_embeddings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_metrics(Path("flat"), [3.0, 12.5, 11.25])
    report(["flat"])
    assert "| flat | 29 | 11.25 | 3.00 | 12.50 | 19 | 3.25 | 0.500 |" in Path("report.md").read_text()
    assert "RankMe" in capsys.readouterr().out
    write(Path("labelled") / "probe.json")
    report(["flat", "labelled"], out="both")
    page = Path("both.md").read_text()
    assert "| flat | 29 | 11.25 |" in page
    assert "pretrained" in page


def test_a_run_with_an_accuracy_is_to_be_probed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_metrics(Path("labelled"), [3.0], accuracy=0.5)
    with pytest.raises(FileNotFoundError, match=r"holds no probe.json: run msssl probe"):
        report(["labelled"])
