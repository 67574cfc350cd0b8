"""Reports of probes, grouped into tables whose rows can be compared."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msssl.errors import UserError
from msssl.evaluation.compare.over_seeds import ACCURACY, Difference, OverSeeds, over_seeds, paired_difference
from msssl.evaluation.table import number
from msssl.metrics import accuracy_interval

IGNORED = ("data_dir", "cache_dir", "num_workers", "storage", "on_error", "_instantiator")  # change no accuracy
METHOD = ("method", "run.model._class_path")  # shown anyway
DERIVED = ("images", "steps")  # follow from other settings, and are shown only where these are equal
REQUIRED = ("checkpoint", "data_class", "data_id", "images", "protocol", "reported_on", "rows", "run", "seeds")
COSTS = {"epochs": "epochs", "minutes": "minutes", "views_seen": "views"}
PRETRAINED = "pretrained encoder"  # the features that depend on the seed of the run
HEADS = {"top-1": "top1", "MLP": "mlp", "kNN": "knn"}
TOP1 = next(iter(HEADS))

Report = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One encoder: the runs that differ in their seeds only, or a baseline, which has no seed.

    Attributes:
        run: how it differs from the others of its table.
        features: `raw pixels`, `untrained encoder` (`random encoder` where the run began from weights) or
            `pretrained encoder`.
        folders: of the runs; empty for a baseline.
        seeds: of the runs, "?" where a run does not know its own; empty for a baseline.
        measures: accuracies over seeds: `top-1` of the linear head, and where they were measured `MLP`, `kNN`, and for
            few labels names such as `10 a class, linear`.
        costs: means of epochs, minutes and views seen.
    """

    run: str
    features: str
    folders: list[str]
    seeds: list[int | str]
    measures: dict[str, OverSeeds]
    costs: dict[str, float | None]

    @property
    def name(self) -> str:
        """How it differs from the others, with its folder where it is a single run."""
        if len(self.folders) != 1 or self.run.endswith(f"({self.folders[0]})"):
            return self.run
        return f"{self.run} ({self.folders[0]})"

    @property
    def by_seed(self) -> dict[int, float | None]:
        """The accuracy of the linear head, of the runs that know their seed."""
        values = zip(self.seeds, self.measures[TOP1].values, strict=False)
        return {seed: value for seed, value in values if isinstance(seed, int)}


@dataclass(frozen=True)
class ComparedTable:
    """What can be compared: one protocol, one set of images.

    Attributes:
        title: names both.
        rows: the baselines, then the pretrained encoders.
        differences: of the pretrained encoders, each to the first one above it with which it shares a seed.
        notes: what was not counted, and why.
    """

    title: str
    rows: list[Row]
    differences: list[Difference]
    notes: list[str]

    @property
    def measures(self) -> list[str]:
        """Those that any row has."""
        found = {name for row in self.rows for name in row.measures}
        few_labels = dict.fromkeys(name for row in self.rows for name in row.measures if name not in HEADS)
        return [*(name for name in HEADS if name in found), *few_labels]


def read_reports(runs: Sequence[str]) -> list[Report]:
    """All reports of the runs, each once."""
    found: dict[Path, Report] = {}
    for run in runs:
        if not Path(run).exists():
            raise FileNotFoundError(f"{run} is neither a run nor a report; a study is named with its .yaml")
        paths = sorted(Path(run).glob("probe*.json")) if Path(run).is_dir() else [Path(run)]
        if not paths or not paths[0].is_file():
            raise FileNotFoundError(f"{run} holds no probe.json: run msssl probe --ckpt_path {shlex.quote(run)}")
        for path in paths:
            try:
                content = json.loads(path.read_text())
                _ = [content[name] for name in REQUIRED]
                _ = [(row["features"], row[f"{content['reported_on']}_top1"]) for row in content["rows"]]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} is not a report of msssl probe: {type(error).__name__} {error}") from error
            found[path.resolve()] = {**content, "path": str(path)}
    return list(found.values())


def group(reports: list[Report]) -> list[ComparedTable]:
    """Tables of what can be compared: reports of one protocol, one set of images and one split of it.

    Reports of images that cannot be told apart from others have a table each.
    """
    tables: dict[tuple[str, ...], list[Report]] = {}
    for each in reports:
        # Version 0.1 made the interval over images by a bootstrap; here it is made anew, see `images_interval`.
        protocol = each["protocol"].replace("95 % bootstrap interval", "95 % Wilson interval")
        images = each["data_id"] or f"not identified, of {each['path']}"
        tables.setdefault((each["data_class"], protocol, images, each["reported_on"]), []).append(each)
    return [_table(key, of_table) for key, of_table in tables.items()]


