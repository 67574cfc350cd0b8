"""The VISReg loss: views agree, and their mean, scale and shape are those of an isotropic Gaussian."""

import torch
from torch import Tensor

from msssl.losses._common import check_directions, check_embeddings, check_share, invariance_to_the_mean


def visreg_loss(
    z: Tensor, *, directions: Tensor, lambda_: float = 0.6, eps: float = 1e-8, n_targets: int | None = None
) -> dict[str, Tensor]:
    r"""VISReg for K >= 2 views: loss = (1 - lambda) invariance + lambda (center + scale + shape).

    Let zb be the mean of the views, mu_k and s_k the mean and the standard deviation of view k over N (biased,
    s = sqrt(var + eps)), a_s the directions, sg the stop-gradient, and q_i = Phi^-1(i / (N + 1)) the quantiles of a
    standard normal distribution:

        invariance  = mean_{k,n,d} (z_knd - zb_nd)^2
        center      = mean_{k,d} mu_kd^2
        scale       = mean_{k,d} (1 - s_kd)^2
        shape       = mean_{k,s,i} (sort_n[((z_kn - mu_k) / sg(s_k)) . a_s]_i - q_i)^2

    Args:
        z: projector outputs, shape (K, N, D), not normalised. Not modified.
        directions: columns of unit length, shape (D, S). Draw new ones at each step, the same on all ranks.
        lambda_: weight of the three terms of regularisation, in [0, 1].
        eps: added to the variance inside the square root.
        n_targets: number of views, the first ones, whose mean is zb; by default all. Multi-crop compares all views with
            the mean of the large ones.

    Returns:
        Scalars `loss`, `invariance`, `center`, `scale` and `shape`, the terms unweighted; float32, or float64 if z is.

    Raises:
        ValueError: z is not 3-D, K < 2 or N < 2 (the message holds the shape), `directions` are not (D, S), or lambda_
            or n_targets is out of range.

    Source: VISReg 2026 (arXiv:2606.02572). Differs: eps, without which a constant dimension has no gradient.

    >>> z = torch.tensor([[[2.0], [0.0]], [[2.0], [0.0]]])  # two equal views: mean 1, standard deviation 1
    >>> terms = visreg_loss(z, directions=torch.ones(1, 1))  # shape: 1 - Phi^-1(2/3) = 0.569, squared
    >>> {name: round(value.item(), 3) for name, value in terms.items()}
    {'loss': 0.794, 'invariance': 0.0, 'center': 1.0, 'scale': 0.0, 'shape': 0.324}
    """
    z = check_embeddings(z)
    check_directions(directions, z)
    check_share("lambda_", lambda_)
    with torch.autocast(z.device.type, enabled=False):
        invariance = invariance_to_the_mean(z, n_targets)
        mean = z.mean(dim=1, keepdim=True)
        std = (z.var(dim=1, correction=0, keepdim=True) + eps).sqrt()
        center, scale = mean.square().mean(), (1 - std).square().mean()
        along = ((z - mean) / std.detach()) @ directions.to(z.dtype)  # (K, N, S)
        n_images = z.shape[1]
        places = torch.arange(1, n_images + 1, dtype=z.dtype, device=z.device) / (n_images + 1)
        quantiles = torch.special.ndtri(places)
        # Along the last axis, where sorting is fastest.
        shape = (along.mT.contiguous().sort(dim=-1).values - quantiles).square().mean()
        loss = (1 - lambda_) * invariance + lambda_ * (center + scale + shape)
        return {"loss": loss, "invariance": invariance, "center": center, "scale": scale, "shape": shape}
