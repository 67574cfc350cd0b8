"""The VICReg loss for any number of views."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from msssl.errors import UserError
from msssl.losses._common import check_embeddings, check_weight, off_diagonal_energy

Form = Literal["mean", "pairs"]


def vicreg_loss(
    z: Tensor,
    *,
    sim_coeff: float = 25.0,
    std_coeff: float = 25.0,
    cov_coeff: float = 1.0,
    form: Form = "mean",
    eps: float = 1e-4,
) -> dict[str, Tensor]:
    r"""VICReg for K >= 2 views, at O(K) cost.

    Let zb be the mean of the views, and c(x) = sum_{d != e} cov(x)_de^2 / D (cov and var divide by N - 1):

        invariance = mean over pairs k < l of MSE(z_k, z_l) = 2 / (K - 1) sum_k MSE(z_k, zb)
        variance   = 1/K sum_k mean_d relu(1 - sqrt(var_d(z_k) + eps))
        covariance = 2 c(zb) for `mean`, with one Gram matrix for any K; 2 / K sum_k c(z_k) for `pairs`, with K of them
        loss = sim_coeff * invariance + std_coeff * variance + cov_coeff * covariance

    Args:
        z: projector outputs, shape (K, N, D). Not modified.
        sim_coeff: weight of the invariance.
        std_coeff: weight of the variance.
        cov_coeff: weight of the covariance.
        form: `mean` or `pairs`, which differ in the covariance.
        eps: added to the variance inside the square root.

    Returns:
        Scalars `loss`, `invariance`, `variance` and `covariance`, the terms unweighted; float32, or float64 if z is.

    Raises:
        ValueError: z is not 3-D, K < 2 or N < 2 (the message holds the shape), the form is unknown, or a weight is
            negative.

    Source: Bardes et al. 2022 (arXiv:2105.04906), eqs. 1 to 6, weights of its section 4.2, which is `pairs` at K = 2
    with the variance halved as in the authors' code; Ghosh et al. 2024 (NeurIPS) for the mean view. Differs: `mean`
    takes the covariance of the mean view, times 2 for the two branches there.

    >>> z = torch.tensor([[[3.0, -3.0], [-3.0, 3.0]], [[1.0, -1.0], [-1.0, 1.0]]])  # zb = [[2, -2], [-2, 2]]
    >>> terms = vicreg_loss(z, sim_coeff=1.0, std_coeff=1.0, cov_coeff=1.0)
    >>> {name: value.item() for name, value in terms.items()}
    {'loss': 132.0, 'invariance': 4.0, 'variance': 0.0, 'covariance': 128.0}
    """
    if form not in ("mean", "pairs"):
        raise UserError(f"form is {form!r}: expected one of mean, pairs")
    for name, coeff in {"sim_coeff": sim_coeff, "std_coeff": std_coeff, "cov_coeff": cov_coeff}.items():
        check_weight(name, coeff)
    z = check_embeddings(z)
    n_views, n_images, dim = z.shape
    with torch.autocast(z.device.type, enabled=False):
        invariance = 2 * n_views / (n_views - 1) * F.mse_loss(z, z.mean(dim=0).expand_as(z))
        centred = z - z.mean(dim=1, keepdim=True)
        std = (centred.square().sum(dim=1) / (n_images - 1) + eps).sqrt()  # (K, D)
        variance = torch.relu(1 - std).mean()
        energy = off_diagonal_energy(centred.mean(dim=0) if form == "mean" else centred).mean()
        covariance = 2 * energy / (n_images - 1) ** 2 / dim
        loss = sim_coeff * invariance + std_coeff * variance + cov_coeff * covariance
        return {"loss": loss, "invariance": invariance, "variance": variance, "covariance": covariance}
