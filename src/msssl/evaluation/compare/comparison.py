"""Groups the reports of `msssl probe` into tables: a row for each encoder, and only rows that can be compared."""

import json
import shlex
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msssl.errors import UserError
from msssl.evaluation.compare.over_seeds import ACCURACY, Difference, OverSeeds, over_seeds, paired_difference
from msssl.evaluation.table import number
from msssl.metrics import accuracy_interval

# Settings that change no accuracy:
IGNORED = ("data_dir", "cache_dir", "num_workers", "storage", "on_error", "_instantiator")
METHOD = ("method", "run.model._class_path")  # begin each label, so that they are not listed among the settings
DERIVED = ("images", "steps")  # follow from other settings, and are shown only where these are equal
REQUIRED = ("checkpoint", "data_class", "data_id", "images", "protocol", "reported_on", "rows", "run", "seeds")
COSTS = {"epochs": "epochs", "minutes": "minutes", "views_seen": "views"}
PRETRAINED = "pretrained encoder"  # the features that depend on the seed of the run
HEADS = {"top-1": "top1", "MLP": "mlp", "kNN": "knn"}
TOP1 = next(iter(HEADS))

Report = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A row of a table: runs that differ only in their seed, or a baseline, which has no seed.

    Attributes:
        run: the settings in which these runs differ from the other rows of the table.
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
        """The settings of `run`; for a single run also its folder."""
        if len(self.folders) != 1 or self.run.endswith(f"({self.folders[0]})"):
            return self.run
        return f"{self.run} ({self.folders[0]})"

    @property
    def by_seed(self) -> dict[int, float | None]:
        """Top-1 accuracy of the linear head by seed, for the runs whose seed is known."""
        values = zip(self.seeds, self.measures[TOP1].values, strict=False)
        return {seed: value for seed, value in values if isinstance(seed, int)}


@dataclass(frozen=True)
class ComparedTable:
    """Rows that can be compared: their accuracies have the same protocol and are of the same images.

    Attributes:
        title: names the images and the protocol.
        rows: the baselines, then the pretrained encoders.
        differences: each pretrained encoder minus the first one above it that shares a seed with it.
        notes: which reports were not counted, and why.
    """

    title: str
    rows: list[Row]
    differences: list[Difference]
    notes: list[str]

    @property
    def measures(self) -> list[str]:
        """Names of the accuracies that at least one row has, those of all labels first."""
        names = dict.fromkeys(name for row in self.rows for name in row.measures)
        return [*(name for name in HEADS if name in names), *(name for name in names if name not in HEADS)]


@dataclass(frozen=True)
class _Probed:
    """A report, with what is needed to compare it with the other reports of its table.

    Attributes:
        report: its content.
        folder: name of the run: its folder, or the path of the report where a folder has several.
        settings: what made the run, by dotted names.
    """

    report: Report
    folder: str
    settings: dict[str, str]

    @property
    def seed(self) -> int | None:
        """The seed of the run, where the run knows it."""
        seed: int | None = self.report["seeds"].get("run")
        return seed

    @property
    def shown_seed(self) -> int | str:
        """The seed of the run as a table shows it."""
        return "?" if self.seed is None else self.seed

    @property
    def method(self) -> str:
        """Name of the method's class, with its package where that is not msssl."""
        package, _, method = self.settings["method"].rpartition(".")
        return method if package.partition(".")[0] == "msssl" else f"{package}.{method}".lstrip(".")

    def row_of(self, features: str) -> dict[str, Any] | None:
        """The report's row for these features, such as `raw pixels`; None if it has none."""
        return next((row for row in self.report["rows"] if row["features"] == features), None)

    def accuracies(self, features: str = PRETRAINED) -> tuple[Any, ...]:
        """The accuracies of all heads on these features."""
        row = self.row_of(features) or {}
        return tuple(row.get(f"{self.report['reported_on']}_{head}") for head in HEADS.values())


def read_reports(runs: Sequence[str]) -> list[Report]:
    """The reports of these runs; a report that is named twice is read once.

    Args:
        runs: folders of runs, of which all reports are read, or reports.

    Raises:
        FileNotFoundError: a path does not exist, or a folder has no report.
        ValueError: a file is not a report of `msssl probe`.
    """
    reports: dict[Path, Report] = {}
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
            reports[path.resolve()] = {**content, "path": str(path)}
    return list(reports.values())


