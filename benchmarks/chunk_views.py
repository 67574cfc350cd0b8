"""Memory and time of a step against K, with all views in memory together and with `chunk_views` of them.

    python benchmarks/chunk_views.py --n 64        # about 5 minutes on one core
    python benchmarks/chunk_views.py --device cuda --depth 50 --width 64

Memory is what a step allocates at most above the state before it (weights, gradients, the optimizer's averages and the
views themselves are there already), by the profiler's memory events, on a GPU by the allocator.
"""

import json
import sys
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from jsonargparse import auto_cli
from machine import keep_freed_memory, machine
from torch.profiler import ProfilerActivity, profile

from msssl import BarlowTwins, ResNet


def main(
    n: int = 256,
    depth: int = 18,
    width: int = 16,
    repeats: int = 3,
    device: str = "cpu",
    out: str = "benchmarks/results/chunk-views-cpu",
) -> None:
    """Measure, and write `<out>.json` and `<out>.md`.

    Args:
        n: images.
        depth: of the ResNet.
        width: of the ResNet.
        repeats: of each step; the median counts.
        device: `cpu` or `cuda`.
        out: of the files, without their ending.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = []
    for K, chunk_views in [(4, None), (4, 2), (16, None), (16, 2), (16, 1)]:
        step = make_step(K, n, chunk_views, depth, width, device)
        times = [timed(step, device) for _ in range(repeats)]
        rows.append({"K": K, "chunk_views": chunk_views, "MB": peak_memory(step, device) / 1e6, "s": median(times)})
        sys.stdout.write(f"{rows[-1]}\n")
    lines = ["| K | chunk_views | MB | s a step | time, of all together |", "|---|---|---|---|---|"]
    whole = {row["K"]: row["s"] for row in rows if row["chunk_views"] is None}
    for row in rows:
        chunk = row["chunk_views"] or "all"
        lines.append(f"| {row['K']} | {chunk} | {row['MB']:.0f} | {row['s']:.2f} | {row['s'] / whole[row['K']]:.2f} |")
    about = (
        f"N = {n}, ResNet-{depth} of width {width} with the stem of small images, 32 px, D = 256, float32; "
        f"{machine(device, 1)}; torch {torch.__version__}; {date.today()}; `benchmarks/chunk_views.py`"
    )
    Path(f"{out}.md").write_text("\n".join([about, "", *lines]) + "\n")
    Path(f"{out}.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


def make_step(
    K: int, n: int, chunk_views: int | None, depth: int, width: int, device: str, proj_dim: int = 256, px: int = 32
) -> Any:
    """One training step of Barlow Twins with Adam, whose state is there."""
    torch.manual_seed(0)
    module = BarlowTwins(backbone=ResNet(depth, width=width), proj_dim=proj_dim, chunk_views=chunk_views).to(device)
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer
    optimizer = torch.optim.Adam(module.parameters())
    batch = {"views": torch.randn(K, n, 3, px, px, device=device), "label": torch.zeros(n, device=device)}

    def step() -> None:
        module.training_step(batch, 0)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    step()
    return step


def peak_memory(step: Any, device: str) -> int:
    """Bytes that a step allocates at most above what is there before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    level = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    return peak


def timed(step: Any, device: str) -> float:
    """Seconds of a step."""
    start = perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


if __name__ == "__main__":
    auto_cli(main)
