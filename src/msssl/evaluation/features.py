"""Frozen features of a data module's images, kept on disk between probes."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msssl.backbones import evaluating
from msssl.checkpoint import read_file, write_file
from msssl.data import MultiViewDataModule
from msssl.data.cache import fingerprint
from msssl.progress import with_bar

Encoder = Callable[[Tensor], Tensor]
Split = tuple[Tensor, Tensor]  # features (N, F), labels (N,)
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
    features, labels = [], []
    preprocess, loader = data.preprocess, data.evaluation_dataloader(split)
    for number, batch in enumerate(with_bar(loader, f"Features of {split}", len(loader))):
        images = preprocess.resized(batch["image"].to(device))
        total = encoder(preprocess.evaluate(images)).float()
        with evaluating(data.views):  # which are not compiled then, for a few batches
            for view in _views(data, images, n_patches - 1, (seed, number)):
                total = total + encoder(view)
        features.append(total / n_patches)
        labels.append(batch["label"].to(device))
    found = torch.cat(features)
    broken = int((~found.isfinite()).any(dim=1).sum())
    if broken:
        raise ValueError(f"features of {broken} of {len(found)} images of {split} are not finite: is the run diverged?")
    return found, torch.cat(labels)


def stored(folder: Path, key: str | None, device: str, make: Callable[[], Split]) -> Split:
    """Features from a file of this key, which is written after making them; made anew each time without a key."""
    if key is None:
        return make()
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
    if path.is_file():
        try:
            content = read_file(path)
            return content["features"].to(device), content["labels"].to(device)
        except (ValueError, KeyError):
            log.warning("%s is damaged: its features are extracted anew", path)
    features, labels = make()
    write_file(path, {"features": features.cpu(), "labels": labels.cpu()})
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
