"""The benchmarks' own arithmetic; what they measure is not tested."""

import ast
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import NARROW, TINY_IMAGES, load
from jsonargparse import auto_cli
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_work_of_a_step_is_that_of_its_operations(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    step = load(BENCHMARKS / "step.py")
    x, w = torch.randn(8, 3, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    with step.Work() as work:
        (x @ w).relu().sum().backward()
    assert sum(flops for flops, _, _ in work.operations) == 3 * 2 * 8 * 3 * 5
    assert {moved for flops, moved, _ in work.operations if flops} == {4 * (8 * 3 + 3 * 5 + 8 * 5)}
    rates = {"matrix TFLOP/s": 720e-12, "copy GB/s": 1e9}  # 720 FLOP are a second, bytes cost next to nothing
    assert work.seconds(rates, fused=True) == pytest.approx(1.0)
    rates = {"matrix TFLOP/s": 1e9, "copy GB/s": 948e-9}  # three products of 316 bytes; relu is pointwise
    assert work.seconds(rates, fused=False) > work.seconds(rates, fused=True) + 2 * 4 * 40 / 948
    assert work.seconds(rates, fused=True) >= 1
    images = torch.randn(2, 3, 8, 8)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    with FlopCounterMode(display=False) as known:
        network(images).sum().backward()
    with step.Work() as work:
        network(images).sum().backward()
    assert sum(flops for flops, _, _ in work.operations) == known.get_total_flops()


def test_exponents_are_those_of_power_laws(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    scaling = load(BENCHMARKS / "scaling.py")
    x = [2, 4, 8, 16]
    assert scaling.exponent(x, [3.0 * value**1.5 for value in x]) == pytest.approx(1.5)
    terms = {name: quantity.terms for name, quantity in scaling.QUANTITIES.items()}
    base = scaling.Point(K=4, N=64, D=256, W=16, px=32)
    views = [base._replace(K=value) for value in x]
    for name, expected in {"loss, VICReg": 1, "memory": 1, "memory, chunk_views 2": 0}.items():
        found = max(scaling.exponent(x, [term(point) for point in views]) for term in terms[name])
        assert found == pytest.approx(expected, abs=1e-9), name


def test_fewer_epochs_are_as_many_views(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    accuracy = load(BENCHMARKS / "accuracy.py")
    assert accuracy.fewer_epochs(12, 4, [2, 4, 8]) == ["--trainer.max_epochs", "6"]
    with pytest.raises(ValueError, match="whole number"):
        accuracy.fewer_epochs(10, 4, [2, 4, 8])


@pytest.mark.slow
def test_the_step_of_a_config_is_measured(tmp_path):
    flags = [*NARROW, *TINY_IMAGES, "--seconds=1", "--device=cpu", f"--out={tmp_path / 'step'}"]
    command = [sys.executable, BENCHMARKS / "step.py", "--config", "demo.yaml", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "step.json").read_text())
    parts = [name for name in found if name.endswith(" ms") and "floor" not in name]
    assert parts
    assert all(found[name] >= 0 for name in parts)
    assert found["views/s"] == pytest.approx(16 * 4 / found["ms a step"] * 1e3)
    assert 0 < found["floor / step"] < 1
    assert "the knob is" in found["told"]


FAKE_STAGES = """
import json, sys
sys.path.insert(0, {benchmarks!r})
import gpu
def stage(name, code, seconds=20.0):
    path = lambda call: call.out / f"{{name}}.json"
    command = lambda call: [sys.executable, "-c", code.format(path=str(path(call)))]
    return gpu.Stage(seconds, command, lambda call: [("value", str(json.loads(path(call).read_text())))])
WRITE = "import time; time.sleep(0.2); open({{path!r}}, 'w').write('{{n}}')"
gpu.STAGES = {stages}
gpu.main()
"""


def fake_gpu(tmp_path, stages):
    """A process of `benchmarks/gpu.py` with other stages."""
    code = FAKE_STAGES.format(benchmarks=str(BENCHMARKS), stages=stages)
    command = [sys.executable, "-c", code, "--device", "cpu", "--data", tmp_path / "set", "--out", tmp_path / "out"]
    (tmp_path / "set" / "train").mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_stage_that_fails_or_hangs_does_not_stop_the_others(tmp_path):
    fails = "stage('b', \"print('what was wrong'); raise SystemExit(3)\")"
    hangs = "stage('c', \"open({path!r}, 'w').write('7'); import time; time.sleep(60)\", seconds=2.0)"
    ends = "stage('d', \"open({path!r}, 'w').write('8')\")"
    process = fake_gpu(tmp_path, f"dict(b={fails}, c={hangs}, d={ends})")
    output = process.communicate()[0]
    assert process.returncode == 0
    results = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert results["b"]["status"].startswith("failed with exit code 3")
    assert "what was wrong" in results["b"]["status"]
    assert results["c"]["status"].startswith("cut after 2 s")
    assert [results[name]["rows"] for name in "bcd"] == [[], [["value", "7"]], [["value", "8"]]]
    table = (tmp_path / "out" / "gpu.md").read_text()
    assert output.endswith(table)
    assert len(table.splitlines()) <= 40


@pytest.mark.long
def test_killed_at_ten_points_every_finished_stage_is_on_disk(tmp_path):
    names = [f"s{i}" for i in range(5)]
    stages = ", ".join(f"{name}=stage({name!r}, WRITE.replace('{{n}}', '{i}'))" for i, name in enumerate(names))
    for point in range(10):
        folder = tmp_path / str(point)
        process = fake_gpu(folder, f"dict({stages})")
        finished = []
        for line in process.stdout:
            finished.append(line.partition(":")[0])
            if len(finished) > point / 2:
                break
        time.sleep(0.1 * (point % 2))
        process.kill()
        process.wait()
        results = json.loads((folder / "out" / "gpu.json").read_text())
        assert names[: len(finished)] == finished
        assert all(results[name]["rows"] == [["value", str(i)]] for i, name in enumerate(finished))


def test_a_second_call_adds_its_stages(tmp_path):
    for name, value in (("a", 1), ("b", 2), ("a", 3)):
        fake_gpu(tmp_path, f"dict({name}=stage({name!r}, \"open({{path!r}}, 'w').write('{value}')\"))").wait()
    results = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert {name: result["rows"] for name, result in results.items()} == {"a": [["value", "3"]], "b": [["value", "2"]]}


@pytest.mark.slow
def test_every_stage_of_a_gpu_works_in_miniature(tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu.py", "--smoke", "--device=cpu", "--out", tmp_path, "--minutes=55"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: result["status"] for name, result in results.items() if "done" not in result["status"]} == {}
    assert len(results) == 12


def test_a_speedrun_keeps_the_seeds_that_it_has(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    speedrun = load(BENCHMARKS / "speedrun.py")
    given = []
    row = {"minutes": 9.5, "epochs": 1, "steps": 70, "mlp": 0.6, "knn": 0.5, "n": 100, "data": "abc", "protocol": "p"}

    def run(args, root, device):
        given.append(args)
        return {**row, "linear": 0.5 + 0.1 * int(args[-1].partition("=")[2])}

    monkeypatch.setattr(speedrun, "run", run)
    monkeypatch.setattr(speedrun, "measure", lambda fit, device, enough: (9.0, 30.0, 2.0))
    for seeds, minutes in (("[1]", 10), ("[0, 1]", 10), ("[2]", 5)):
        words = [str(tmp_path), "--device=cpu", f"--minutes={minutes}", f"--seeds={seeds}", f"--out={tmp_path / 'out'}"]
        auto_cli(speedrun.main, args=[*words, "--fit_config=demo.yaml", '--flags=["--a=1"]'])
        (rows, about) = (json.loads((tmp_path / "out-cpu.json").read_text())[name] for name in ("rows", "about"))
        expected = {"[1]": [1], "[0, 1]": [0, 1], "[2]": [2]}[seeds]  # other settings begin a table of their own
        assert [row["seed"] for row in rows] == expected
        assert f"demo.yaml --a=1 for {minutes} minutes" in about
    assert given[0][0] == "--config=demo.yaml"
    assert "--a=1" in given[0]
    assert "--trainer.max_steps=270" in given[0]  # (600 s * 0.95 - 30 s) / 2 s
    assert len(given) == 4


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.name)
def test_no_option_of_a_benchmark_is_called_config(path):
    """`auto_cli` has such an option of its own, and leaves out the benchmark's without a word."""
    tree = ast.parse(path.read_text())
    names = {getattr(node.func, "id", "") for node in ast.walk(tree) if isinstance(node, ast.Call)}
    (main,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"] or [None]
    if main is not None and "auto_cli" in names:
        assert "config" not in {argument.arg for argument in main.args.args}


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.name)
def test_what_a_benchmark_imports_of_msssl_is_there(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("msssl"):
            module = importlib.import_module(node.module)
            assert [each.name for each in node.names if not hasattr(module, each.name)] == []


def test_correlations_of_scores_are_of_ranks(monkeypatch):
    correlations = load(BENCHMARKS / "label_free.py").correlations
    rows = [
        {
            "RankMe": 2.0**i,
            "alpha": 1 + 1 / (i + 1),
            "LiDAR": -i,
            "learnability": i,
            "dimension": -2 * i,
            "accuracy": i / 9,
        }
        | {"minus the loss": [3, 1, 2, 0][i]}
        for i in range(4)
    ]
    rho = {name: value for name, (value, _) in correlations(rows).items()}
    assert rho["RankMe"] == rho["alpha"] == rho["learnability"] == pytest.approx(1)
    assert rho["LiDAR"] == rho["dimension"] == pytest.approx(-1)
    assert rho["minus the loss"] == pytest.approx(-0.8)