def images_interval(row: dict[str, Any], split: str, head: str = "top1") -> tuple[float, float] | None:
    """95 % interval of an accuracy over the images of a split; None where it is not known.

    Args:
        row: of a report.
        split: of the images.
        head: `top1` (linear), `mlp` or `knn`.
    """
    accuracy = row.get(f"{split}_{head}")
    confusion = row.get(f"{split}_confusion")  # whose sum is the number of labelled images
    if confusion and accuracy is not None:
        n = sum(map(sum, confusion))
        return accuracy_interval(round(accuracy * n), n)
    interval = row.get(f"{split}_interval" if head == "top1" else f"{split}_{head}_interval")
    return None if interval is None else (interval[0], interval[1])


def _table(key: tuple[str, ...], reports: list[Report]) -> ComparedTable:
    data_class, protocol, images, split = key
    folder = Path(reports[0].get("data_dir") or "data").name
    data = data_class if folder == "data" else f"{data_class} {folder}"  # "data" is the default, and says nothing
    measured_on = "cross-validation" if split == "cv" else split
    title = f"{data}, {measured_on}: {reports[0]['images'][split]:,} images; {protocol} (images {images})"
    folders = _folders(reports)
    notes: list[str] = []
    rows = []
    for label, of_label in _labelled(reports).items():
        for suffix, of_row in _without_repetitions(of_label, folders, notes):
            rows.append(_pretrained(f"{label}{suffix}", of_row, folders))
    differences = []
    for i, row in enumerate(rows):
        found = (paired_difference(row.name, row.by_seed, above.name, above.by_seed, ACCURACY) for above in rows[:i])
        differences += [each for each in found if each is not None][:1]
    return ComparedTable(title, [*_baselines(reports, folders), *rows], differences, notes)


def _folders(reports: list[Report]) -> dict[str, str]:
    """Name of each report's run by the path of the report: its folder, or the report where a folder has several."""
    parents = [str(Path(each["path"]).parent) for each in reports]
    return {
        each["path"]: parent if parents.count(parent) == 1 else each["path"]
        for each, parent in zip(reports, parents, strict=True)
    }


def _labelled(reports: list[Report]) -> dict[str, list[Report]]:
    """Reports by the settings in which their runs differ, the seed apart."""
    settings = [_settings(each) for each in reports]
    varying = _varying(settings)
    shown = [name for name in varying if name not in (*METHOD, *DERIVED)]
    labels = [" ".join([_method(of_run), *_described(of_run, shown)]) for of_run in settings]
    found: dict[str, list[Report]] = {}
    for each, of_run, label in zip(reports, settings, labels, strict=True):
        alike = [other for other, its_label in zip(settings, labels, strict=True) if its_label == label]
        derived = [name for name in _varying(alike) if name in DERIVED]
        found.setdefault(" ".join([label, *_described(of_run, derived)]), []).append(each)
    return found


def _varying(settings: list[dict[str, str]]) -> list[str]:
    names = sorted({name for each in settings for name in each})
    return [name for name in names if len({each.get(name, "-") for each in settings}) > 1]


def _described(settings: dict[str, str], names: list[str]) -> list[str]:
    return [f"{name.rpartition('.')[2]}={settings.get(name, '-')}" for name in names]


def _method(settings: dict[str, str]) -> str:
    package, _, method = settings["method"].rpartition(".")
    return method if package.partition(".")[0] == "msssl" else f"{package}.{method}".lstrip(".")


def _without_repetitions(
    reports: list[Report], folders: dict[str, str], notes: list[str]
) -> list[tuple[str, list[Report]]]:
    """Rows of runs with equal settings, in each of which every seed stands once, and what to add to their names.

    A run that repeats another one (same seed, same accuracies) is left out. Where a seed came out differently, the
    runs are no seeds of one row: they are told apart by the versions of the libraries, else by their folders.
    """
    rows: list[dict[Any, Report]] = []
    for each in reports:
        seed = _seed(each)
        others = [row[seed] for row in rows if seed in row]
        same = next((other for other in others if _accuracies(other) == _accuracies(each)), None)
        if same is not None:
            what = "is the same checkpoint as" if same.get("sha256") == each.get("sha256") else "repeats"
            notes.append(
                f"{folders[each['path']]} {what} {folders[same['path']]} (seed {_shown(each)}, equal accuracies): "
                "counted once"
            )
        elif row := next((row for row in rows if seed not in row), None):
            row[seed] = each
        else:
            rows.append({seed: each})
    if len(rows) == 1:
        return [("", list(rows[0].values()))]
    counted = [each for row in rows for each in row.values()]
    of_version: dict[str, list[Report]] = {}
    versions = [{name: str(value) for name, value in each.get("versions", {}).items()} for each in counted]
    for each, its in zip(counted, versions, strict=True):
        suffix = "".join(f" {part}" for part in _described(its, _varying(versions)))
        of_version.setdefault(suffix, []).append(each)
    if len(of_version) > 1:
        return [
            (f"{suffix}{more}", found)
            for suffix, of_suffix in of_version.items()
            for more, found in _without_repetitions(of_suffix, folders, notes)
        ]
    for seed in rows[1]:
        told = ", ".join(
            f"{folders[row[seed]['path']]} {number(_accuracies(row[seed])[0])}" for row in rows if seed in row
        )
        notes.append(f"seed {_shown(rows[1][seed])} came out differently: {told}; not averaged, each has its own row")
    return [(f" ({', '.join(folders[each['path']] for each in row.values())})", list(row.values())) for row in rows]


