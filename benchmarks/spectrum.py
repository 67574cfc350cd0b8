"""Time and exactness of what `RankMonitor` computes at a validation, beside decompositions in float64.

    python benchmarks/spectrum.py                    # CPU, one thread: about 3 minutes
    python benchmarks/spectrum.py --device cuda

Features (N, F) are made with known spectra: "to 1e-4" is a power law whose last singular value is 1e-4 of the first.
"""

import json
import math
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from types import SimpleNamespace
from typing import Any

import torch
from jsonargparse import auto_cli
from lightning import Trainer
from machine import machine
from torch import Tensor

from msssl import RankMonitor
from msssl.metrics import alpha_of, alpha_req, rankme

HEADER = (
    "| spectrum | D | RankMonitor s | alpha s | RankMe s | decompositions s | error of alpha | error of RankMe |\n"
    + "|---" * 8
    + "|\n"
)


def with_spectrum(n: int, dim: int, end: float) -> Tensor:
    """Features (n, dim), float32, whose singular values follow a power law to this share of the largest; 0 is noise."""
    generator = torch.Generator().manual_seed(dim)
    noise = torch.randn(n, dim, generator=generator)
    if end == 0:
        return noise
    left = torch.linalg.qr(noise.double())[0]
    right = torch.linalg.qr(torch.randn(dim, dim, generator=generator).double())[0]
    values = torch.arange(1, dim + 1).double() ** (math.log(end) / math.log(dim))
    return (100 * left * values @ right.T + 0.1).float()


def exactly(features: Tensor, z: Tensor) -> tuple[float, float]:
    """Alpha and RankMe, each by a singular value decomposition in float64."""
    x, z = features.double(), z.double()
    alpha = alpha_of(torch.linalg.svdvals(x - x.mean(dim=0)).square() / (len(x) - 1))
    values = torch.linalg.svdvals(z)
    p = values / values.sum() + 1e-7
    return float(alpha), float(torch.exp(-(p * p.log()).sum()))


def monitored(trainer: Trainer, features: Tensor, z: Tensor) -> dict[str, float]:
    """What the callback logs of a validation."""
    found: dict[str, float] = {}
    callback = RankMonitor()
    callback._rows = [(torch.arange(len(z)), features.cpu(), z.cpu())]
    module: Any = SimpleNamespace(device=z.device, log=lambda name, value, **_: found.update({name: value}))
    callback.on_validation_epoch_end(trainer, module)
    return found


def seconds(run: Callable[[], Any], repeats: int, device: str) -> float:
    """Median time of a call, after one to warm up where there are several; on a CPU that of its processor."""
    times, clock = [], perf_counter if device == "cuda" else process_time
    for _ in range(repeats + (repeats > 1)):
        start = clock()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return median(times[repeats > 1 :])


def main(
    device: str = "cpu",
    threads: int = 1,
    n: int = 5000,
    dim: int = 2048,
    repeats: int = 5,
    out: str = "benchmarks/results/spectrum",
) -> None:
    """Measure, print the table and write it.

    Args:
        device: cpu or cuda.
        threads: of the CPU.
        n: N, images.
        dim: F, of the features.
        repeats: calls of which the median is taken.
        out: path without suffix of the two files; the device is appended.
    """
    torch.set_num_threads(threads)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    rows, names = [], {"noise": 0.0, "to 1e-2": 1e-2, "to 1e-4": 1e-4}
    for name, end in names.items():
        features = with_spectrum(n, dim, end).to(device)
        for proj_dim in (256, dim):
            z = with_spectrum(n, proj_dim, end).to(device)
            alpha, rank = exactly(features, z)
            found = monitored(trainer, features, z)
            row = {
                "spectrum": name,
                "D": proj_dim,
                "RankMonitor": seconds(lambda: monitored(trainer, features, z), repeats, device),  # noqa: B023
                "alpha": seconds(lambda: alpha_req(features), repeats, device),  # noqa: B023
                "RankMe": seconds(lambda: rankme(z), repeats, device),  # noqa: B023
                "decompositions": seconds(lambda: exactly(features, z), 1, device),  # noqa: B023
                "error of alpha": abs(found["val/alpha"] - alpha),
                "error of RankMe": abs(found["val/rankme"] - rank),
            }
            rows.append(row)
            print(line(row), flush=True)  # noqa: T201
    about = {
        "machine": machine(device, threads),
        "date": str(date.today()),
        "torch": torch.__version__,
        "N": n,
        "F": dim,
    }
    path = Path(f"{out}-{device}.json")
    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    head = (
        f"# RankMonitor at a validation: features ({n}, {dim}), z ({n}, D), float32\n\n{about['machine']}; torch "
        f"{about['torch']}; {about['date']}. Median of {repeats} calls, without pictures, in seconds of the processor "
        "where it is a CPU; errors are absolute, beside "
        "decompositions in float64, one of features and one of z. `python benchmarks/spectrum.py`\n\n"
    )
    path.with_suffix(".md").write_text(head + HEADER + "\n".join(map(line, rows)) + "\n")


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    times = [f"{row[name]:.2f}" for name in ("RankMonitor", "alpha", "RankMe", "decompositions")]
    errors = [f"{row[name]:.0e}" for name in ("error of alpha", "error of RankMe")]
    return "| " + " | ".join([row["spectrum"], str(row["D"]), *times, *errors]) + " |"


if __name__ == "__main__":
    auto_cli(main)
