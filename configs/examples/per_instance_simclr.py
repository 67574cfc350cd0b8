"""SimCLR without other images: positives and negatives are made from the same one (Bordes et al. 2023).

Two versions of a crop, with different colours, are positives; the other crops of the image are the negatives.
Put this file and per_instance_simclr.yaml into the folder that you run from:

    msssl fit --config cifar.yaml --config per_instance_simclr.yaml
"""

from typing import Any

import torch
from kornia.augmentation import RandomResizedCrop
from torch import Tensor, nn
from torch.nn import functional as F

from msssl import MultiViewModule


class SharedCrop(nn.Module):
    """A random crop for views 1 to K/2, and the same ones for views K/2 + 1 to K.

    Args:
        size: side of the crops, in pixels.
        scale: smallest and largest area, as a fraction of the image's.
    """

    def __init__(self, size: int = 32, scale: tuple[float, float] = (0.2, 0.5)) -> None:
        super().__init__()
        self.crop = RandomResizedCrop((size, size), scale=scale, cropping_mode="resample")

    def forward(self, views: Tensor) -> Tensor:
        """Views (K * N, C, H, W), view-major."""
        return self.crop(views[: len(views) // 2]).repeat(2, 1, 1, 1)


class PerInstanceSimCLR(MultiViewModule):
    """Cross-entropy of a view's twin, view k + K/2, among the other views of the same image; K is even, at least 4.

    Args:
        temperature: of the cosine similarities.
        **kwargs: those of `MultiViewModule`.
    """

    def __init__(self, temperature: float = 0.15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def compute_loss(self, z: Tensor) -> Tensor:
        """Loss of z (K, N, D)."""
        n_views = len(z)
        if n_views < 4 or n_views % 2:
            raise ValueError(f"n_views is {n_views}: expected an even number of at least 4, two versions of each crop")
        unit = F.normalize(z, dim=-1).transpose(0, 1)  # (N, K, D)
        itself = torch.eye(n_views, dtype=torch.bool, device=z.device)
        logits = (unit @ unit.mT / self.temperature).masked_fill(itself, float("-inf"))
        twin = torch.arange(n_views, device=z.device).roll(n_views // 2)
        return F.cross_entropy(logits.flatten(0, 1), twin.repeat(len(unit)))
