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

reporting = importlib.import_module("msssl.evaluation.side_by_side")
draw = reporting._draw
FEATURES = ["raw pixels", "untrained encoder", "pretrained encoder"]
BATCH = "data.batch_size"


def write(path, top1=0.5, *, seed=0, interval=(0.4, 0.6), knn=0.3, settings=None, **told):
    """A report of the least that there is; `settings` are those of the run by dotted names, `told` anything else."""
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
    for i, features in enumerate(FEATURES):
        row = {"features": features, f"{split}_top1": top1 - (2 - i) / 10}
        row |= {} if interval is None else {f"{split}_interval": interval}
        rows.append(row | ({} if knn is None else {f"{split}_knn": knn}))
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


def test_seeds_are_one_row_with_students_interval(compare, tmp_path):
    values = [0.51, 0.6, 0.72, 0.55]
    runs = [
        write(tmp_path / f"{i}" / "probe.json", top1, seed=i, knn=top1 / 2, minutes=float(i), interval=(0.0, 1.0))
        for i, top1 in enumerate(values)
    ]
    rows = compare(*(path.parent for path in runs), every=True)
    assert [row["features"] for row in rows] == FEATURES
    for i, row in enumerate(rows):
        shifted = np.array(values) - (2 - i) / 10
        low, high = stats.t.interval(0.95, 3, loc=shifted.mean(), scale=stats.sem(shifted))
        assert numbers(row, "mean", "low", "high") == pytest.approx([shifted.mean(), low, high])
        assert [float(each) for each in row["top1"].split()] == pytest.approx(shifted.tolist())
        assert row["seeds"] == "0 1 2 3"
        assert numbers(row, "knn", "epochs", "minutes", "views_seen") == pytest.approx(
            [np.mean(values) / 2, 10, 1.5, 4000]
        )


def test_two_seeds_have_an_interval_wider_than_their_images(compare, tmp_path):
    runs = [write(tmp_path / f"{i}.json", top1, seed=i) for i, top1 in enumerate((0.5, 0.52))]
    (row,) = compare(*runs)
    half = stats.t.ppf(0.975, 1) * 0.01  # of the two, the error of the mean is half their distance
    assert numbers(row, "mean", "low", "high") == pytest.approx([0.51, 0.51 - half, 0.51 + half])


def test_one_seed_has_the_interval_over_images(compare, tmp_path):
    (row,) = compare(write(tmp_path / "probe.json", 0.5, interval=(0.45, 0.56)))
    assert numbers(row, "mean", "low", "high") == [0.5, 0.45, 0.56]
    assert "0.450 to 0.560" in Path("out/table.md").read_text()


def test_one_seed_without_an_interval_has_none(compare, tmp_path):
    (row,) = compare(write(tmp_path / "probe.json", 0.5, interval=None, knn=None, reported_on="val"))
    assert math.isnan(float(row["low"]))
    assert math.isnan(float(row["high"]))
    assert row["knn"] == ""
    assert "| 0.500 | - | - |" in Path("out/table.md").read_text()


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
        assert numbers(row, "mean", "low", "high") == pytest.approx([i / 10] * 3)
        assert all(part in row["table"] for part in kind.values())
        assert "2,000 images" in row["table"]
    assert [line for line in Path("out/table.md").read_text().splitlines() if line.startswith("## ")] == [
        f"## {row['table']}" for row in rows
    ]


def test_reports_of_a_folder_have_a_table_each(compare, tmp_path):
    write(tmp_path / "run" / "probe.json", 0.5, protocol="linear")
    write(tmp_path / "run" / "probe-paper.json", 0.6, protocol="paper")
    write(tmp_path / "run" / "probe-CIFAR10-data.json", 0.7, protocol="linear", data_id="4567", data_class="CIFAR10")
    (tmp_path / "run" / "other.json").write_text("{}")
    rows = compare(tmp_path / "run")
    assert {(row["table"].split()[0], row["table"].split()[-1], float(row["mean"])) for row in rows} == {
        ("Shapes", "linear", 0.5),
        ("Shapes", "paper", 0.6),
        ("CIFAR10", "linear", 0.7),
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
    assert "| 10 | - | - |" in Path("out/table.md").read_text()
    # Means are over those that tell.
    rows = compare(write(tmp_path / "0.json", 0.5, minutes=None), write(tmp_path / "1.json", 0.5, seed=1, minutes=4.0))
    assert [row["minutes"] for row in rows] == ["4.0"]


def test_tables_of_markdown_have_as_many_cells_in_each_line(compare, tmp_path):
    runs = [
        write(tmp_path / f"{i}.json", 0.5, settings={"model.kind": kind, "data.names": ["a,b", 'c"d']})
        for i, kind in enumerate(("a|b", "c"))
    ]
    rows = compare(*runs)
    lines = [line for line in Path("out/table.md").read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 6
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
    low, high = stats.t.interval(0.95, 2, loc=0.51, scale=stats.sem([0.5, 0.51, 0.52]))
    for text in (out, (folder / "my.table.md").read_text()):
        assert f"{low:.3f} to {high:.3f}" in text
        assert "Shapes 0123, 2,000 images of test: a protocol" in text


def test_the_picture_shows_pretrained_encoders_against_what_they_cost(compare, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(reporting, "_draw", draw)
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure))
    runs = [
        write(tmp_path / "0.json", 0.5, interval=(0.45, 0.56)),
        write(tmp_path / "1.json", 0.6, epochs=20, minutes=None, views_seen=9000),
        write(tmp_path / "2.json", 0.7, protocol="another", minutes=None),
    ]
    compare(*runs)
    axes = figures[0].axes
    points = [
        [tuple(float(each[0]) for each in container.lines[0].get_data()) for container in panel.containers]
        for panel in axes
    ]
    assert [panel.get_xlabel() for panel in axes] == ["epochs", "minutes", "views"] * 2
    assert points == [[(10, 0.5), (20, 0.6)], [(1.5, 0.5)], [(4000, 0.5), (9000, 0.6)], [(10, 0.7)], [], [(4000, 0.7)]]
    (bar,) = axes[0].containers[0].lines[2]
    assert bar.get_segments()[0][:, 1] == pytest.approx([0.45, 0.56])


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
        assert float(rows["raw pixels"]["mean"]) == pytest.approx(0.4)
