"""Extracts the features of a data module's images with a frozen encoder, and keeps them on disk between probes."""

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
TRAINING = "train and val"  # key of the features of both together, see `joined`
log = logging.getLogger(__name__)


@torch.no_grad()
def extract(
    encoder: Encoder, data: MultiViewDataModule, split: str, device: str, n_patches: int = 1, seed: int = 0
) -> Split:
    """Features (N, F) and labels (N,) of the images of a split, in order, both on the CPU.

    Each feature is the mean over the clean image and `n_patches - 1` random views of it.

    Args:
        encoder: maps normalised images (N, C, H, W) to features (N, F); in evaluation mode.
        data: data module, set up.
        split: `probe`, `val` or `test`.
        device: device of the encoder.
        n_patches: V, the number of views with the clean image (16 in section 4 of Ghosh et al. 2024).
        seed: seed of the random views, which are the same for every encoder.

    Raises:
        ValueError: some features are not finite.
    """
    preprocess, loader = data.preprocess, data.evaluation_dataloader(split)
    features, labels = torch.empty(0), torch.empty(len(loader.images), dtype=torch.long)
    n, broken = 0, torch.zeros((), dtype=torch.long, device=device)
    for number, batch in enumerate(with_bar(loader, f"Features of {split}", len(loader))):
        images = batch["image"].to(device)
        total = encoder(preprocess.evaluate(images)).float()
        with evaluating(data.views):  # which are not compiled then, for a few batches
            for view in _views(data, preprocess.resized(images), n_patches - 1, (seed, number)):
                total = total + encoder(view)
        total = total / n_patches
        if number == 0:
            features = total.new_empty(
                len(loader.images), total.shape[1]
            )  # filled in place: a list would take twice this
        features[n : n + len(total)] = total
        labels[n : n + len(total)] = batch["label"]
        n += len(total)
        broken += (~total.isfinite()).any(dim=1).sum()
    if broken:
        raise UserError(f"features of {int(broken)} of {n} images of {split} are not finite: is the run diverged?")
    return features[:n].cpu(), labels[:n]


def joined(features: dict[str, Split], device: torch.device | str | None = None) -> dict[str, Split]:
    """Move the features of all splits to a device, with those of `probe` and `val` together under the key `TRAINING`.

    `probe` and `val` are then slices of that tensor, so that nothing is held twice.

    Args:
        features: of `probe`, and of `val` and `test` where there are any; returned as they are if joined already.
        device: where they are moved; by default they stay where they are.
    """
    if TRAINING in features:
        return features
    names = [name for name in ("probe", "val") if name in features]
    x, y = features["probe"]
    n_rows = sum(len(features[name][1]) for name in names)
    all_x = torch.empty(n_rows, x.shape[1], dtype=x.dtype, device=device or x.device)
    all_y = torch.empty(n_rows, dtype=y.dtype, device=device or y.device)
    start, slices = 0, {TRAINING: (all_x, all_y)}
    for name in names:
        x, y = features[name]
        rows = slice(start, start + len(x))
        all_x[rows], all_y[rows] = x, y
        slices[name] = all_x[rows], all_y[rows]
        start += len(x)
    return slices | {name: (x.to(device), y.to(device)) for name, (x, y) in features.items() if name not in names}


def load_or_extract(folder: Path, key: str | None, make: Callable[[], Split]) -> Split:
    """Features and labels from the file that belongs to this key, or from `make`, which then writes that file.

    Without a key they are made each time. A damaged file is replaced, with a warning.
    """
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
    """Fingerprint of the images of a split and their order; None where the data set has no fingerprint."""
    indices = data.splits[split].indices
    content = fingerprint(data.splits[split].dataset)
    return content and hashlib.sha256(content.encode() + indices.numpy().tobytes()).hexdigest()


def _views(data: MultiViewDataModule, images: Tensor, n_views: int, key: tuple[int, int]) -> list[Tensor]:
    """`n_views` random views (N, C, H, W); where views have several sizes, of the largest size."""
    views: list[Any] = []
    while len(views) < n_views:
        drawn = data.views(images, (*key, len(views)))
        views += list(drawn[0] if isinstance(drawn, list) else drawn)
    return views[:n_views]
