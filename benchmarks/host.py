"""What a step costs on the host beyond the model: a `Trainer` with probe, logs and checkpoints against a bare loop.

    python benchmarks/host.py        # a minute on one core

The network is so small that its kernels take no time to speak of: what is measured is Python. On a GPU this time hides
behind the kernels, as long as a step is longer than all of its host time and nothing waits for the device.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import lightning
import torch
from jsonargparse import auto_cli
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, Timer
from machine import machine
from torch import nn

from msssl import BarlowTwins, MultiView, OnlineProbe, RankMonitor, Shapes
from msssl.callbacks import BestCheckpoint, LastCheckpoint, ViewGrid
from msssl.cli.bar import Bar
from msssl.run.loggers import run_loggers
from msssl.run.pace import Pace

EVERY = 50  # steps a line of the logs
# Lightning has each optimizer step look for NVML as long as CUDA has not begun: on a machine without GPU, for ever.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


class Clock(Callback):
    """When each step began."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        """Take the time."""
        self.times.append(perf_counter())


def main(steps: int = 1500, repeats: int = 3, out: str = "benchmarks/results/host-cpu") -> None:
    """Measure, and write `<out>.json` and `<out>.md`.

    Args:
        steps: of each loop.
        repeats: of all loops, in turn.
        out: of the files, without their ending.
    """
    torch.set_num_threads(1)
    before = python_speed()
    loops: dict[str, Callable[[int], list[float]]] = {
        "bare loop": bare,
        "bare loop, with the probe's step": partial(bare, probe=True),
        "Trainer": fitted,
        "Trainer, as msssl fit sets it up": partial(fitted, complete=True),
    }
    found: dict[str, list[list[float]]] = {name: [] for name in loops}
    for _ in range(repeats):
        for name, loop in loops.items():
            found[name].append(loop(steps))
    rows = {
        name: tuple(1e3 * min(step_time(times, kept) for times in runs) for kept in (lower_decile, median))
        for name, runs in found.items()
    }
    bare_fast, bare_median = rows["bare loop"]
    lines = ["| loop | ms a step | beyond the bare loop | median | beyond |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {fast:.2f} | {fast - bare_fast:.2f} | {middle:.2f} | {middle - bare_median:.2f} |"
        for name, (fast, middle) in rows.items()
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    about = (
        f"Lower decile (other work shares the processor) and median of {steps} steps, in the fastest of {repeats} "
        f"runs; logging every {EVERY}, one linear layer, N = 8, K = 2, D = 8; {machine('cpu', 1)}; "
        f"torch {torch.__version__}, lightning {lightning.__version__}; {date.today()}; `benchmarks/host.py`. The last "
        "row has online probe, rank monitor, both checkpoints, TensorBoard, metrics.csv and the bar. Python here, "
        f"before and after: {before:.0f} and {python_speed():.0f} ns an addition."
    )
    Path(f"{out}.md").write_text("\n".join([about, "", *lines]) + "\n")
    Path(f"{out}.json").write_text(json.dumps({"about": about, "ms": rows}, indent=1) + "\n")


def make(steps: int) -> tuple[BarlowTwins, Shapes]:
    """A module and its data, an epoch of so many steps."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 8))
    module = BarlowTwins(backbone=backbone, feature_dim=8, proj_dim=8, proj_layers=1)
    views = MultiView(n_views=2, augmentations=[nn.Identity()])
    return module, Shapes(train_images=9 * steps, test_images=10, batch_size=8, num_workers=0, views=views)


def bare(steps: int, probe: bool = False) -> list[float]:
    """When each step began in plain PyTorch: the same batches, views, loss and optimizer; or with the online probe."""
    module, data = make(steps)
    data.setup("fit")
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer
    optimizer: Any = module.configure_optimizers()
    no_trainer: Any = SimpleNamespace(
        datamodule=data, strategy=SimpleNamespace(root_device=torch.device("cpu")), log_every_n_steps=0
    )
    online = OnlineProbe()
    online.setup(no_trainer, module, "fit")
    times = []
    for i, batch in enumerate(data.train_dataloader()):
        times.append(perf_counter())
        outputs = module.training_step(data.on_after_batch_transfer(batch), 0)
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
        if probe:
            online.on_train_batch_end(no_trainer, module, outputs, batch, i)
    return times


def fitted(steps: int, complete: bool = False) -> list[float]:
    """When each step began in a `Trainer`, as it is or as `msssl fit` sets it up."""
    module, data = make(steps)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        callbacks: list[Callback] = [clock]
        if complete:
            callbacks += [
                OnlineProbe(),
                RankMonitor(),
                ViewGrid(),
                LearningRateMonitor(),
                Bar(refresh_rate=EVERY),
                Pace(),
                Timer(),
            ]
            callbacks += [BestCheckpoint(dirpath=folder), LastCheckpoint(dirpath=folder)]
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=callbacks,
            logger=run_loggers(Path(folder)) if complete else False,
            enable_progress_bar=complete,
            enable_checkpointing=complete,
            enable_model_summary=False,
            log_every_n_steps=EVERY,
            default_root_dir=folder,
        )
        trainer.fit(module, data)
    return clock.times


def python_speed() -> float:
    """Nanoseconds of an addition in a loop: what to divide by, to compare two machines."""
    start, total = perf_counter(), 0
    for i in range(5_000_000):
        total += i
    return (perf_counter() - start) / 5e-3


def lower_decile(times: list[float]) -> float:
    """What a step takes when no other work disturbs it."""
    return quantiles(times, n=10)[0]


def step_time(times: list[float], kept: Callable[[list[float]], float]) -> float:
    """Seconds of a step but for the first 100: those that log, one of `EVERY`, count in proportion."""
    steps = [after - before for before, after in pairwise(times[100:])]
    logging, others = steps[EVERY - 1 :: EVERY], [step for i, step in enumerate(steps, 1) if i % EVERY]
    return kept(others) * (1 - 1 / EVERY) + kept(logging) / EVERY


if __name__ == "__main__":
    auto_cli(main)
