"""Draws the README's picture: test accuracy against the number of views seen, for K = 2, 4 and 8.

    python benchmarks/accuracy_against_views.py

It reads the cells of `paper/small/views.yaml` with all images and N = 128, which are results of `msssl sweep` on real
images. A line is the mean over seeds, a band the 95 % interval of Student's t distribution.
"""

import csv
from pathlib import Path

from matplotlib.figure import Figure
from scipy import stats

ROOT = Path(__file__).parents[1]
CELLS = ROOT / "benchmarks" / "results" / "study-views-cells.csv"
PICTURE = ROOT / "docs" / "drawings" / "accuracy-against-views.svg"
N_IMAGES = 45_000  # of the training set
COLOURS = {2: "#4477aa", 4: "#ee6677", 8: "#228833"}


def accuracies(cells: list[dict[str, str]]) -> dict[int, dict[float, list[float]]]:
    """Accuracies of the seeds, by K and by millions of views seen."""
    found: dict[int, dict[float, list[float]]] = {}
    for cell in cells:
        if cell["data.batch_size"] or cell["data.fraction"]:
            continue
        n_views = int(cell["data.views.n_views"])
        views = n_views * int(cell["trainer.max_epochs"]) * N_IMAGES / 1e6
        found.setdefault(n_views, {}).setdefault(views, []).append(float(cell["linear"]))
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of the mean by Student's t distribution; no width for a single value."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, mean
    low, high = stats.t.interval(0.95, len(values) - 1, mean, stats.sem(values))
    return float(low), float(high)


def main() -> None:
    """Draw the picture."""
    with CELLS.open() as file:
        of_cells = accuracies(list(csv.DictReader(file)))
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for n_views, points in sorted(of_cells.items()):
        views = sorted(points)
        ends = [interval(points[x]) for x in views]
        means = [sum(points[x]) / len(points[x]) for x in views]
        axes.plot(views, means, marker="o", color=COLOURS[n_views], label=f"K = {n_views} views of an image")
        axes.fill_between(views, *zip(*ends, strict=True), color=COLOURS[n_views], alpha=0.2, linewidth=0)
    axes.set(xscale="log", xlabel="views seen in the pretraining, millions", ylabel="test top-1, linear probe")
    ticks = sorted({x for points in of_cells.values() for x in points})
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