def group(reports: list[Report]) -> list[ComparedTable]:
    """Tables of reports that can be compared: they have one protocol, one set of images and one split of it.

    A report whose images have no fingerprint cannot be compared with others, and has a table of its own.
    """
    keys = []
    for report in reports:
        # Version 0.1 made the interval over images by a bootstrap; here it is made anew, see `images_interval`.
        protocol = report["protocol"].replace("95 % bootstrap interval", "95 % Wilson interval")
        images = report["data_id"] or f"not identified, of {report['path']}"
        keys.append((report["data_class"], protocol, images, report["reported_on"]))
    return [_table(key, of_table) for key, of_table in _grouped(reports, keys).items()]


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


def _grouped(items: Iterable[Any], keys: Iterable[Hashable]) -> dict[Any, list[Any]]:
    """Lists of the items that have equal keys, in the order in which the keys first occur."""
    groups: dict[Any, list[Any]] = {}
    for item, key in zip(items, keys, strict=True):
        groups.setdefault(key, []).append(item)
    return groups


def _table(key: tuple[str, ...], reports: list[Report]) -> ComparedTable:
    data_class, protocol, images, split = key
    data_dir = Path(reports[0].get("data_dir") or "data").name
    data = data_class if data_dir == "data" else f"{data_class} {data_dir}"  # "data" is the default, and says nothing
    measured_on = "cross-validation" if split == "cv" else split
    title = f"{data}, {measured_on}: {reports[0]['images'][split]:,} images; {protocol} (images {images})"
    parents = [str(Path(report["path"]).parent) for report in reports]
    probed = [
        _Probed(report, parent if parents.count(parent) == 1 else report["path"], _settings(report))
        for report, parent in zip(reports, parents, strict=True)
    ]
    notes: list[str] = []
    rows = [
        _pretrained(f"{label}{suffix}", of_row)
        for label, of_label in _by_settings(probed).items()
        for suffix, of_row in _without_repetitions(of_label, notes)
    ]
    differences: list[Difference] = []
    for i, row in enumerate(rows):
        to_rows = (paired_difference(row.name, row.by_seed, above.name, above.by_seed, ACCURACY) for above in rows[:i])
        differences += [difference for difference in to_rows if difference is not None][:1]
    return ComparedTable(title, [*_baselines(probed), *rows], differences, notes)


def _by_settings(reports: list[_Probed]) -> dict[str, list[_Probed]]:
    """Reports by the settings in which their runs differ, apart from the seed."""
    names = [name for name in _varying(report.settings for report in reports) if name not in (*METHOD, *DERIVED)]
    labels = [" ".join([report.method, *_described(report.settings, names)]) for report in reports]
    derived = {
        label: [name for name in _varying(report.settings for report in alike) if name in DERIVED]
        for label, alike in _grouped(reports, labels).items()
    }
    longer = (
        " ".join([label, *_described(report.settings, derived[label])])
        for report, label in zip(reports, labels, strict=True)
    )
    return _grouped(reports, longer)


def _varying(settings: Iterable[dict[str, str]]) -> list[str]:
    """Names of the settings that differ."""
    settings = list(settings)
    names = sorted({name for of_run in settings for name in of_run})
    return [name for name in names if len({of_run.get(name, "-") for of_run in settings}) > 1]


def _described(settings: dict[str, str], names: list[str]) -> list[str]:
    return [f"{name.rpartition('.')[2]}={settings.get(name, '-')}" for name in names]


