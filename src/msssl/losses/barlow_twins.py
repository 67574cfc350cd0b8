"""The Barlow Twins loss for any number of views."""

from typing import Literal

import torch
from torch import Tensor

from msssl.errors import UserError
from msssl.losses._common import check_embeddings, check_weight, off_diagonal_energy

Form = Literal["mean", "pairs", "eq10"]


def barlow_twins_loss(z: Tensor, *, beta: float, form: Form = "mean", eps: float = 1e-5) -> dict[str, Tensor]:
    r"""Barlow Twins for K >= 2 views: loss = invariance + beta * redundancy.

    Let h_k be view k, standardised by its own mean and biased variance over N; C^kl = h_k^T h_l / N; hb the mean of all
    views, and hb_{-k} the mean of all views except k. The three forms are:

        mean    invariance = 1/K sum_k sum_d (1 - (h_k^T hb_{-k})_dd / N)^2
                redundancy = sum_{d != e} ((hb^T hb)_de / N)^2
        pairs   both averaged over the ordered pairs k != l:
                invariance = sum_d (1 - C^kl_dd)^2, redundancy = sum_{d != e} (C^kl_de)^2
        eq10    invariance = 1/(K N) sum_{k,n,d} (h_knd - hb_nd)^2
                redundancy = ||hb^T hb / N - I||_F^2, with the diagonal

    `mean` and `eq10` need one Gram matrix for any K. `pairs` needs K of them, and no loop over pairs, since
    sum_{k != l} ||C^kl||_F^2 = (||sum_k G_k||_F^2 - sum_k ||G_k||_F^2) / N^2 with G_k = h_k h_k^T.

    Args:
        z: projector outputs, shape (K, N, D), not normalised. Not modified.
        beta: weight of the redundancy, dimensionless; 5 / D suits D from 64 to 8192.
        form: which of the three forms.
        eps: added to the variance inside the square root.

    Returns:
        Scalars `loss`, `invariance` and `redundancy`, the terms unweighted and summed over D;
        float32, or float64 if z is.

    Raises:
        ValueError: z is not 3-D, K < 2 or N < 2 (the message holds the shape), the form is unknown, or beta is
            negative.

    Source: Zbontar et al. 2021 (arXiv:2103.03230), eq. 1, which is `pairs` at K = 2; Ghosh et al. 2024 (NeurIPS),
    eq. 10, which is `eq10` on standardised views. Differs: `mean` compares each view with the mean of the *others*,
    so that its invariance has the same scale for every K and is Zbontar's at K = 2; its redundancy is that of the
    mean view, between 1/K^2 (uncorrelated views) and 1 (aligned views) times that of `pairs`.

    >>> view = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])  # two images, two dimensions that agree
    >>> terms = barlow_twins_loss(torch.stack([view, view]), beta=0.5, eps=0.0)
    >>> {name: value.item() for name, value in terms.items()}
    {'loss': 1.0, 'invariance': 0.0, 'redundancy': 2.0}
    >>> barlow_twins_loss(torch.stack([view, -view]), beta=0.5, form="pairs", eps=0.0)["invariance"]  # 2 (1 + 1)^2
    tensor(8.)
    """
    forms = {"mean": _mean, "pairs": _pairs, "eq10": _eq10}
    if form not in forms:
        raise UserError(f"form is {form!r}: expected one of {', '.join(forms)}")
    check_weight("beta", beta)
    z = check_embeddings(z)
    with torch.autocast(z.device.type, enabled=False):
        invariance, redundancy = forms[form](_standardise(z, eps))
        return {"loss": invariance + beta * redundancy, "invariance": invariance, "redundancy": redundancy}


def _standardise(z: Tensor, eps: float) -> Tensor:
    """Each view standardised by its own mean and biased variance, as a batch norm with K D channels: one kernel."""
    rows = z.transpose(0, 1).flatten(1)  # (N, K D)
    # Not `F.batch_norm`, which refuses eps = 0. Arguments: weight, bias, running statistics, training, momentum.
    h = torch.batch_norm(rows, None, None, None, None, True, 0.0, eps, False)
    return h.view(-1, z.shape[0], z.shape[2]).transpose(0, 1)


def _mean(h: Tensor) -> tuple[Tensor, Tensor]:
    n_views, n_images, _ = h.shape
    mean_view = h.mean(dim=0)
    # h_k^T hb_{-k} / N without forming hb_{-k} = (K hb - h_k) / (K - 1)
    correlation = (n_views * (h * mean_view).mean(dim=1) - h.square().mean(dim=1)) / (n_views - 1)  # (K, D)
    return (1 - correlation).square().sum(dim=1).mean(), off_diagonal_energy(mean_view) / n_images**2


def _pairs(h: Tensor) -> tuple[Tensor, Tensor]:
    n_views, n_images, _ = h.shape
    different = 1 - torch.eye(n_views, dtype=h.dtype, device=h.device)
    diagonals = torch.einsum("knd,lnd->dkl", h, h) / n_images  # C^kl_dd
    grams = h @ h.mT  # (K, N, N)
    energy = (grams.sum(dim=0).square().sum() - grams.square().sum()) / n_images**2
    invariance = ((1 - diagonals).square() * different).sum()
    redundancy = energy - (diagonals.square() * different).sum()
    n_pairs = n_views * (n_views - 1)
    return invariance / n_pairs, redundancy / n_pairs


def _eq10(h: Tensor) -> tuple[Tensor, Tensor]:
    n_views, n_images, _ = h.shape
    mean_view = h.mean(dim=0)
    invariance = (h - mean_view).square().sum() / (n_views * n_images)
    diagonal = mean_view.square().mean(dim=0)
    return invariance, off_diagonal_energy(mean_view) / n_images**2 + (diagonal - 1).square().sum()
