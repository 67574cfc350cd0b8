"""Functions that several losses use: the checks of their input, products of pairs and energies of Gram matrices."""

import torch
from torch import Tensor

from msssl.errors import UserError


def check_embeddings(z: Tensor) -> Tensor:
    """Return z (K, N, D) in float32, or in float64 if it is; raise ValueError with the shape if it has another one."""
    if z.ndim != 3 or z.shape[0] < 2 or z.shape[1] < 2:
        raise UserError(
            f"embeddings have shape {tuple(z.shape)}: expected (K, N, D) with K >= 2 views of N >= 2 images"
        )
    return z if z.dtype == torch.float64 else z.float()


def mean_pair_product(x: Tensor) -> Tensor:
    """Mean of x_kn . x_ln over images n and ordered pairs k != l, for x (K, N, D), without a loop over pairs.

    >>> mean_pair_product(torch.tensor([[[1.0, 0.0]], [[3.0, 4.0]], [[0.0, 1.0]]]))  # (3 + 0 + 4) / 3
    tensor(2.3333)
    """
    return (x * mean_of_others(x)).sum(dim=-1).mean()


def mean_of_others(x: Tensor) -> Tensor:
    """For each view of x (K, N, D), the mean of all other views."""
    return (x.sum(dim=0) - x) / (len(x) - 1)


def energy(x: Tensor) -> Tensor:
    """||x^T x||_F^2 for x (..., N, D), one value for each leading index; computed by x x^T, if that is smaller.

    >>> energy(torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]]))  # x^T x = [[10, 14], [14, 21]]
    tensor(933.)
    """
    gram = x @ x.mT if x.shape[-2] < x.shape[-1] else x.mT @ x
    return gram.square().sum(dim=(-2, -1))


def off_diagonal_energy(x: Tensor) -> Tensor:
    """Sum of the squared off-diagonal elements of x^T x, for x (..., N, D); one value per leading index.

    >>> off_diagonal_energy(torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]]))
    tensor(392.)
    """
    return energy(x) - x.square().sum(dim=-2).square().sum(dim=-1)


def check_directions(directions: Tensor, z: Tensor) -> None:
    """Raise ValueError unless directions are (D, S) for z (K, N, D)."""
    if directions.ndim != 2 or directions.shape[0] != z.shape[-1]:
        raise UserError(
            f"directions have shape {tuple(directions.shape)}: expected (D, S) with the D = {z.shape[-1]} of the "
            "embeddings"
        )


def invariance_to_the_mean(z: Tensor, n_targets: int | None) -> Tensor:
    """mean_{k,n,d} (z_knd - zb_nd)^2, where zb is the mean of the first `n_targets` views, or of all of them.

    Raises:
        ValueError: n_targets is below 1 or above K.
    """
    if n_targets is not None and not 1 <= n_targets <= len(z):
        raise UserError(f"n_targets is {n_targets}: expected 1 to {len(z)} views")
    return (z - z[:n_targets].mean(dim=0)).square().mean()


def check_share(name: str, value: float) -> float:
    """Return the number, or raise ValueError unless it is in [0, 1]."""
    if not 0 <= value <= 1:
        raise UserError(f"{name} is {value}: expected a number in [0, 1]")
    return value


def check_weight(name: str, value: float) -> float:
    """Return the weight of a term, or raise ValueError if it is negative or NaN."""
    if not value >= 0:
        raise UserError(f"{name} is {value}: a weight is at least 0")
    return value


def check_positive(name: str, value: float) -> float:
    """Return the number, or raise ValueError unless it is above 0."""
    if not value > 0:
        raise UserError(f"{name} is {value}: expected a number above 0")
    return value
