"""What the spectrum of features says without labels: their effective rank, and how fast their variance decays."""

import torch
from torch import Tensor

MAX_ROWS = 10_000
FIRST, LAST = 3, 99  # of the eigenvalues that alpha is fitted to, counted from 0


@torch.no_grad()
def rankme(z: Tensor, epsilon: float = 1e-7) -> Tensor:
    """Effective rank: exp of the entropy of the singular values p = s / sum(s) + epsilon, between 1 and min(N, D).

    Args:
        z: shape (N, D), not centred; 10,000 rows, evenly spread, are used at most.
        epsilon: for stability.

    Returns:
        A scalar, float64.

    Raises:
        ValueError: z has another shape, or is not finite.

    Source: Garrido et al. 2023 (arXiv:2210.02885), equations 1 and 2.

    >>> round(float(rankme(torch.eye(8))), 3)
    8.0
    """
    values = _singular_values(_rows(z))
    p = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny) + epsilon
    return torch.exp(-(p * p.log()).sum())


@torch.no_grad()
def eigenspectrum(features: Tensor) -> Tensor:
    """Eigenvalues of the covariance of features (N, F), largest first, min(N, F) of them, float64."""
    x = _rows(features)
    return _singular_values(x - x.mean(dim=0)).square() / max(1, len(x) - 1)


@torch.no_grad()
def alpha_req(features: Tensor) -> Tensor:
    """Exponent alpha of the eigenspectrum of the covariance, eigenvalue n being proportional to n**-alpha.

    Fitted by least squares to the logarithms of the eigenvalues 3 to 99, counted from 0 (to min(N, F) - 1 where there
    are fewer), each with weight 1 / n, so that every octave counts alike. Near 1 is what Agrawal et al. call for.

    Args:
        features: shape (N, F); 10,000 rows, evenly spread, are used at most.

    Returns:
        A scalar, float64; NaN where fewer than two of these are above rounding.

    Raises:
        ValueError: features have another shape, or are not finite.

    Source: Agrawal et al. 2022 (NeurIPS; alpha-ReQ); the weights are those of the code of Ghosh et al. 2024.
    """
    values = eigenspectrum(features)[: LAST + 1]
    n = torch.arange(1, len(values) + 1, device=values.device, dtype=values.dtype)
    fitted = (n > FIRST) & (values > values[0] * max(features.shape) * torch.finfo(values.dtype).eps)
    if fitted.sum() < 2:
        return values.new_tensor(float("nan"))
    x, y, weight = n[fitted].log(), values[fitted].log(), 1 / n[fitted]
    x, y = x - (weight * x).sum() / weight.sum(), y - (weight * y).sum() / weight.sum()
    return -(weight * x * y).sum() / (weight * x * x).sum()


def _singular_values(x: Tensor) -> Tensor:
    values: Tensor = torch.linalg.svdvals(x if len(x) >= x.shape[1] else x.T)  # of tall matrices 4 times as fast
    return values


def _rows(z: Tensor) -> Tensor:
    if z.ndim != 2 or min(z.shape) == 0:
        raise ValueError(f"features are {tuple(z.shape)}: expected (N, F)")
    if len(z) > MAX_ROWS:
        z = z[torch.linspace(0, len(z) - 1, MAX_ROWS, device=z.device).long()]
    if not z.isfinite().all():
        raise ValueError(f"{int((~z.isfinite()).any(dim=1).sum())} of {len(z)} rows of features are not finite")
    return z.double()