def _without_repetitions(reports: list[_Probed], notes: list[str]) -> list[tuple[str, list[_Probed]]]:
    """Rows of runs with equal settings, in each of which a seed occurs once, and what to add to their names.

    A run that repeats another one (same seed, same accuracies) is left out, with a note. Where runs of one seed have
    different accuracies, something else than the seed differs: the rows are split by the versions of the libraries,
    or else by their folders.
    """
    rows: list[dict[Any, _Probed]] = []
    for report in reports:
        content = report.report
        seed = content.get("sha256", content["path"]) if report.seed is None else report.seed
        with_seed = (row[seed] for row in rows if seed in row)
        same = next((earlier for earlier in with_seed if earlier.accuracies() == report.accuracies()), None)
        if same is not None:
            what = "is the same checkpoint as" if same.report.get("sha256") == content.get("sha256") else "repeats"
            notes.append(
                f"{report.folder} {what} {same.folder} (seed {report.shown_seed}, equal accuracies): counted once"
            )
        elif row := next((row for row in rows if seed not in row), None):
            row[seed] = report
        else:
            rows.append({seed: report})
    if len(rows) == 1:
        return [("", list(rows[0].values()))]
    counted = [report for row in rows for report in row.values()]
    versions = [{name: str(value) for name, value in report.report.get("versions", {}).items()} for report in counted]
    suffixes = ["".join(f" {part}" for part in _described(of_run, _varying(versions))) for of_run in versions]
    by_version = _grouped(counted, suffixes)
    if len(by_version) > 1:
        return [
            (f"{suffix}{more}", of_row)
            for suffix, of_version in by_version.items()
            for more, of_row in _without_repetitions(of_version, notes)
        ]
    for seed, report in rows[1].items():
        of_seed = [row[seed] for row in rows if seed in row]
        listed = ", ".join(f"{other.folder} {number(other.accuracies()[0])}" for other in of_seed)
        notes.append(f"seed {report.shown_seed} came out differently: {listed}; not averaged, each has its own row")
    return [(f" ({', '.join(report.folder for report in row.values())})", list(row.values())) for row in rows]


def _baselines(reports: list[_Probed]) -> list[Row]:
    """Rows of raw pixels and random encoders, which no seed of a run changes; runs that agree on one share its row."""
    baselines = []
    for features in dict.fromkeys(row["features"] for report in reports for row in report.report["rows"]):
        if features == PRETRAINED:
            continue
        with_row = [report for report in reports if report.row_of(features) is not None]
        groups = list(_grouped(with_row, (report.accuracies(features) for report in with_row)).values())
        labels = [_shared_settings(of_row, reports) for of_row in groups]
        for label, of_row in zip(labels, groups, strict=True):
            if len(groups) == 1:
                label = "all runs"
            elif not label or labels.count(label) > 1:
                label = ", ".join(report.folder for report in of_row)
            rows = [report.row_of(features) or {} for report in of_row]
            few = {count: heads for row in rows for count, heads in row.get("few_labels", {}).items()}
            measures = _measures([{**rows[0], "few_labels": few}], of_row[0].report["reported_on"])
            baselines.append(Row(label, features, [], [], measures, dict.fromkeys(COSTS)))
    return baselines


def _shared_settings(some: list[_Probed], reports: list[_Probed]) -> str:
    """The settings in which some reports agree, and which differ among all reports."""
    varying = _varying(report.settings for report in reports)
    differ = (*METHOD, *DERIVED, *_varying(report.settings for report in some))
    methods = {report.method for report in some} if "method" in varying else set()
    shared = _described(some[0].settings, [name for name in varying if name not in differ])
    return " ".join([*(methods if len(methods) == 1 else ()), *shared])


def _pretrained(label: str, reports: list[_Probed]) -> Row:
    reports = sorted(reports, key=lambda report: report.seed or 0)
    rows = [report.row_of(PRETRAINED) or {} for report in reports]
    measures = _measures(rows, reports[0].report["reported_on"])
    costs: dict[str, float | None] = {}
    for name in COSTS:
        values = [value for report in reports if (value := report.report["run"][name]) is not None]
        costs[name] = sum(values) / len(values) if values else None
    folders, seeds = [report.folder for report in reports], [report.shown_seed for report in reports]
    return Row(label, PRETRAINED, folders, seeds, measures, costs)


def _measures(rows: list[dict[str, Any]], split: str) -> dict[str, OverSeeds]:
    """Each accuracy that at least one of these rows of reports has."""
    measures = {}
    for name, head in HEADS.items():
        values = [row.get(f"{split}_{head}") for row in rows]
        if name == TOP1 or any(value is not None for value in values):
            measures[name] = over_seeds(values, ACCURACY, images_interval(rows[0], split, head))
    for count in sorted({count for row in rows for count in row.get("few_labels", {})}, key=int):
        for head, name in (("linear", "linear"), ("knn", "kNN")):
            means = [row.get("few_labels", {}).get(count, {}).get(head, {}).get("mean") for row in rows]
            measures[f"{count} a class, {name}"] = over_seeds(means, ACCURACY)
    return measures


def _settings(report: Report) -> dict[str, str]:
    """The settings of a run by dotted names, without its seed and without what changes no accuracy."""
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
