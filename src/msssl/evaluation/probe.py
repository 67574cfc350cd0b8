"""`msssl probe`: what frozen features are worth, beside raw pixels and the same encoder untrained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from msssl.checkpoint import find, read
from msssl.data import MultiViewDataModule
from msssl.metrics import linear_probe
from msssl.modules import MultiViewModule
from msssl.progress import with_bar

WEIGHT_DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
PIXEL_SIZE = 32
Encoder = Callable[[Tensor], Tensor]
Split = tuple[Tensor, Tensor]  # features (N, F), labels (N,)


def probe(ckpt_path: str) -> None:
    """Report the accuracy of linear classifiers on a checkpoint's features, on raw pixels and on untrained features.

    Everything comes from the checkpoint, its data included. The table is also written as `probe.json` beside it.

    Args:
        ckpt_path: a checkpoint, the folder of a run, or `last` for the newest run.
    """
    path = find(ckpt_path)
    checkpoint = read(path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = MultiViewDataModule.load_from_checkpoint(path)
    data.prepare_data()
    data.setup()
    if data.num_classes is None:
        raise ValueError(f"{path} was pretrained on images without labels: there is nothing to probe")
    encoders: dict[str, Encoder] = {
        "raw pixels": _pixels,
        "untrained encoder": _untrained(checkpoint).to(device),
        "pretrained encoder": MultiViewModule.load_from_checkpoint(path).eval().to(device),
    }
    if not {"val", "test"} & data.splits.keys():
        raise ValueError(f"{path}: its data has neither a test split nor, with val_fraction 0, validation images")
    splits: list[str] = [name for name in ("probe", "val", "test") if name in data.splits]
    rows = []
    for name, encoder in with_bar(encoders.items(), "Linear probes"):
        features: dict[str, Split] = {split: extract(encoder, data, split, device) for split in splits}
        rows.append({"features": name, "dim": features["probe"][0].shape[1], **evaluate(features, data.num_classes)})
    report = {
        "checkpoint": str(path),
        "epoch": checkpoint["epoch"],
        "images": {split: len(data.splits[split]) for split in splits},
        "pretrained_on": None if data.pretrained_on is None else len(data.pretrained_on),
        "protocol": protocol(splits),
        "rows": rows,
    }
    path.with_name("probe.json").write_text(json.dumps(report, indent=2) + "\n")
    _print(report)


@torch.no_grad()
def extract(encoder: Encoder, data: MultiViewDataModule, split: str, device: str) -> Split:
    """Features (N, F) and labels (N,) of a split's clean images, in order."""
    features, labels = [], []
    for batch in data.evaluation_dataloader(split):
        images = data.views.evaluate(batch["image"].to(device))
        features.append(encoder(images))
        labels.append(batch["label"].to(device))
    return torch.cat(features), torch.cat(labels)


def evaluate(features: dict[str, Split], num_classes: int) -> dict[str, Any]:
    """Accuracies in [0, 1] of the head whose weight decay is best on `val`, refitted on train and val for `test`.

    Without `val` nothing is chosen; without `test` the accuracy is that on `val`.
    """
    chosen, val = 1e-2, None
    if "val" in features:
        scores = {}
        for weight_decay in WEIGHT_DECAYS:
            head = linear_probe(*features["probe"], num_classes=num_classes, weight_decay=weight_decay)
            scores[weight_decay] = _accuracy(head, features["val"])
        chosen, val = max(scores.items(), key=lambda item: item[1])
    result: dict[str, Any] = {"weight_decay": chosen, "val_top1": val}
    if "test" in features:
        fitted = [features[split] for split in ("probe", "val") if split in features]
        together = [torch.cat(parts) for parts in zip(*fitted, strict=True)]
        head = linear_probe(together[0], together[1], num_classes=num_classes, weight_decay=chosen)
        result["test_top1"] = _accuracy(head, features["test"])
    return result


def protocol(splits: list[str]) -> str:
    """How the accuracies were made, in a sentence."""
    how = "offline linear probe, clean images, L-BFGS (200 iterations at most)"
    if "val" in splits:
        how += f", weight decay of {', '.join(map(str, WEIGHT_DECAYS))} chosen on val"
    if "test" in splits:
        return how + (", refitted on train + val" if "val" in splits else "") + ", test read once"
    return how + "; there is no test split, and val chose the weight decay: read it as an upper bound"


def _accuracy(head: torch.nn.Linear, split: Split) -> float:
    features, labels = split
    labelled = labels >= 0
    return float((head(features[labelled]).argmax(dim=1) == labels[labelled]).float().mean())


def _pixels(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images, min(images.shape[-1], PIXEL_SIZE)).flatten(1)


def _untrained(checkpoint: dict[str, Any]) -> MultiViewModule:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MultiViewModule.from_hyperparameters(checkpoint).eval()


def _print(report: dict[str, Any]) -> None:
    table = Table("features", "dim", "weight decay", "val top-1", "test top-1", caption=report["protocol"])
    for row in report["rows"]:
        scores = [f"{row[key]:.3f}" if row.get(key) is not None else "-" for key in ("val_top1", "test_top1")]
        table.add_row(row["features"], str(row["dim"]), f"{row['weight_decay']:g}", *scores)
    Console(markup=False).print(table)
    Console(soft_wrap=True, markup=False).print(f"written to {Path(report['checkpoint']).with_name('probe.json')}")
