"""What the paper's released code computes, for like-for-like comparison: neither Eq. 10 nor the losses of msssl.

Put this file into the folder that you run from:

    msssl fit --config cifar.yaml --model fastssl.FastSSLBarlowTwins --model.lambd 0.01

Written from the formulas of github.com/kumarkrishna/fastssl at 96dfa37 (2023-11-12). The code's values of lambd on
CIFAR-10 at D = 256: Barlow Twins 0.02 for K = 2, 0.01 for K = 4 and 8; VICReg 25.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from msssl import MultiViewModule


class FastSSLBarlowTwins(MultiViewModule):
    """Rows at unit length, then standardised over all K N of them (unbiased, no eps): one formula for K = 2, one above.

    Differs from `msssl.BarlowTwins` in these statistics, and for K > 2 in that the invariance compares a view with
    the mean that contains it, so that its weight jumps by ((K - 1) / K)^2 between K = 2 and K > 2.

    Args:
        lambd: weight of the off-diagonal sum.
        **kwargs: those of `MultiViewModule`.
    """

    def __init__(self, lambd: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lambd = lambd

    def compute_loss(self, z: Tensor) -> dict[str, Tensor]:
        """Loss of z (K, N, D)."""
        with torch.autocast(z.device.type, enabled=False):
            u = F.normalize(z if z.dtype == torch.float64 else z.float(), dim=-1)
            h = (u - u.mean(dim=(0, 1))) / u.std(dim=(0, 1))
            n_views, n_images, _ = h.shape
            if n_views == 2:
                correlation = h[0].T @ h[1] / n_images
                diagonal = correlation.diagonal()[None]
            else:
                mean_view = h.mean(dim=0)
                correlation = mean_view.T @ mean_view / n_images
                diagonal = (h * mean_view).mean(dim=1)  # (K, D)
            invariance = (diagonal - 1).square().sum(dim=1).mean()
            redundancy = correlation.square().sum() - correlation.diagonal().square().sum()
            return {
                "loss": invariance + self.lambd * redundancy,
                "invariance": invariance,
                "redundancy": redundancy,
            }


class FastSSLVICReg(MultiViewModule):
    """Each view against the mean of the others, hinge and covariance on both; standard deviations without eps.

    Differs from `msssl.VICReg` for K > 2: the invariance is (K / (K - 1))^2 times the distance to the mean view, the
    hinge also acts on the mean of the others, and it forms 2 K covariance matrices.

    Args:
        lambd: weight of the invariance and of the hinge; that of the covariance is 1.
        **kwargs: those of `MultiViewModule`.
    """

    def __init__(self, lambd: float = 25.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lambd = lambd

    def compute_loss(self, z: Tensor) -> dict[str, Tensor]:
        """Loss of z (K, N, D)."""
        with torch.autocast(z.device.type, enabled=False):
            z = z if z.dtype == torch.float64 else z.float()
            n_views = len(z)
            others = (z.sum(dim=0) - z) / (n_views - 1)
            if n_views == 2:  # one pair, not the same one twice
                z, others = z[:1], others[:1]
            invariance = F.mse_loss(z, others)
            variance = (torch.relu(1 - z.std(dim=1)).mean() + torch.relu(1 - others.std(dim=1)).mean()) / 2
            covariance = _off_diagonal(z) + _off_diagonal(others)
            loss = self.lambd * (invariance + variance) + covariance
            return {"loss": loss, "invariance": invariance, "variance": variance, "covariance": covariance}


def _off_diagonal(x: Tensor) -> Tensor:
    """Sum over d != e of cov(x)_de^2 / D, averaged over the leading index."""
    centred = x - x.mean(dim=1, keepdim=True)
    covariance = centred.mT @ centred / (x.shape[1] - 1)
    diagonals = covariance.diagonal(dim1=1, dim2=2)
    return (covariance.square().sum(dim=(1, 2)) - diagonals.square().sum(dim=1)).mean() / x.shape[2]
