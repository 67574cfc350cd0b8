"""Barlow Twins for any number of views."""

import torch
from torch import Tensor

from msssl.losses._common import check_embeddings, off_diagonal_energy


def barlow_twins_loss(z: Tensor, *, beta: float, eps: float = 1e-5) -> dict[str, Tensor]:
    r"""Mean-view Barlow Twins: one formula for every K >= 2, one Gram product whatever K is.

    With h_k view k standardised by its own mean and biased variance over N, hb the mean of all views and
    hb_{-k} the mean of the others:

        invariance = 1/K sum_k sum_d (1 - (h_k^T hb_{-k})_dd / N)^2
        redundancy = sum_{d != e} ((hb^T hb)_de / N)^2
        loss = invariance + beta * redundancy

    Args:
        z: projector outputs, shape (K, N, D), unnormalised. Not modified.
        beta: weight of the redundancy term, dimensionless; 5 / D suits projectors from 64 to 8192.
        eps: added to the variance inside the square root.

    Returns:
        Scalars `loss`, `invariance` and `redundancy`, the terms unweighted and summed over D;
        float32, or float64 if z is.

    Raises:
        ValueError: if z is not 3-D, K < 2 or N < 2; the message holds the shape.

    Source: Zbontar et al. 2021 (arXiv:2103.03230), eq. 1; Ghosh et al. 2024 (NeurIPS), sec. 3.2, for the mean view.
    Differs: the invariance compares each view with the mean of the *others*, so its scale is the same for every K
    and at K = 2 it is Zbontar's; at K = 2 the redundancy is that of the mean view, not of the cross-correlation.

    >>> view = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])  # two images, two dimensions that agree
    >>> terms = barlow_twins_loss(torch.stack([view, view]), beta=0.5, eps=0.0)
    >>> {name: value.item() for name, value in terms.items()}
    {'loss': 1.0, 'invariance': 0.0, 'redundancy': 2.0}
    """
    z = check_embeddings(z)
    n_views, n_images, _ = z.shape
    with torch.autocast(z.device.type, enabled=False):
        centred = z - z.mean(dim=1, keepdim=True)
        h = centred / (centred.square().mean(dim=1, keepdim=True) + eps).sqrt()
        mean_view = h.mean(dim=0)
        others = (n_views * mean_view - h) / (n_views - 1)
        correlation = (h * others).mean(dim=1)  # (K, D)
        invariance = (1 - correlation).square().sum(dim=1).mean()
        redundancy = off_diagonal_energy(mean_view) / n_images**2
        return {"loss": invariance + beta * redundancy, "invariance": invariance, "redundancy": redundancy}
