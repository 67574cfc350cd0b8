"""Time, memory and launches of the losses, forward and backward, beside lightly's, in one run.

    python benchmarks/loss.py                     # CPU, one thread: about 10 minutes
    python benchmarks/loss.py --device cuda

lightly's Barlow Twins and VICReg take two views: they are averaged over all pairs, which is what `pairs` computes. Its
other losses take K views as ours do. The table and a JSON file go to benchmarks/results/.
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
from lightly.loss import (
    BarlowTwinsLoss,
    FroSSLLoss,
    LeJEPALoss,
    MMCRLoss,
    NTXentLoss,
    VICRegLoss,
    VISRegLoss,
)
from machine import keep_freed_memory, machine
from tensors import Tensors
from torch import Tensor
from torch.nn import functional as F

from msssl.losses import (
    barlow_twins_loss,
    frossl_loss,
    lejepa_loss,
    logdet_loss,
    mmcr_loss,
    mvdhel_loss,
    simclr_loss,
    spectral_contrastive_loss,
    vicreg_loss,
    visreg_loss,
)

N = 256
Loss = Callable[[Tensor], Tensor]


def over_pairs(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """A loss of two views, averaged over all pairs of K."""
    return lambda z: torch.stack([loss(a, b) for a, b in combinations(z, 2)]).mean()


def ours(loss: Callable[..., dict[str, Tensor]], **kwargs: Any) -> Loss:
    """A loss of ours as a function of z alone."""
    return lambda z: loss(z, **kwargs)["loss"]


def mmcr_of_lightly(z: Tensor) -> Tensor:
    """Lightly takes unit vectors, in two parts."""
    first, second = F.normalize(z, dim=-1).transpose(0, 1).chunk(2, dim=1)
    return MMCRLoss(lmda=0.0)(first, second)


def rivals(n_views: int, dim: int, device: str) -> dict[str, tuple[Loss, Loss | None]]:
    """Our losses by name, each with lightly's where there is one."""
    beta = 5 / dim
    pairs = BarlowTwinsLoss(lambda_param=beta), VICRegLoss(25.0, 25.0, 1.0)
    directions = {n: F.normalize(torch.randn(dim, n), dim=0).to(device) for n in (256, 1024)}
    losses: dict[str, tuple[Loss, Loss | None]] = {
        "Barlow Twins, mean": (ours(barlow_twins_loss, beta=beta), over_pairs(pairs[0])),
        "Barlow Twins, pairs": (ours(barlow_twins_loss, beta=beta, form="pairs"), over_pairs(pairs[0])),
        "VICReg, mean": (ours(vicreg_loss), over_pairs(pairs[1])),
        "VICReg, pairs": (ours(vicreg_loss, form="pairs"), over_pairs(pairs[1])),
    }
    if dim > 2048:  # the paper's large projector; the others are for small ones
        return losses
    losses |= {
        "SimCLR": (ours(simclr_loss), over_pairs(NTXentLoss(temperature=0.15)) if n_views == 2 else None),
        "Spectral contrastive": (ours(spectral_contrastive_loss), None),
        "MMCR": (ours(mmcr_loss), mmcr_of_lightly),
        "FroSSL": (ours(frossl_loss), lambda z: FroSSLLoss()(list(z))),
        "MV-DHEL": (ours(mvdhel_loss), None),
        "TCR": (ours(logdet_loss, form="tcr"), None),
    }
    for n in (256, 1024):
        sketched = LeJEPALoss(sigreg_num_vectors=n).to(device)
        losses[f"LeJEPA, S = {n}"] = (
            ours(lejepa_loss, directions=directions[n]),
            lambda z, peer=sketched: peer(global_proj=z[:1], local_proj=z[1:]),
        )
        sliced = VISRegLoss(lambda_param=0.6, num_slices=n)
        losses[f"VISReg, S = {n}"] = (
            ours(visreg_loss, directions=directions[n]),
            lambda z, peer=sliced: peer(global_proj=z[:1], local_proj=z[1:]),
        )
    if dim < N:
        losses["LogDet"] = (ours(logdet_loss), None)
    return losses


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
            for name, (loss, peer) in rivals(n_views, dim, device).items():
                too_slow = dim == 8192 and n_views > 2  # for lightly: minutes and gigabytes, once is enough
                row = {"loss": name, "D": dim, "K": n_views, "ours": measure(loss, z)}
                if peer is not None and not too_slow:
                    row["lightly"] = measure(peer, z)
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


HEADER = "| loss | D | K | ours ms | lightly ms | x | memory | lightly | launches | lightly |"


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    mine, peer = row["ours"], row.get("lightly")
    cells = [row["loss"], row["D"], row["K"], f"{mine['ms']:.1f}"]
    cells += [f"{peer['ms']:.1f}", f"{peer['ms'] / mine['ms']:.1f}"] if peer else ["-", "-"]
    for key, digits in (("memory", 1), ("launches", 0)):
        cells += [f"{mine[key]:.{digits}f}", f"{peer[key]:.{digits}f}" if peer else "-"]
    return f"| {' | '.join(map(str, cells))} |"


def table(about: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The page: what was measured, where, and the rows."""
    head = (
        f"# Losses, forward and backward, N = {N}, float32\n\n"
        f"{about['machine']}; torch {about['torch']}, lightly {about['lightly']}; {about['date']}. "
        "Median of 5 runs; `x` is lightly divided by ours, memory the peak of what loss and gradient allocate, "
        "in multiples of z, and launches the operations dispatched. Lightly draws the directions of LeJEPA and VISReg "
        "within the loss, and we draw them before it. `python benchmarks/loss.py`\n\n"
    )
    rule = "|" + "---|" * HEADER.count(" | ") + "---|"
    return head + "\n".join([HEADER, rule, *map(line, rows)]) + "\n"


if __name__ == "__main__":
    auto_cli(main)
