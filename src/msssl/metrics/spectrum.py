"""Measures of features without labels, from their spectrum: effective rank (RankMe) and its decay (alpha-ReQ)."""

import torch
from torch import Tensor

from msssl.errors import UserError

MAX_ROWS = 10_000
FIRST, LAST = 3, 99  # alpha is fitted to these eigenvalues, counted from 0
SMALLEST_IN_FLOAT32 = 1e-5  # of the largest eigenvalue: if all are larger, float32 gives alpha to four digits


@torch.no_grad()
def rankme(z: Tensor, epsilon: float = 1e-7) -> Tensor:
    """Effective rank: exp of the entropy of the singular values p = s / sum(s) + epsilon, between 1 and min(N, D).

    Args:
        z: shape (N, D), not centred; at most 10,000 rows, evenly spread, are used.
        epsilon: added for numerical stability.

    Returns:
        A scalar, float64.

    Raises:
        ValueError: z has another shape, or is not finite.

    Source: Garrido et al. 2023 (arXiv:2210.02885), equations 1 and 2.

    >>> round(float(rankme(torch.eye(8))), 3)
    8.0
    """
    values = _singular_values(spread_rows(z).double())
    p = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny) + epsilon
    return torch.exp(-(p * p.log()).sum())


@torch.no_grad()
def eigenspectrum(features: Tensor) -> Tensor:
    """Eigenvalues of the covariance of features (N, F): shape (min(N, F),), largest first, float64.

    Eigenvalues so small that in float64 they may be rounding errors are set to 0.
    """
    x = spread_rows(features).double()
    values = _gram_eigenvalues(x - x.mean(dim=0)) / max(1, len(x) - 1)
    return torch.where(values > _rounding(x) * values[0], values, 0.0)


@torch.no_grad()
def alpha_req(features: Tensor) -> Tensor:
    """Exponent alpha of a power law n**-alpha, fitted to the eigenvalues of the features' covariance.

    The fit is by least squares on the logarithms of the eigenvalues 3 to 99, counted from 0 (to min(N, F) - 1 where
    there are fewer). Eigenvalue n has weight 1 / n, so that each octave has the same weight. According to Agrawal et
    al., features generalise best with alpha near 1.

    Args:
        features: shape (N, F); at most 10,000 rows, evenly spread, are used.

    Returns:
        A scalar, float64; NaN where fewer than two of these eigenvalues are above rounding errors.

    Raises:
        ValueError: features have another shape, or are not finite.

    Source: Agrawal et al. 2022 (NeurIPS; alpha-ReQ); the weights are those of the code of Ghosh et al. 2024.
    """
    x = spread_rows(features)
    if x.device.type == "cpu" and x.dtype != torch.float64 and 1e-10 < x.abs().max() < 1e10:  # no overflow of squares
        x32 = x.float()  # takes half of the time
        values = _gram_eigenvalues(x32 - x32.mean(dim=0)).double()
        if values[: LAST + 1].min() > SMALLEST_IN_FLOAT32 * values[0]:
            return alpha_of(values)
    return alpha_of(eigenspectrum(features))


def alpha_of(eigenvalues: Tensor) -> Tensor:
    """`alpha_req` of the features whose `eigenspectrum` this is: shape (min(N, F),), largest first."""
    values = eigenvalues[: LAST + 1]
    n = torch.arange(1, len(values) + 1, device=values.device, dtype=values.dtype)
    fitted = (n > FIRST) & (values > 0)
    if fitted.sum() < 2:
        return values.new_tensor(float("nan"))
    x, y, weight = n[fitted].log(), values[fitted].log(), 1 / n[fitted]
    x, y = x - (weight * x).sum() / weight.sum(), y - (weight * y).sum() / weight.sum()
    return -(weight * x * y).sum() / (weight * x * x).sum()


def _singular_values(x: Tensor) -> Tensor:
    values = _gram_eigenvalues(x)
    if values[-1] > _rounding(x) * values[0]:
        return values.sqrt()
    # The smallest eigenvalues are rounding errors of the largest. For tall matrices `svdvals` is 4 times as fast.
    singular_values: Tensor = torch.linalg.svdvals(x if len(x) >= x.shape[1] else x.T)
    return singular_values


def _gram_eigenvalues(x: Tensor) -> Tensor:
    """Eigenvalues of the smaller one of x^T x and x x^T, largest first, none below 0."""
    tall = x if len(x) >= x.shape[1] else x.T
    if x.device.type == "cpu":
        # NumPy notices that this product is symmetric and does half of the work. Neither autocast nor
        # `torch.set_float32_matmul_precision` changes its precision.
        array = tall.numpy()
        gram = torch.from_numpy(array.T @ array)
    else:
        gram = tall.T @ tall
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values.flip(0).clamp(min=0)


def _rounding(x: Tensor) -> float:
    """Largest ratio, to the largest eigenvalue of a Gram matrix of x, of eigenvalues that may be rounding errors."""
    return max(x.shape) * torch.finfo(x.dtype).eps


def spread_rows(z: Tensor, at_most: int = MAX_ROWS) -> Tensor:
    """The rows of z (N, D) from which scores are computed: at most 10,000, evenly spread.

    Raises:
        ValueError: z has another shape, or is not finite.
    """
    if z.ndim != 2 or min(z.shape) == 0:
        raise UserError(f"features are {tuple(z.shape)}: expected (N, F)")
    if len(z) > at_most:
        z = z[torch.linspace(0, len(z) - 1, at_most, device=z.device).long()]
    if not z.isfinite().all():
        raise UserError(f"{int((~z.isfinite()).any(dim=1).sum())} of {len(z)} rows of features are not finite")
    return z.detach()
