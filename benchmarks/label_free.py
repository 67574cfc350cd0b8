"""Do scores without labels follow accuracy? Rank correlations over runs that were probed.

    python benchmarks/label_free.py 'runs/*' benchmarks/results/label-free

Each run's folder must hold the report of `msssl probe` on its last checkpoint. RankMe and LiDAR are of the embeddings
z, alpha-ReQ and CLID of the features, all on validation images; LiDAR sees 10 views of 500 of them, by the run's own
recipe. The loss is the last `train/loss` that was logged. Accuracies are of the linear head on test images; alpha is
compared by its distance to 1, and both parts of CLID are standardised over the runs.
"""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from matplotlib.figure import Figure
from scipy.stats import spearmanr, zscore

from msssl.evaluation import rebuild
from msssl.evaluation.probe.subject import open_subject
from msssl.metrics import alpha_req, clid, lidar, rankme

N_VIEWS, N_IMAGES = 10, 500
SCORES = ("RankMe", "alpha", "LiDAR", "learnability", "dimension", "CLID", "minus the loss")


@torch.no_grad()
def scores(checkpoint: Path) -> dict[str, Any]:
    """All scores of a checkpoint, and its accuracy."""
    subject = open_subject(str(checkpoint))
    module, data = subject.module, subject.data
    views = rebuild.views_of(subject.path, subject.checkpoint, data.preprocess)
    features, embeddings, n_seen = [], [], 0
    for number, batch in enumerate(data.evaluation_dataloader("val")):
        images = data.preprocess.resized(batch["image"])
        features.append(module(data.preprocess.evaluate(images)))
        if n_seen < N_IMAGES:
            made = [
                view for key in range(math.ceil(N_VIEWS / views.n_views)) for view in views(images, (0, number, key))
            ]
            embeddings.append(torch.stack([module.projector(module(view)) for view in made[:N_VIEWS]]))
            n_seen += len(images)
    x = torch.cat(features)
    parts = clid(x)
    report = json.loads((checkpoint.parent / "probe.json").read_text())
    with (checkpoint.parent / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
    return {
        "RankMe": float(rankme(module.projector(x))),
        "alpha": float(alpha_req(x)),
        "LiDAR": float(lidar(torch.cat(embeddings, dim=1)[:, :N_IMAGES])),
        **parts._asdict(),
        "minus the loss": -losses[-1],
        "accuracy": report["rows"][-1]["test_top1"],
        "method": report["run"]["method"],
    }


def correlations(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Spearman's correlation of each score with accuracy, and its p value; alpha is compared by its distance to 1."""
    accuracy = np.array([row["accuracy"] for row in rows])
    values = {name: np.array([row[name] for row in rows]) for name in SCORES if name != "CLID"}
    values["alpha"] = -np.abs(values["alpha"] - 1)
    values["CLID"] = zscore(values["learnability"]) + zscore(values["dimension"])
    return {name: tuple(map(float, spearmanr(values[name], accuracy))) for name in SCORES}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel for each score: accuracy against it, a colour for each study (the folder of a run's cell)."""
    shown = [name for name in SCORES if name != "CLID"]
    figure = Figure(figsize=(9.6, 5.2), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True).flatten()
    studies = sorted({Path(row["run"]).parts[-3] for row in rows})
    for axes, name in zip(panels, shown, strict=True):
        for study in studies:
            of_study = [row for row in rows if Path(row["run"]).parts[-3] == study]
            axes.scatter([row[name] for row in of_study], [row["accuracy"] for row in of_study], s=14, label=study)
        axes.set_xlabel(name)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test top-1")
    panels[3].set_ylabel("test top-1")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main(runs: str, out: str) -> None:
    """Measure runs, and write a table of them and one of the correlations.

    Args:
        runs: pattern of the folders of runs, such as 'runs/*'.
        out: name of the files to write, without their ending.
    """
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for run in sorted(Path().glob(runs)):
        if (run / "probe.json").is_file():
            rows.append({"run": str(run), **scores(run / "last.ckpt")})
            print(rows[-1], flush=True)  # noqa: T201
    with Path(f"{out}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, Path(f"{out}.svg"))
    about = (__doc__ or "").partition("\n\n")[2].strip()
    lines = [f"# Scores without labels against accuracy, {len(rows)} runs", "", about, ""]
    groups = {"all": rows}
    for row in rows:
        groups.setdefault(Path(row["run"]).parts[-3], []).append(row)
    groups = {name: group for name, group in groups.items() if len(group) > 3}
    lines += ["Spearman's correlation with test top-1, by study (the number of runs):", ""]
    lines += [f"| score | {' | '.join(f'{name} ({len(group)})' for name, group in groups.items())} |"]
    lines += ["|---" * (1 + len(groups)) + "|"]
    found = {name: correlations(group) for name, group in groups.items()}
    lines += [f"| {score} | {' | '.join(f'{found[name][score][0]:+.2f}' for name in groups)} |" for score in SCORES]
    Path(f"{out}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    auto_cli(main)
