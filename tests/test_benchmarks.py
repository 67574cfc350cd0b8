"""The benchmarks' own arithmetic; what they measure is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import NARROW, TINY_IMAGES, load
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


@pytest.mark.slow
def test_the_step_of_a_config_is_measured(tmp_path):
    flags = [*NARROW, *TINY_IMAGES, "--seconds=1", "--device=cpu", f"--out={tmp_path / 'step'}"]
    command = [sys.executable, BENCHMARKS / "step.py", "--config", "demo.yaml", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "step.json").read_text())
    parts = sum(value for name, value in found.items() if name.endswith(" ms") and "floor" not in name)
    assert parts == pytest.approx(found["ms a step"], rel=0.5)
    assert found["views/s"] == pytest.approx(16 * 4 / found["ms a step"] * 1e3)
    assert 0 < found["floor / step"] < 1
    assert "the knob is" in found["told"]