def _seed(report: Report) -> Any:
    """Of the run; a run that does not know its own is identified by its checkpoint."""
    seed = report["seeds"].get("run")
    return report.get("sha256", report["path"]) if seed is None else seed


def _shown(report: Report) -> int | str:
    seed: int | None = report["seeds"].get("run")
    return "?" if seed is None else seed


def _accuracies(report: Report, features: str = PRETRAINED) -> tuple[Any, ...]:
    row = _row_of(report, features) or {}
    return tuple(row.get(f"{report['reported_on']}_{head}") for head in HEADS.values())


def _row_of(report: Report, features: str) -> dict[str, Any] | None:
    return next((row for row in report["rows"] if row["features"] == features), None)


def _baselines(reports: list[Report], folders: dict[str, str]) -> list[Row]:
    """Raw pixels and other features that no seed of a run changes: each measurement once, whatever runs it is of."""
    found = []
    for features in dict.fromkeys(row["features"] for each in reports for row in each["rows"]):
        if features == PRETRAINED:
            continue
        measured: dict[tuple[Any, ...], list[Report]] = {}
        for each in reports:
            if _row_of(each, features) is not None:
                measured.setdefault(_accuracies(each, features), []).append(each)
        labels = [_shared_settings(of_row, reports) for of_row in measured.values()]
        for label, of_row in zip(labels, measured.values(), strict=True):
            if len(measured) == 1:
                label = "all runs"
            elif not label or labels.count(label) > 1:
                label = ", ".join(folders[each["path"]] for each in of_row)
            rows = [_row_of(each, features) or {} for each in of_row]
            few = {count: heads for row in rows for count, heads in row.get("few_labels", {}).items()}
            measures = _measures([{**rows[0], "few_labels": few}], of_row[0]["reported_on"])
            found.append(Row(label, features, [], [], measures, dict.fromkeys(COSTS)))
    return found


def _shared_settings(some: list[Report], reports: list[Report]) -> str:
    """The settings that some reports share and not all of them."""
    settings = [_settings(each) for each in some]
    varying = _varying([_settings(each) for each in reports])
    shared = [name for name in varying if name not in (*METHOD, *DERIVED) and name not in _varying(settings)]
    methods = {_method(each) for each in settings}
    return " ".join([*(methods if "method" in varying and len(methods) == 1 else ()), *_described(settings[0], shared)])


def _pretrained(label: str, reports: list[Report], folders: dict[str, str]) -> Row:
    reports = sorted(reports, key=lambda each: each["seeds"].get("run") or 0)
    rows = [_row_of(each, PRETRAINED) or {} for each in reports]
    measures = _measures(rows, reports[0]["reported_on"])
    costs = {}
    for name in COSTS:
        values = [each["run"][name] for each in reports if each["run"][name] is not None]
        costs[name] = sum(values) / len(values) if values else None
    its_folders = [folders[each["path"]] for each in reports]
    return Row(label, PRETRAINED, its_folders, [_shown(each) for each in reports], measures, costs)


def _measures(rows: list[dict[str, Any]], split: str) -> dict[str, OverSeeds]:
    """Each accuracy that any of these rows of reports has."""
    found = {}
    for name, head in HEADS.items():
        values = [row.get(f"{split}_{head}") for row in rows]
        if name == TOP1 or any(value is not None for value in values):
            found[name] = over_seeds(values, ACCURACY, images_interval(rows[0], split, head))
    for count in sorted({count for row in rows for count in row.get("few_labels", {})}, key=int):
        for head, name in (("linear", "linear"), ("knn", "kNN")):
            few = [row.get("few_labels", {}).get(count, {}).get(head, {}) for row in rows]
            found[f"{count} a class, {name}"] = over_seeds([each.get("mean") for each in few], ACCURACY)
    return found


def _settings(report: Report) -> dict[str, str]:
    """What made the run, by dotted names, but for its seed and what changes no accuracy."""
    flat = {name: str(report["run"].get(name, "-")) for name in ("epochs", "method", *DERIVED)}
    flat["checkpoint"] = Path(report["checkpoint"]).stem  # such as last and best of one run
    # Where the probed images are those of the pretraining, their fingerprint says what the folder may not.
    ignored = [name for name in IGNORED if name != "data_dir" or not report.get("transfer")]

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{name}.{key}", inner)
        elif name.rpartition(".")[2] not in ignored:
            flat[name] = json.dumps(value) if isinstance(value, list) else str(value)

    add("run", report["run"]["settings"])
    return flat
