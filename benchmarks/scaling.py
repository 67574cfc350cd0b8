"""How time and memory grow with views, images, dimensions, width and pixels: exponents, beside those of theory.

    python benchmarks/scaling.py        # about 4 minutes on one core
    python benchmarks/scaling.py --device cuda --N 256 --W 64

One of them varies at a time, the others stay at the base point. An exponent is the slope of the least-squares line
through the logarithms: 1 is linear. It lies below that of theory where calls cost more than their work, as they do at
small points on a GPU.
"""

import json
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from chunk_views import make_step, peak_memory, timed
from jsonargparse import auto_cli
from machine import keep_freed_memory, machine

from msssl import BarlowTwins, MultiView, ResNet
from msssl.losses import barlow_twins_loss, vicreg_loss

FACTORS = {"K": (0.5, 1, 2, 4), "N": (0.5, 1, 2, 4), "D": (0.5, 1, 2, 4, 8), "W": (0.5, 1, 2), "px": (0.5, 1, 2)}
Step = Callable[[], Any]


class Point(NamedTuple):
    """Views, images, dimensions, width of the ResNet-18 and side of the images in pixels."""

    K: int
    N: int
    D: int
    W: int
    px: int


class Quantity(NamedTuple):
    """What is measured of a step, with what it varies, and the terms of its cost but for their factors."""

    unit: str
    make: Callable[[Point, str], Step]
    knobs: tuple[str, ...]
    terms: tuple[Callable[[Point], float], ...]


def main(
    K: int = 4,
    N: int = 64,
    D: int = 256,
    W: int = 16,
    px: int = 32,
    device: str = "cpu",
    seconds: float = 1.0,
    out: str = "benchmarks/results/scaling",
) -> None:
    """Measure, print the table, and write it as `<out>-<device>.md` beside its numbers in `<out>-<device>.json`.

    Args:
        K: views at the base point; measured from half to 4 times as many.
        N: images, likewise.
        D: output of the projector, from half to 8 times as wide.
        W: width of the ResNet-18, from half to twice.
        px: side of the images, from half to twice.
        device: `cpu` or `cuda`.
        seconds: for the repeats at each point, 3 at least, of which the fastest counts.
        out: of the files, without device and ending.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    base = Point(K, N, D, W, px)
    rows = []
    for name, quantity in QUANTITIES.items():
        found: dict[Point, float] = {}  # the base point is on every line
        for knob in quantity.knobs:
            points = [base._replace(**{knob: int(factor * getattr(base, knob))}) for factor in FACTORS[knob]]
            for point in points:
                found[point] = found.get(point) or measure(quantity, point, device, seconds)
            at, cost = [getattr(point, knob) for point in points], [found[point] for point in points]
            row: dict[str, Any] = {"quantity": name, "unit": quantity.unit, "grows with": knob, "at": at, "found": cost}
            row["exponent"] = exponent(at, cost)
            row["expected"] = max(exponent(at, [term(point) for point in points]) for term in quantity.terms)
            rows.append(row)
            print(line(row), flush=True)  # noqa: T201
    about = (
        f"Base point: K = {K}, N = {N}, D = {D}, ResNet-18 of width {W} with the stem of small images, {px} px, "
        f"float32, nothing compiled; {machine(device, 1)}; torch {torch.__version__}; {date.today()}; "
        "`benchmarks/scaling.py`. Fastest of the repeats; memory is the peak of a training step above the state before "
        "it. Expected at most: the exponent of the fastest growing term of the cost; that of a loss may be its Gram "
        "matrix, N x N or D x D, whichever is smaller."
    )
    path = Path(f"{out}-{device}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    header = ["| quantity | grows with | from .. to .. | exponent | expected at most |", "|---|---|---|---|---|"]
    path.with_suffix(".md").write_text("\n".join([about, "", *header, *map(line, rows)]) + "\n")


def measure(quantity: Quantity, point: Point, device: str, seconds: float) -> float:
    """Seconds of the fastest step, or the peak of its memory in MB."""
    torch.manual_seed(0)
    step = quantity.make(point, device)
    step()  # caches, makes the optimizer's state
    if quantity.unit == "MB":
        return peak_memory(step, device) / 1e6
    times: list[float] = []
    began = perf_counter()
    while len(times) < 3 or perf_counter() - began < seconds:
        times.append(timed(step, device))
    return min(times)


def exponent(x: list[int], y: list[float]) -> float:
    """Slope of log y over log x, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    first, last = (f"{row['found'][i]:.3g}" for i in (0, -1))
    span = f"{row['at'][0]} to {row['at'][-1]}: {first} to {last} {row['unit']}"
    expected = round(row["expected"], 2) + 0.0  # no -0
    return f"| {row['quantity']} | {row['grows with']} | {span} | {row['exponent']:.2f} | {expected:g} |"


def loss_step(loss: Callable[[torch.Tensor], dict[str, torch.Tensor]], at: Point, device: str) -> Step:
    """A loss, forward and backward."""
    z = torch.randn(at.K, at.N, at.D, device=device, requires_grad=True)
    return lambda: torch.autograd.grad(loss(z)["loss"], z)


def views_step(at: Point, device: str) -> Step:
    """The views of a batch of images."""
    images = torch.randint(256, (at.N, 3, at.px, at.px), dtype=torch.uint8, device=device)
    return partial(MultiView(at.K, compile=False), images)


def encoder_step(at: Point, device: str) -> Step:
    """Backbone and projector, forward and backward."""
    module = BarlowTwins(backbone=ResNet(18, width=at.W), proj_dim=at.D).to(device)
    views = torch.randn(at.K * at.N, 3, at.px, at.px, device=device)
    return lambda: torch.autograd.grad(module.projector(module(views)).sum(), list(module.parameters()))


def training_step(at: Point, device: str, chunk_views: int | None = None) -> Step:
    """A training step with Adam."""
    step: Step = make_step(at.K, at.N, chunk_views, 18, at.W, device, at.D, at.px)
    return step


LOSS = ("K", "N", "D"), (lambda p: p.K * p.N * p.D, lambda p: min(p.N, p.D) * p.N * p.D)
VIEWS = ("K", "N", "px"), (lambda p: p.K * p.N * p.px**3,)  # a crop is a product of matrices, px x px
ENCODER = ("K", "N", "W", "px"), (lambda p: p.K * p.N * p.W**2 * p.px**2,)
MEMORY = ("K", "N", "W", "px"), (lambda p: p.K * p.N * p.W * p.px**2,)
CHUNKED = ("K",), (lambda p: p.N * p.W * p.px**2,)
QUANTITIES = {
    "loss, Barlow Twins": Quantity("s", partial(loss_step, partial(barlow_twins_loss, beta=5 / 256)), *LOSS),
    "loss, VICReg": Quantity("s", partial(loss_step, vicreg_loss), *LOSS),
    "views": Quantity("s", views_step, *VIEWS),
    "encoder": Quantity("s", encoder_step, *ENCODER),
    "memory": Quantity("MB", training_step, *MEMORY),
    "memory, chunk_views 2": Quantity("MB", partial(training_step, chunk_views=2), *CHUNKED),
}

if __name__ == "__main__":
    auto_cli(main)
