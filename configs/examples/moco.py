"""MoCo v3 for K >= 2 views: a method with a second network that msssl does not have, as an example.

Put this file into the folder that you run from:

    msssl fit --config cifar.yaml --model moco.MoCo
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from msssl import BYOL


class MoCo(BYOL):
    """Recognises an image among those of the batch by a slowly following network's embedding of its other views.

    loss = 1/(K N) sum_{k,n} -log(exp(q(z_kn) . tb_{-k,n} / tau) / sum_m exp(q(z_kn) . tb_{-k,m} / tau)), where q(z) and
    the mean tb_{-k} of the other views' targets have unit length: Chen et al. 2021 (arXiv:2104.02057), Algorithm 1
    without its factor 2 tau, for K views.
    The network that follows, its targets for all GPUs, and the predictor come with `BYOL`.

    Args:
        temperature: tau.
        **kwargs: those of `BYOL`.
    """

    def __init__(self, temperature: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def compute_loss(self, z: Tensor) -> dict[str, Tensor]:
        """Loss of z (K, N, D)."""
        logits = self.predict(z) @ self.mean_targets(z).mT / self.temperature  # (K, N, N)
        own_image = torch.arange(z.shape[1], device=z.device).expand(len(z), -1)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), own_image.flatten())}
