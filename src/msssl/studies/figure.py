"""Draws a study's figure: a measure against an axis of the grid, or accuracy or error against epochs or minutes."""

from pathlib import Path
from statistics import mean
from typing import Any

from msssl.evaluation.compare.over_seeds import draw as draw_over_seeds
from msssl.run.files import atomic_write
from msssl.studies.measures import ONLINE
from msssl.studies.study import CURVES, FRONT, Study
from msssl.studies.table import Line


def draw(study: Study, lines: list[Line], path: Path) -> None:
    """Draw the first measure against an axis of the grid, or accuracy against epochs or minutes, as the study says."""
    from matplotlib.figure import Figure  # half a second, for this only

    x = study.figure.get("x", CURVES)
    figure = Figure(figsize=(11 if x == CURVES else 7, 4.5), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2 if x == CURVES else 1, sharey=True, squeeze=False)[0]
    if x == CURVES:
        _curves(panels, lines)
    elif x == FRONT:
        _front(panels[0], study, lines)
    else:
        _against(panels[0], study, lines, x)
    missing = sum(not line.results for line in lines)
    if missing:
        note = f"{missing} of {len(lines)} points were not run"
        panels[0].annotate(note, (0.01, 0.01), xycoords="axes fraction", fontsize=7, color="firebrick")
    if panels[0].get_legend_handles_labels()[0]:
        panels[0].legend(frameon=False, fontsize=7)
    figure.suptitle(study.title, fontsize=9, wrap=True)
    with atomic_write(path) as growing:
        figure.savefig(growing, format="png")


def _against(axes: Any, study: Study, lines: list[Line], x: str) -> None:
    """The first measure of each arm, and of each other axis, against one axis; published values are open circles.

    The line goes through the means, which are dashes. Below 4 seeds each seed is a point, from 4 on the mean has its
    interval.
    """
    name = next(iter(study.measures))
    for line in lines:
        value = line.values.get(name)
        if x not in line.row.at and value is not None and value.mean is not None:
            axes.axhline(value.mean, color="grey", ls="--", label=line.name)
    lines = [line for line in lines if x in line.row.at]
    ticks = list(dict.fromkeys(line.row.at[x] for line in lines))
    numeric = all(isinstance(tick, int | float) for tick in ticks)
    series: dict[str, list[Line]] = {}
    for line in lines:
        series.setdefault(_label(line, but=x), []).append(line)
    for i, (label, of_series) in enumerate(series.items()):
        places = [line.row.at[x] if numeric else ticks.index(line.row.at[x]) for line in of_series]
        _series(axes, name, places, of_series, f"C{i}", label)
    if study.figure.get("log"):
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks if numeric else range(len(ticks)), [str(tick) for tick in ticks])
    axes.set(xlabel=x, ylabel=name)


def _series(axes: Any, measure: str, places: list[Any], lines: list[Line], color: str, label: str) -> None:
    """Ours, at these places along x, and what is published."""
    ours = [(at, line.values[measure]) for at, line in zip(places, lines, strict=True) if line.values]
    ours = [(at, value) for at, value in ours if value.mean is not None]
    for at, value in ours:
        draw_over_seeds(axes, at, value, color)
    if ours:
        means = [value.mean for _, value in ours]
        axes.plot([at for at, _ in ours], means, marker="_", markersize=10, color=color, label=label)
    published = [(at, *line.row.published) for at, line in zip(places, lines, strict=True) if line.row.published]
    if published:
        style = {"fmt": "o:", "mfc": "white", "alpha": 0.6, "label": f"{label} (published)"}
        axes.errorbar(*zip(*published, strict=True), color=color, **style)


def _label(line: Line, but: str) -> str:
    return ", ".join([line.row.arm, *(f"{axis}={value}" for axis, value in line.row.at.items() if axis != but)])


def _curves(axes: Any, lines: list[Line]) -> None:
    """Accuracy of the online probe on validation images against epochs and minutes, means over seeds."""
    for line in lines:
        if not line.results:
            continue
        n = min(len(result.curve) for result in line.results)
        curve = [[result.curve[i] for result in line.results] for i in range(n)]
        top1 = [mean(seed[ONLINE] for seed in point) for point in curve]
        axes[0].plot([mean(seed["epoch"] for seed in point) + 1 for point in curve], top1, label=line.name)
        axes[1].plot([mean(seed["minutes"] for seed in point) for point in curve], top1)
    axes[0].set(xlabel="epochs", ylabel="top-1 of the online probe, validation")
    axes[1].set(xlabel="minutes of training")


def _front(axes: Any, study: Study, lines: list[Line]) -> None:
    """Error of the first measure against minutes, and the rows that no other beats in both."""
    name = next(iter(study.measures))
    points = []
    for line in lines:
        accuracy = line.values[name].mean if line.values else None
        if line.minutes is not None and accuracy is not None:
            points.append((line.minutes, 1 - accuracy))
            axes.plot(*points[-1], "o")
            axes.annotate(line.name, points[-1], fontsize=6, xytext=(4, 2), textcoords="offset points")
    best = [point for point in points if not any(o[0] <= point[0] and o[1] < point[1] for o in points)]
    axes.plot([x for x, _ in sorted(best)], [y for _, y in sorted(best)], "k--", lw=0.8, label="Pareto front")
    axes.set(xlabel="minutes of training", ylabel=f"error: 1 - {name}")
