"""BYOL for K >= 2 views, as an example of a method with a second network (Grill et al. 2020, arXiv:2006.07733).

Put this file into the folder that you run from:

    msssl fit --config cifar.yaml --model byol.BYOL
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msssl import MultiViewModule
from msssl.distributed import check_equal_shapes, gather


class BYOL(MultiViewModule):
    """Predicts, from each view, a slowly following network's embedding of the other views.

    loss = 1/(K N) sum_{k,n} (2 - 2 q(z_kn) . tb_{-k,n}), q(z) and the targets t at unit length, tb_{-k} the mean of
    the others' targets: eq. 2 of the paper, averaged over ordered pairs. Only the loss and what follows the online
    network are new; gathering over devices, optimizer and checkpoint come with the base class.

    Args:
        momentum: of the target network, per optimizer step.
        **kwargs: those of `MultiViewModule`.
    """

    def __init__(self, momentum: float = 0.99, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.momentum = momentum
        self.predictor = nn.Sequential(
            nn.Linear(self.proj_dim, self.proj_dim, bias=False),
            nn.BatchNorm1d(self.proj_dim),
            nn.ReLU(inplace=True),
            nn.Linear(self.proj_dim, self.proj_dim),
        )
        online = nn.Sequential(self.backbone, self.projector)
        self.target = copy.deepcopy(online).requires_grad_(False)
        self._targets = torch.empty(0)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """As in the base class, with the targets of the same views kept for `compute_loss`."""
        views = batch["views"]
        if isinstance(views, list):
            raise ValueError(f"views come in {len(views)} sizes: this BYOL takes one")
        with torch.no_grad():
            targets = self.target(views.flatten(0, 1).to(self.dtype)).unflatten(0, views.shape[:2])
            if batch_idx == 0:  # the base class checks only after this gather
                check_equal_shapes(targets)
            self._targets = gather(targets if targets.dtype == torch.float64 else targets.float())
        return super().training_step(batch, batch_idx)

    def compute_loss(self, z: Tensor) -> Tensor:
        """Loss of z (K, N, D)."""
        predicted = F.normalize(self.predictor(z.flatten(0, 1)), dim=-1).unflatten(0, z.shape[:2])
        targets = F.normalize(self._targets, dim=-1)
        others = (targets.sum(dim=0) - targets) / (len(z) - 1)
        return 2 - 2 * (predicted * others).sum(dim=-1).mean()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, then moves the target: once for several accumulated batches."""
        super().optimizer_step(*args, **kwargs)
        online = [*self.backbone.parameters(), *self.projector.parameters()]
        with torch.no_grad():
            for follower, parameter in zip(self.target.parameters(), online, strict=True):
                follower.lerp_(parameter, 1 - self.momentum)
