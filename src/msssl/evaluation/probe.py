"""`msssl probe`: what frozen features are worth, beside raw pixels and the same encoder untrained."""

import hashlib
import json
from pathlib import Path
from typing import Any

import lightning
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import msssl
from msssl.checkpoint import find, read
from msssl.data import MultiViewDataModule
from msssl.data.cache import fingerprint
from msssl.evaluation.features import Encoder, extract
from msssl.evaluation.heads import TEMPERATURE, WEIGHT_DECAYS, K, evaluate
from msssl.modules import MultiViewModule

PIXEL_SIZE = 32
SEED = 0  # of the views that features are averaged over
MEASURES = {
    "dim": "dim",
    "weight_decay": "weight decay",
    "val_top1": "val top-1",
    "test_top1": "test top-1",
    "test_interval": "  95 % interval",
    "test_top5": "test top-5",
    "test_balanced": "test balanced",
    "test_auroc": "test AUROC",
    "test_knn": "test kNN",
    "alpha": "alpha",
}


def probe(ckpt_path: str, test_patches: int = 1) -> None:
    """Report the accuracy of classifiers on a checkpoint's features, on raw pixels and on untrained features.

    Everything comes from the checkpoint, its data included. The report is also written as `probe.json` beside it.

    Args:
        ckpt_path: a checkpoint, the folder of a run, or `last` for the newest run.
        test_patches: V: features are averaged over the clean image and V - 1 random views of it; the paper has 16.
    """
    if test_patches < 1:
        raise ValueError(f"test_patches is {test_patches}: expected the clean image at least, 1")
    path = find(ckpt_path)
    checkpoint = read(path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = MultiViewDataModule.from_checkpoint(checkpoint)
    data.prepare_data()
    data.setup()
    if data.num_classes is None:
        raise ValueError(f"{path} was pretrained on images without labels: there is nothing to probe")
    if not {"val", "test"} & data.splits.keys():
        raise ValueError(f"{path}: its data has neither a test split nor, with val_fraction 0, validation images")
    encoders: dict[str, Encoder] = {
        "raw pixels": _pixels,
        "untrained encoder": _untrained(checkpoint).to(device),
        "pretrained encoder": MultiViewModule.from_checkpoint(checkpoint).eval().to(device),
    }
    splits: list[str] = [name for name in ("probe", "val", "test") if name in data.splits]
    rows = []
    for name, encoder in encoders.items():
        features = {split: extract(encoder, data, split, device, test_patches, SEED) for split in splits}
        rows.append({"features": name, "dim": features["probe"][0].shape[1], **evaluate(features, data.num_classes)})
    report = {
        "checkpoint": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "epoch": checkpoint["epoch"],
        "images": {split: len(data.splits[split]) for split in splits},
        "pretrained_on": None if data.pretrained_on is None else len(data.pretrained_on),
        "data": {name: fingerprint(dataset) for name, dataset in data.datasets.items()},
        "protocol": protocol(splits, test_patches),
        "test_patches": test_patches,
        "seeds": {"split": data.split_seed, "views": SEED},
        "versions": {module.__name__: module.__version__ for module in (msssl, torch, torchvision, lightning)},
        "rows": rows,
    }
    unfinished = path.with_name("probe.json.tmp")
    unfinished.write_text(json.dumps(report, indent=2) + "\n")
    unfinished.replace(path.with_name("probe.json"))
    _print(report)


def protocol(splits: list[str], test_patches: int) -> str:
    """How the accuracies were made, in a sentence."""
    seen = "clean images" if test_patches == 1 else f"mean features of the clean image and {test_patches - 1} views"
    how = f"offline linear probe, {seen}, L-BFGS (200 iterations at most)"
    if "val" in splits:
        how += f", weight decay of {', '.join(map(str, WEIGHT_DECAYS))} chosen on val"
    if "test" in splits:
        how += (", refitted on train + val" if "val" in splits else "") + ", test read once, 95 % bootstrap interval"
        return f"{how}; kNN: k = {K}, T = {TEMPERATURE}"
    return how + "; there is no test split, and val chose the weight decay: read it as an upper bound"


def _pixels(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images, min(images.shape[-1], PIXEL_SIZE)).flatten(1)


def _untrained(checkpoint: dict[str, Any]) -> MultiViewModule:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MultiViewModule.from_hyperparameters(checkpoint).eval()


def _print(report: dict[str, Any]) -> None:
    rows = report["rows"]
    table = Table("", *(row["features"] for row in rows), caption=report["protocol"])
    for key, name in MEASURES.items():
        if any(row.get(key) is not None for row in rows):
            table.add_row(name, *(_cell(key, row.get(key)) for row in rows))
    Console(markup=False).print(table)
    Console(soft_wrap=True, markup=False).print(f"written to {Path(report['checkpoint']).with_name('probe.json')}")


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return " to ".join(f"{end:.3f}" for end in value)
    return f"{value:g}" if key in ("dim", "weight_decay") else f"{value:.3f}"
