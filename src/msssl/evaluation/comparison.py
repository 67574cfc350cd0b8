"""Reports of probes, grouped into what can be compared."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msssl.metrics import mean_interval

IGNORED = ("data_dir", "cache_dir", "num_workers", "storage", "on_error", "_instantiator")  # change no accuracy
METHOD = ("method", "run.model._class_path")  # shown anyway
REQUIRED = ("checkpoint", "data_class", "data_id", "images", "protocol", "reported_on", "rows", "run", "seeds")
COSTS = {"epochs": "epochs", "minutes": "minutes", "views_seen": "views"}


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seeds only, and the features of one encoder.

    Attributes:
        run: how it differs from the others of its table.
        features: `raw pixels`, `untrained encoder` (`random encoder` where the run began from weights) or
            `pretrained encoder`.
        seeds: of the runs.
        top1: of the linear head on each, with `low` and `high`, the ends of the 95 % interval: over seeds, by Student's
            t, or over images where there is one seed.
        knn: its mean.
        costs: means of epochs, minutes and views seen.
    """

    run: str
    features: str
    seeds: list[int]
    top1: list[float]
    mean: float
    low: float
    high: float
    knn: float | None
    costs: dict[str, float | None]


def read_reports(runs: Sequence[str]) -> list[dict[str, Any]]:
    """All reports of the runs, each once."""
    found: dict[Path, dict[str, Any]] = {}
    for run in runs:
        if not Path(run).exists():
            raise FileNotFoundError(f"{run} is neither a run nor a report; a study is named with its .yaml")
        paths = sorted(Path(run).glob("probe*.json")) if Path(run).is_dir() else [Path(run)]
        if not paths or not paths[0].is_file():
            raise FileNotFoundError(f"{run} holds no probe.json: run msssl probe --ckpt_path {run}")
        for path in paths:
            try:
                content = json.loads(path.read_text())
                _ = [content[name] for name in REQUIRED]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is not a report of msssl probe: {type(error).__name__} {error}") from error
            found[path.resolve()] = {**content, "path": str(path)}
    return list(found.values())


def group(reports: list[dict[str, Any]]) -> dict[str, list[Row]]:
    """Rows that can be compared, by what they have in common: protocol, images and their split.

    Reports of images that cannot be told apart from others have a table each.
    """
    tables: dict[str, list[dict[str, Any]]] = {}
    for each in reports:
        data = each["data_id"] or f"without a fingerprint, of {each['path']}"
        n_images = each["images"][each["reported_on"]]
        title = f"{each['data_class']} {data}, {n_images:,} images of {each['reported_on']}: {each['protocol']}"
        tables.setdefault(title, []).append(each)
    return {title: _rows(of_table) for title, of_table in tables.items()}


def _rows(reports: list[dict[str, Any]]) -> list[Row]:
    settings = [_settings(each) for each in reports]
    names = sorted({name for each in settings for name in each})
    varying = [name for name in names if len({each.get(name, "-") for each in settings}) > 1]
    of_run: dict[str, list[dict[str, Any]]] = {}
    for each, values in zip(reports, settings, strict=True):
        package, _, method = str(each["run"]["method"]).rpartition(".")
        method = method if package.partition(".")[0] == "msssl" else f"{package}.{method}".lstrip(".")
        differs = [f"{name.rpartition('.')[2]}={values.get(name, '-')}" for name in varying if name not in METHOD]
        of_run.setdefault(" ".join([method, *differs]), []).append(each)
    found = []
    for label, of_label in of_run.items():
        for features in dict.fromkeys(row["features"] for each in of_label for row in each["rows"]):
            found.append(_row(label, of_label, features))
    return found


def _row(label: str, reports: list[dict[str, Any]], features: str) -> Row:
    reports = [each for each in reports if any(row["features"] == features for row in each["rows"])]
    rows = [next(row for row in each["rows"] if row["features"] == features) for each in reports]
    split = reports[0]["reported_on"]
    top1 = [row[f"{split}_top1"] for row in rows]
    mean, low, high = mean_interval(top1)
    if len(top1) == 1 and f"{split}_interval" in rows[0]:
        low, high = rows[0][f"{split}_interval"]
    knn = [row[f"{split}_knn"] for row in rows if f"{split}_knn" in row]
    costs = {}
    for name in COSTS:
        values = [each["run"][name] for each in reports if each["run"][name] is not None]
        costs[name] = sum(values) / len(values) if values else None
    seeds = [each["seeds"]["run"] for each in reports]
    found = sum(knn) / len(knn) if knn else None
    return Row(label, features, seeds, top1, mean, low, high, found, costs)


def _settings(report: dict[str, Any]) -> dict[str, str]:
    """What made the run, by dotted names, but for its seed and what changes no accuracy."""
    flat = {name: str(report["run"][name]) for name in ("epochs", "method")}
    flat["checkpoint"] = Path(report["checkpoint"]).stem  # such as last and best of one run

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{name}.{key}", inner)
        elif name.rpartition(".")[2] not in IGNORED:
            flat[name] = json.dumps(value) if isinstance(value, list) else str(value)

    add("run", report["run"]["settings"])
    return flat
