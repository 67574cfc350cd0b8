"""Linear heads for a grid of penalties: `linear_probes` against as many fits of scikit-learn, in one run.

    python benchmarks/probes.py        # about 3 minutes on one core

Both solve the same problem, cross-entropy + weight_decay / 2 * ||W||^2 with a free bias on standardised features, by
L-BFGS: scikit-learn's C is 1 / (n * weight_decay). What counts is the time at the same objective, so scikit-learn runs
at its default tolerance and at one that comes as near to the optimum as ours.
"""

import json
import sys
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import sklearn
import torch
from jsonargparse import auto_cli
from machine import keep_freed_memory, machine
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from msssl.metrics import linear_probes

Heads = list[tuple[np.ndarray, np.ndarray]]  # weight (C, F) and bias (C,) on standardised features


def main(
    n: int = 10_000,
    dim: int = 512,
    num_classes: int = 10,
    n_penalties: int = 20,
    repeats: int = 3,
    threads: int = 1,
    out: str = "benchmarks/results/probes-cpu",
) -> None:
    """Time the grid, and write `<out>.json` and `<out>.md`.

    Args:
        n: features.
        dim: of them.
        num_classes: C.
        n_penalties: spread from 1 to 1e-4 by equal factors.
        repeats: of each; the median counts.
        threads: of both.
        out: of the files, without their ending.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes, (n,), generator=generator)
    centres = torch.randn(num_classes, dim, generator=generator)
    scales = torch.arange(1, dim + 1).float() ** -0.5  # variances fall as those of features do
    x = (0.1 * centres[labels] + torch.randn(n, dim, generator=generator)) * scales
    x = (x - x.mean(dim=0)) / x.std(dim=0, correction=0)
    decays = torch.logspace(0, -4, n_penalties).tolist()

    rows: dict[str, dict[str, Any]] = {}
    solvers = {
        "msssl.metrics.linear_probes": lambda: ours(x, labels, num_classes, decays),
        "scikit-learn, tol 1e-4 (its default)": lambda: theirs(x, labels, decays, 1e-4),
        "scikit-learn, tol 1e-6": lambda: theirs(x, labels, decays, 1e-6),
    }
    found = {}
    for name, solve in solvers.items():
        times = []
        for _ in range(repeats):
            start = perf_counter()
            found[name] = [objective(x, labels, *head, decay) for head, decay in zip(solve(), decays, strict=True)]
            times.append(perf_counter() - start)
        rows[name] = {"seconds": median(times)}
    best = [min(values) for values in zip(*found.values(), strict=True)]
    for name, values in found.items():
        rows[name]["above_optimum"] = max((value - low) / low for value, low in zip(values, best, strict=True))
    versions = {"torch": torch.__version__, "scikit-learn": sklearn.__version__}
    setting = f"{n:,} x {dim} features, {num_classes} classes, {n_penalties} penalties from 1 to 1e-4"
    result = {
        "date": str(date.today()),
        "machine": machine("cpu", threads),
        "versions": versions,
        "setting": setting,
        "rows": rows,
    }
    Path(f"{out}.json").write_text(json.dumps(result, indent=2) + "\n")
    mine = rows["msssl.metrics.linear_probes"]["seconds"]
    lines = [
        "# A grid of linear heads",
        "",
        f"{result['date']}, {result['machine']}, torch {torch.__version__}, scikit-learn {sklearn.__version__}.",
        f"`python benchmarks/probes.py`: {setting}; median of {repeats}.",
        "The last column is how far the worst of the objectives is above the best that any of the three found.",
        "",
        "| | seconds | ratio | above the optimum |",
        "|---|---|---|---|",
        *(
            f"| {name} | {row['seconds']:.2f} | {row['seconds'] / mine:.1f} | {row['above_optimum']:.1e} |"
            for name, row in rows.items()
        ),
    ]
    Path(f"{out}.md").write_text("\n".join(lines) + "\n")
    sys.stdout.write("\n".join(lines) + "\n")


def ours(x: Tensor, labels: Tensor, num_classes: int, decays: list[float]) -> Heads:
    """All penalties in one path."""
    heads = linear_probes(x, labels, num_classes=num_classes, weight_decays=decays)
    return [(head.weight.double().numpy(), head.bias.double().numpy()) for head in heads]


def theirs(x: Tensor, labels: Tensor, decays: list[float], tol: float) -> Heads:
    """One fit a penalty."""
    given, y = x.numpy(), labels.numpy()
    fits = [LogisticRegression(C=1 / (len(x) * decay), tol=tol, max_iter=1000).fit(given, y) for decay in decays]
    return [(fit.coef_.astype("float64"), fit.intercept_.astype("float64")) for fit in fits]


def objective(x: Tensor, labels: Tensor, weight: np.ndarray, bias: np.ndarray, decay: float) -> float:
    """What both minimise, in float64."""
    logits = x.double() @ torch.from_numpy(weight).T + torch.from_numpy(bias)
    return float(F.cross_entropy(logits, labels) + decay / 2 * np.square(weight).sum())


if __name__ == "__main__":
    auto_cli(main)
