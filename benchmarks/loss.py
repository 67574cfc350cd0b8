"""Time, memory and launches of the losses, forward and backward, beside lightly's, in one run.

    python benchmarks/loss.py                     # CPU, one thread: about 6 minutes
    python benchmarks/loss.py --device cuda

lightly's Barlow Twins and VICReg take two views: they are averaged over all pairs, which is what `pairs` computes.
FroSSL (Skean et al. 2024) is its loss for K views. The table and a JSON file go to benchmarks/results/.
"""

import json
from collections.abc import Callable
from datetime import date
from itertools import combinations
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import lightly
import torch
from jsonargparse import auto_cli
from lightly.loss import BarlowTwinsLoss, FroSSLLoss, VICRegLoss
from machine import keep_freed_memory, machine
from tensors import Tensors
from torch import Tensor

from msssl.losses import barlow_twins_loss, vicreg_loss

N = 256
Loss = Callable[[Tensor], Tensor]


def over_pairs(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """A loss of two views, averaged over all pairs of K."""
    return lambda z: torch.stack([loss(a, b) for a, b in combinations(z, 2)]).mean()


def ours(loss: Callable[..., dict[str, Tensor]], **kwargs: Any) -> Loss:
    """A loss of ours as a function of z alone."""
    return lambda z: loss(z, **kwargs)["loss"]


def losses(dim: int) -> dict[str, Loss]:
    """The rivals, by name."""
    beta = 5 / dim
    return {
        "Barlow Twins mean": ours(barlow_twins_loss, beta=beta),
        "Barlow Twins pairs": ours(barlow_twins_loss, beta=beta, form="pairs"),
        "Barlow Twins lightly": over_pairs(BarlowTwinsLoss(lambda_param=beta)),
        "VICReg mean": ours(vicreg_loss),
        "VICReg pairs": ours(vicreg_loss, form="pairs"),
        "VICReg lightly": over_pairs(VICRegLoss(25.0, 25.0, 1.0)),
        "FroSSL lightly": lambda z: FroSSLLoss()(list(z)),
    }


def embeddings(n_views: int, dim: int, device: str) -> Tensor:
    """Views (K, N, D) that agree in part."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(N, dim, generator=generator)
    z = image + 0.5 * torch.randn(n_views, N, dim, generator=generator)
    return z.to(device).requires_grad_()


def step(loss: Loss, z: Tensor) -> None:
    """Forward and backward."""
    z.grad = None
    loss(z).backward()
    if z.is_cuda:
        torch.cuda.synchronize()


def measure(loss: Loss, z: Tensor) -> dict[str, float]:
    """Median milliseconds of 5 runs after one to warm up, peak memory as a multiple of z, launches."""
    step(loss, z)
    times = []
    for _ in range(5):
        start = perf_counter()
        step(loss, z)
        times.append(1000 * (perf_counter() - start))
    with Tensors() as tensors:
        step(loss, z)
    return {"ms": median(times), "memory": tensors.peak / z.nbytes, "launches": tensors.launches}


def main(device: str = "cpu", threads: int = 1, out: str = "benchmarks/results/loss") -> None:
    """Measure, print the table and write it.

    Args:
        device: cpu or cuda.
        threads: of the CPU.
        out: path without suffix of the two files; the device is appended.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    rows = []
    for dim in (64, 256, 1024, 8192):
        for n_views in (2, 4, 8, 16):
            z = embeddings(n_views, dim, device)
            row: dict[str, Any] = {"D": dim, "K": n_views}
            for name, loss in losses(dim).items():
                if dim == 8192 and "lightly" in name and n_views > 2:
                    continue  # minutes and gigabytes: once is enough
                row[name] = measure(loss, z)
            for kind in ("Barlow Twins", "VICReg"):  # faster, but of the same value
                pair = [losses(dim)[f"{kind} {which}"] for which in ("pairs", "lightly")]
                if f"{kind} lightly" in row:
                    torch.testing.assert_close(*(loss(z.detach()) for loss in pair), rtol=1e-3, atol=0)
            rows.append(row)
            print(line(row), flush=True)  # noqa: T201
    about = {
        "machine": machine(device, threads),
        "date": str(date.today()),
        "torch": torch.__version__,
        "lightly": lightly.__version__,
        "N": N,
    }
    path = Path(f"{out}-{device}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(about, rows))


HEADER = (
    "| D | K | Barlow mean ms | pairs ms | lightly ms | mean x | pairs x | VICReg mean ms | pairs ms | lightly ms "
    "| mean x | pairs x | FroSSL ms | memory mean / pairs / lightly | launches mean / pairs / lightly |"
)


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [str(row["D"]), str(row["K"])]
    for kind in ("Barlow Twins", "VICReg"):
        mean, pairs, peer = (row.get(f"{kind} {which}", {}).get("ms") for which in ("mean", "pairs", "lightly"))
        cells += [f"{mean:.1f}", f"{pairs:.1f}", f"{peer:.1f}" if peer else "-"]
        cells += [f"{peer / mean:.1f}", f"{peer / pairs:.1f}"] if peer else ["-", "-"]
    cells.append(f"{row['FroSSL lightly']['ms']:.1f}" if "FroSSL lightly" in row else "-")
    barlow = [row.get(f"Barlow Twins {which}") for which in ("mean", "pairs", "lightly")]
    cells.append(" / ".join(f"{found['memory']:.1f}" if found else "-" for found in barlow))
    cells.append(" / ".join(f"{found['launches']}" if found else "-" for found in barlow))
    return f"| {' | '.join(cells)} |"


def table(about: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The page: what was measured, where, and the rows."""
    head = (
        f"# Losses, forward and backward, N = {N}, float32\n\n"
        f"{about['machine']}; torch {about['torch']}, lightly {about['lightly']}; {about['date']}. "
        "Median of 5 runs; `x` is lightly over all pairs divided by ours; memory is the peak of what the loss and its "
        "gradient allocate, in multiples of z, and launches the operations dispatched, both for Barlow Twins. "
        "`python benchmarks/loss.py`\n\n"
    )
    rule = "|" + "---|" * HEADER.count(" | ") + "---|"
    return head + "\n".join([HEADER, rule, *map(line, rows)]) + "\n"


if __name__ == "__main__":
    auto_cli(main)
