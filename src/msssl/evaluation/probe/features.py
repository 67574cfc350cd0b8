"""Frozen features of a data module's images, kept on disk between probes."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msssl.backbones import evaluating
from msssl.data import MultiViewDataModule
from msssl.data.pixels.labels import fingerprint
from msssl.errors import UserError
from msssl.progress import with_bar
from msssl.run.files import read_file, write_file

Encoder = Callable[[Tensor], Tensor]
Split = tuple[Tensor, Tensor]  # features (N, F), labels (N,)
TRAINING = "train and val"  # of features that are joined
log = logging.getLogger(__name__)


@torch.no_grad()
def extract(
    encoder: Encoder,
    data: MultiViewDataModule,
    split: str,
    device: str,
    n_patches: int = 1,
    seed: int = 0,
) -> Split:
    """Features (N, F) and labels (N,) of a split, in order, averaged over the clean image and random views of it.

    Both are on the CPU.

    Args:
        encoder: from normalised images (N, C, H, W) to features (N, F); in eval mode.
        data: set up.
        split: `probe`, `val` or `test`.
        device: of the encoder.
        n_patches: V: the clean image and V - 1 views (Ghosh et al. 2024, section 4: 16).
        seed: of the views, which are the same for every encoder.

    Raises:
        ValueError: features that are not finite.
    """
    preprocess, loader = data.preprocess, data.evaluation_dataloader(split)
    found, labels = torch.empty(0), torch.empty(len(loader.images), dtype=torch.long)
    n, broken = 0, torch.zeros((), dtype=torch.long, device=device)
    for number, batch in enumerate(with_bar(loader, f"Features of {split}", len(loader))):
        images = preprocess.resized(batch["image"].to(device))
        total = encoder(preprocess.evaluate(images)).float()
        with evaluating(data.views):  # which are not compiled then, for a few batches
            for view in _views(data, images, n_patches - 1, (seed, number)):
                total = total + encoder(view)
        total = total / n_patches
        if number == 0:
            found = total.new_empty(len(loader.images), total.shape[1])  # filled in place: a list would take twice this
        found[n : n + len(total)] = total
        labels[n : n + len(total)] = batch["label"]
        n += len(total)
        broken += (~total.isfinite()).any(dim=1).sum()
    if broken:
        raise UserError(f"features of {int(broken)} of {n} images of {split} are not finite: is the run diverged?")
    return found[:n].cpu(), labels[:n]


def joined(features: dict[str, Split], device: torch.device | str | None = None) -> dict[str, Split]:
    """Features of the splits on a device, `probe` and `val` in one tensor, which `training` gives without a copy.

    Args:
        features: of `probe`, and `val` and `test` where there are any; joined already or not.
        device: by default where they are.
    """
    if TRAINING in features:
        return features
    names = [name for name in ("probe", "val") if name in features]
    x, y = features["probe"]
    n_rows = sum(len(features[name][1]) for name in names)
    all_x = torch.empty(n_rows, x.shape[1], dtype=x.dtype, device=device or x.device)
    all_y = torch.empty(n_rows, dtype=y.dtype, device=device or y.device)
    start, found = 0, {TRAINING: (all_x, all_y)}
    for name in names:
        x, y = features[name]
        rows = slice(start, start + len(x))
        all_x[rows], all_y[rows] = x, y
        found[name] = all_x[rows], all_y[rows]
        start += len(x)
    others = {name: (x.to(device), y.to(device)) for name, (x, y) in features.items() if name not in names}
    return found | others


def training(features: dict[str, Split]) -> Split:
    """Features and labels of train and val together, of splits that are `joined`."""
    return features[TRAINING]


def load_or_extract(folder: Path, key: str | None, make: Callable[[], Split]) -> Split:
    """Features from a file of this key, which is written after making them; made anew each time without a key."""
    if key is None:
        return make()
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
    if path.is_file():
        try:
            content = read_file(path)
            return content["features"], content["labels"]
        except (ValueError, KeyError):
            log.warning("%s is damaged: its features are extracted anew", path)
    features, labels = make()
    write_file(path, {"features": features, "labels": labels})
    return features, labels


def content_of(data: MultiViewDataModule, split: str) -> str | None:
    """A name for the images of a split and their order; None where there is no way to tell."""
    part = data.splits[split]
    content = fingerprint(part.dataset)
    return content and hashlib.sha256(content.encode() + part.indices.numpy().tobytes()).hexdigest()


def _views(data: MultiViewDataModule, images: Tensor, n_views: int, key: tuple[int, int]) -> list[Tensor]:
    """Random views (N, C, H, W), as many as asked for; of several sizes, the largest."""
    views: list[Any] = []
    while len(views) < n_views:
        drawn = data.views(images, (*key, len(views)))
        views += list(drawn[0] if isinstance(drawn, list) else drawn)
    return views[:n_views]
