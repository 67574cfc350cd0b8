"""Frozen features of a data module's images."""

from collections.abc import Callable

import torch
from torch import Tensor

from msssl.data import MultiViewDataModule
from msssl.progress import with_bar

Encoder = Callable[[Tensor], Tensor]
Split = tuple[Tensor, Tensor]  # features (N, F), labels (N,)


@torch.no_grad()
def extract(
    encoder: Encoder, data: MultiViewDataModule, split: str, device: str, n_patches: int = 1, seed: int = 0
) -> Split:
    """Features (N, F) and labels (N,) of a split, in order, averaged over the clean image and random views of it.

    Args:
        encoder: from normalised images (N, C, H, W) to features (N, F); in eval mode.
        data: set up.
        split: `probe`, `val` or `test`.
        device: of the encoder.
        n_patches: V: the clean image and V - 1 views (Ghosh et al. 2024, section 4: 16).
        seed: of the views, which are the same for every encoder.
    """
    features, labels = [], []
    loader = data.evaluation_dataloader(split)
    for number, batch in enumerate(with_bar(loader, f"Features of {split}", len(loader))):
        images = batch["image"].to(device)
        total = encoder(data.views.evaluate(images)).float()
        for view in _views(data, images, n_patches - 1, (seed, number)):
            total = total + encoder(view)
        features.append(total / n_patches)
        labels.append(batch["label"].to(device))
    return torch.cat(features), torch.cat(labels)


def _views(data: MultiViewDataModule, images: Tensor, n_views: int, key: tuple[int, int]) -> list[Tensor]:
    """Random views (N, C, H, W), as many as asked for; of several sizes, the largest."""
    views: list[Tensor] = []
    while len(views) < n_views:
        drawn = data.views(images, (*key, len(views)))
        views += list(drawn[0] if isinstance(drawn, list) else drawn)
    return views[:n_views]
