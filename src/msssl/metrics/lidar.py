"""LiDAR: how many directions of embeddings tell images apart, measured by a linear discriminant analysis."""

import torch
from torch import Tensor

from msssl.errors import UserError


@torch.no_grad()
def lidar(z: Tensor, *, delta: float = 1e-4, epsilon: float = 1e-7) -> Tensor:
    r"""Effective rank of the linear discriminant analysis whose classes are the images, between 1 and min(N - 1, D).

    Let mu_n be the mean of the K views of image n, and mu that of all images:

        between  = 1/N sum_n (mu_n - mu)(mu_n - mu)^T
        within   = 1/(K N) sum_{k,n} (z_kn - mu_n)(z_kn - mu_n)^T + delta I

    and p the eigenvalues of within^(-1/2) between within^(-1/2), divided by their sum, plus epsilon. LiDAR is
    exp(-sum p log p).

    Args:
        z: embeddings of K >= 2 views of N >= 2 images, shape (K, N, D). The authors take N = 1,000 and K = 50.
        delta: added to the diagonal of the covariance within images.
        epsilon: added to the eigenvalues for numerical stability.

    Returns:
        A scalar, float64.

    Raises:
        ValueError: z has another shape, or is not finite.

    Source: Thilak et al. 2024 (arXiv:2312.04000, ICLR), section 4.

    >>> image = torch.eye(3).expand(2, 3, 3)  # three images in orthogonal directions, whose two views are equal
    >>> round(float(lidar(image)), 3)
    2.0
    """
    if z.ndim != 3 or z.shape[0] < 2 or z.shape[1] < 2:
        raise UserError(
            f"embeddings have shape {tuple(z.shape)}: expected (K, N, D) with K >= 2 views of N >= 2 images"
        )
    if broken := int((~z.isfinite()).any(dim=2).sum()):
        raise UserError(f"{broken} of {z.shape[0] * z.shape[1]} rows of features are not finite")
    z = z.double()
    n_views, n_images, dim = z.shape
    means = z.mean(dim=0)
    between = (means - means.mean(dim=0)) / n_images**0.5  # (N, D), a square root of the covariance
    within = (z - means).flatten(0, 1) / (n_views * n_images) ** 0.5
    covariance = within.T @ within + delta * torch.eye(dim, dtype=z.dtype, device=z.device)
    factor = torch.linalg.cholesky(covariance)
    whitened = torch.linalg.solve_triangular(factor, between.T, upper=False)  # (D, N): same eigenvalues as above
    values = torch.linalg.svdvals(whitened).square()
    p = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny) + epsilon
    return torch.exp(-(p * p.log()).sum())
