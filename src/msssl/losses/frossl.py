"""The FroSSL loss: the covariance of each view has a large entropy, measured by its Frobenius norm."""

import torch
from torch import Tensor
from torch.nn import functional as F

from msssl.losses._common import check_embeddings, check_weight, energy


def frossl_loss(z: Tensor, *, weight: float = 8.0) -> dict[str, Tensor]:
    r"""FroSSL for K >= 2 views: loss = entropy + weight * invariance.

    Let h_k be view k, each of its D columns at unit length over the N images (not centred), and hb the mean of the
    views:

        entropy     = 1/K sum_k log(||h_k^T h_k||_F^2 / D^2)
        invariance  = 1/(K D) sum_k ||h_k - hb||_F^2

    `entropy` is minus the matrix-based entropy of order 2, so that it is minimised: 0 if all columns are equal, -log D
    if they are orthogonal.
    The Gram matrix is D x D or N x N, whichever is smaller.

    Args:
        z: projector outputs, shape (K, N, D), not normalised. Not modified.
        weight: of the invariance; 8 is the published weight of 1 at K = 2, N = 256 and D = 1024.

    Returns:
        Scalars `loss`, `entropy` and `invariance`, the terms unweighted; float32, or float64 if z is.

    Raises:
        ValueError: z is not 3-D, K < 2 or N < 2 (the message holds the shape), or the weight is negative.

    Source: Skean et al. 2024 (arXiv:2310.02903, ECCV), eq. 6. Differs: both terms are means over the views, and the
    invariance is divided by D. The authors multiply the mean over images and dimensions by the number of views alone,
    so that their invariance falls as 1/N with the size of the batch; here it depends on neither N nor D.

    >>> z = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]]).expand(2, 2, 2)  # two equal views, whose columns are orthogonal
    >>> {name: round(value.item(), 4) for name, value in frossl_loss(z).items()}  # log(2 / 4)
    {'loss': -0.6931, 'entropy': -0.6931, 'invariance': 0.0}
    """
    z = check_embeddings(z)
    check_weight("weight", weight)
    with torch.autocast(z.device.type, enabled=False):
        h = F.normalize(z, dim=1)
        n_views, _, dim = h.shape
        entropy = (energy(h) / dim**2).clamp(min=1e-12).log().mean()  # if all embeddings are zero
        invariance = (h - h.mean(dim=0)).square().sum() / (n_views * dim)
        return {"loss": entropy + weight * invariance, "entropy": entropy, "invariance": invariance}
