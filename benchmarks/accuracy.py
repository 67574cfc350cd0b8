"""Accuracy per minute: runs with 2, 4 and 8 views that see equally many views, probed and side by side.

    python benchmarks/accuracy.py                                           # the demonstration: 12 minutes on 2 cores
    python benchmarks/accuracy.py --fit_config cifar.yaml --seeds [0,1,2]   # CIFAR-10, as Table 3 of Ghosh et al. 2024
    python benchmarks/accuracy.py --flags='[--trainer.max_epochs=3,--data.batch_size=32]'

The fewest views see all pretraining images; more of them see a share, at equal epochs, as in the paper, or with
`--share false` all images for a share of the epochs. The online probe learns from the labels of these images alone, the
offline ones from all. What is finished is not run again, and what was stopped goes on.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jsonargparse import auto_cli
from machine import machine
from matplotlib.figure import Figure

from msssl.evaluation.compare.over_seeds import ACCURACY, over_seeds
from msssl.studies.measures import ONLINE, curve_of

PATCHES = 16
ACCURACIES = ("online, val", "linear", f"linear, {PATCHES} patches", "kNN")
COLUMNS = {"K": "g", "fraction": ".3g", "epochs": "g", "images": ",.0f", "views": ",.0f", "minutes": ".2f"}
COLUMNS |= {**dict.fromkeys(ACCURACIES, ".3f"), "min to reach": ".2f"}


def main(
    fit_config: str = "demo.yaml",
    n_views: Sequence[int] = (2, 4, 8),
    seeds: Sequence[int] = (0,),
    reach: float = 0.8,
    share: bool = True,
    root: str = "runs/accuracy",
    flags: Sequence[str] = (),
    out: str = "benchmarks/results/accuracy",
) -> None:
    """Train and probe what is missing, and write `<out>-<device>.md`, `.json` and `.png`.

    Args:
        fit_config: of `msssl fit`.
        n_views: the numbers of views K.
        seeds: of the runs with each of them.
        reach: accuracy of the online probe whose time is told.
        share: whether more views see a share of the images, or else all of them for a share of the epochs.
        root: folder of the runs.
        flags: for `msssl fit`, as they are.
        out: of the files, without device and ending.
    """
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        epochs = 0  # of the fewest views, once they were run
        for K in sorted(n_views):
            fraction = min(n_views) / K if share else 1.0
            fewer = ["--data.fraction", str(fraction)] if share else fewer_epochs(epochs, K, n_views)
            args = [f"--config={fit_config}", *flags, f"--data.views.n_views={K}", f"--seed_everything={seed}", *fewer]
            folder = trained(args, Path(root), f"{Path(fit_config).stem}-K{K}-seed{seed}")
            runs.append({"K": K, "seed": seed, "fraction": fraction, **read(folder, reach)})
            epochs = epochs or runs[-1]["epochs"]
    settings = yaml.safe_load(Path(runs[0]["folder"], "config.yaml").read_text())
    device = "cuda" if torch.cuda.is_available() and settings["trainer"]["accelerator"] != "cpu" else "cpu"
    header = [*(name.replace("reach", f"{100 * reach:g} %") for name in COLUMNS), "seeds"]
    rows = [cells([run for run in runs if run["K"] == K]) for K in sorted(n_views)]
    lines = ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)]
    about = f"`{' '.join([fit_config, *flags])}`: {protocol(settings, runs[0], device)}"
    print(*lines, "", about, sep="\n")  # noqa: T201
    path = Path(f"{out}-{device}.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, "", about]) + "\n")
    path.with_suffix(".json").write_text(json.dumps({"about": about, "runs": runs}, indent=1) + "\n")
    draw(runs, path.with_suffix(".png"))


def fewer_epochs(epochs: int, K: int, n_views: Sequence[int]) -> list[str]:
    """The flag for as many views as the fewest see in their epochs; none for these themselves."""
    if any(epochs * min(n_views) % each for each in n_views):
        raise ValueError(f"{epochs} epochs with {min(n_views)} views are no whole number with all of {n_views}")
    return ["--trainer.max_epochs", str(epochs * min(n_views) // K)] if epochs else []


def trained(args: list[str], root: Path, name: str) -> Path:
    """Folder of the run of these arguments, trained and probed."""
    parent = root / f"{name}-{hashlib.sha256(' '.join(args).encode()).hexdigest()[:6]}"
    probed = f"*/probe-{PATCHES}-patches.json"
    if not any(parent.glob(probed)):
        stopped = sorted(parent.glob("*/last.ckpt"))
        msssl("fit", *(["--ckpt_path", stopped[-1]] if stopped else [*args, "--trainer.default_root_dir", parent]))
        checkpoint = max(parent.glob("*/last.ckpt"))
        msssl("probe", "--ckpt_path", checkpoint)
        msssl("probe", "--ckpt_path", checkpoint, "--test_patches", PATCHES)
    return next(parent.glob(probed)).parent


def msssl(*args: Any) -> None:
    """Run a command line; stop if it fails."""
    subprocess.run([sys.executable, "-m", "msssl", *map(str, args)], check=True)


def read(folder: Path, reach: float) -> dict[str, Any]:
    """What a run cost and what came out."""
    one, many = (json.loads((folder / f"probe{kind}.json").read_text()) for kind in ("", f"-{PATCHES}-patches"))
    linear, averaged = one["rows"][-1], many["rows"][-1]  # of the pretrained encoder
    split, cost = one["reported_on"], one["run"]
    curve = [(point["minutes"], point[ONLINE]) for point in curve_of(folder)]
    found = (curve[-1][1], linear[f"{split}_top1"], averaged[f"{split}_top1"], linear[f"{split}_knn"])
    return {
        "epochs": cost["epochs"],
        "images": cost["images"],
        "views": cost["views_seen"],
        "minutes": cost["minutes"],  # of the Timer in the checkpoint
        **dict(zip(ACCURACIES, found, strict=True)),
        "min to reach": next((minutes for minutes, accuracy in curve if accuracy >= reach), None),
        "curve": curve,
        "folder": str(folder),
    }


def cells(runs: list[dict[str, Any]]) -> list[str]:
    """Of runs that differ in their seed: means, and of accuracies the interval, or below 4 seeds the values."""
    row = []
    for name, digits in COLUMNS.items():
        found = over_seeds([run[name] for run in runs], ACCURACY if name in ACCURACIES else (0.0, inf))
        told = "-" if found.mean is None else format(found.mean, digits)
        spread = found.spread() if name in ACCURACIES else "-"
        row.append(told if spread == "-" else f"{told} ({spread})")
    return [*row, " ".join(str(run["seed"]) for run in runs)]


def protocol(settings: dict[str, Any], run: dict[str, Any], device: str) -> str:
    """How the table was made, by the config in the folder of a run and its report."""
    report = json.loads(Path(run["folder"], "probe.json").read_text())
    model, data = (settings[name]["init_args"] for name in ("model", "data"))
    parts = [settings["model"], model["backbone"], model.get("optimizer")]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        f"{named(settings['data'])} (copy {report['data_id']}), {', '.join(map(named, parts))}, "
        f"D = {model['proj_dim']}, N = {data['batch_size']}, precision {settings['trainer']['precision'] or 32}; "
        f"{machine(device, torch.get_num_threads())}; {versions}; {date.today()}; `benchmarks/accuracy.py`. Minutes: "
        "training and its validations. Online: the probe that learns along, on validation images, at the last epoch, "
        "and when it first reached the accuracy, if with all seeds. The other accuracies are on "
        f"{report['images'][report['reported_on']]:,} images of {report['reported_on']}, and nothing here was chosen "
        f"by them: {report['protocol']}; and the linear one on "
        f"mean features of the clean image and {PATCHES - 1} views."
    )


def named(part: Any) -> str:
    """A class of the config, and its arguments that matter most."""
    if not isinstance(part, dict):
        return str(part)
    wanted = ("depth", "width", "low_resolution", "lr", "weight_decay")
    told = [f"{name}={value}" for name, value in part.get("init_args", {}).items() if name in wanted]
    return str(part["class_path"]).rpartition(".")[2] + (f"({', '.join(told)})" if told else "")


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Accuracy of the online probe against minutes, one line for each K, means over seeds."""
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for K in sorted({run["K"] for run in runs}):
        minutes, accuracy = np.mean([run["curve"] for run in runs if run["K"] == K], axis=0).T
        axes.plot(minutes, accuracy, marker=".", label=f"K = {K}")
    axes.set(xlabel="minutes of training", ylabel="top-1 of the online probe on validation images")
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    auto_cli(main)
