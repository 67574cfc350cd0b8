"""What a step costs on the host beyond the model: a `Trainer` with probe, logs and checkpoints against a bare loop.

    python benchmarks/host.py        # a minute on one core

The network is so small that its kernels take no time to speak of: what is measured is Python. On a GPU this time hides
behind the kernels, as long as a step is longer than all of its host time and nothing waits for the device.
"""

import json
import sys
import tempfile
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import lightning
import torch
from jsonargparse import auto_cli
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from machine import machine
from torch import nn

from msssl import BarlowTwins, MultiView, OnlineProbe, RankMonitor, Shapes
from msssl.callbacks import BestCheckpoint, LastCheckpoint, ViewGrid
from msssl.cli.bar import Bar
from msssl.cli.loggers import run_loggers


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
        repeats: of both, in turn; the median counts.
        out: of the files, without their ending.
    """
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {"bare loop": [], "Trainer": [], "Trainer, as msssl fit sets it up": []}
    for _ in range(repeats):
        found["bare loop"].append(bare(steps))
        found["Trainer"].append(fitted(steps, complete=False))
        found["Trainer, as msssl fit sets it up"].append(fitted(steps, complete=True))
    rows = {name: 1e3 * median(times) for name, times in found.items()}
    lines = ["| loop | ms a step | beyond the bare loop |", "|---|---|---|"]
    lines += [f"| {name} | {ms:.2f} | {ms - rows['bare loop']:.2f} |" for name, ms in rows.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    about = (
        f"Median of {repeats} x the median of {steps} steps, logging every 50, one linear layer, N = 8, K = 2, D = 8; "
        f"{machine('cpu', 1)}; torch {torch.__version__}, lightning {lightning.__version__}; {date.today()}; "
        "`benchmarks/host.py`. The last row has online probe, rank monitor, both checkpoints, TensorBoard, metrics.csv "
        "and the bar; the probe's own forward, backward and optimizer step are in it."
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


def bare(steps: int) -> float:
    """Seconds of a step in plain PyTorch: the same batches, views, loss and optimizer."""
    module, data = make(steps)
    data.setup("fit")
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer
    optimizer: Any = module.configure_optimizers()
    times = []
    for batch in data.train_dataloader():
        times.append(perf_counter())
        loss = module.training_step(data.on_after_batch_transfer(batch), 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return step_time(times)


def fitted(steps: int, complete: bool) -> float:
    """Seconds of a step in a `Trainer`, as it is or as `msssl fit` sets it up."""
    module, data = make(steps)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        callbacks: list[Callback] = [clock]
        if complete:
            callbacks += [OnlineProbe(), RankMonitor(), ViewGrid(), LearningRateMonitor(), Bar(refresh_rate=50)]
            callbacks += [BestCheckpoint(dirpath=folder), LastCheckpoint(dirpath=folder)]
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=callbacks,
            logger=run_loggers(Path(folder)) if complete else False,
            enable_progress_bar=complete,
            enable_checkpointing=complete,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, data)
    return step_time(clock.times)


def step_time(times: list[float]) -> float:
    """The median but for the first 100, with logging steps, one of 50, in proportion."""
    steps = [after - before for before, after in pairwise(times[100:])]
    logging = [step for i, step in enumerate(steps) if i % 50 == 49]
    others = [step for i, step in enumerate(steps) if i % 50 != 49]
    return 0.98 * median(others) + 0.02 * median(logging)


if __name__ == "__main__":
    auto_cli(main)
