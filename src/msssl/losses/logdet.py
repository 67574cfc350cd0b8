"""Losses that maximise the log-determinant of each view's covariance: CorInfoMax and the total coding rate (TCR)."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from msssl.errors import UserError
from msssl.losses._common import check_embeddings, check_positive, check_weight, mean_pair_product

Form = Literal["logdet", "tcr"]
ALPHA: dict[str, float] = {"logdet": 4.0, "tcr": 200.0}
EPS: dict[str, float] = {"logdet": 1e-4, "tcr": 0.2}


def logdet_loss(
    z: Tensor, *, alpha: float | None = None, form: Form = "logdet", eps: float | None = None
) -> dict[str, Tensor]:
    r"""LogDet for K >= 2 views: agreement of the views, and a large volume of each view's covariance.

    Let u be the embeddings at unit length, ub the mean of the views, c_k = u_k minus its mean over N, and R_k = c_k^T
    c_k / N + eps I:

        logdet  invariance  = mean over pairs k != l and images n of |u_kn - u_ln|^2
                volume      = 1/D mean_k logdet R_k
                loss        = alpha invariance - 2 volume
        tcr     invariance  = -mean_{k,n} cos(u_kn, ub_n)
                volume      = 1/2 mean_k logdet(I + D / (N eps) u_k^T u_k), u_k not centred
                loss        = alpha invariance - volume

    Args:
        z: projector outputs, shape (K, N, D), of any length. Not modified.
        alpha: weight of the invariance; by default 4 for `logdet`, where the published weights of the mean over
            dimensions are 250 at D = 64, 500 to 1000 at 128 and 2000 at 512; and the published 200 for `tcr`.
        form: which of the two.
        eps: 1e-4 for `logdet` and 0.2 for `tcr` by default; in float32 at least 1e-6.

    Returns:
        Scalars `loss`, `invariance` and `volume`, the terms unweighted; float32, or float64 if z is.

    Raises:
        ValueError: z is not 3-D, K < 2 or N < 2 (the message holds the shape); the form is unknown; alpha is negative,
            eps not positive; or D >= N for `logdet`, as the covariance of N images has rank N - 1.

    Source: `logdet`: Ozsoy et al. 2022 (CorInfoMax, arXiv:2209.07999), eq. 8. Differs: any number of views, and the
    covariance of the batch alone, where the authors keep a running average of which it is 99 %. `tcr`: Tong et al. 2023
    (EMP-SSL, arXiv:2304.03977), eq. 5.

    >>> z = torch.tensor([[[1.0], [1.0], [-1.0], [-1.0]]]).expand(2, 4, 1)  # two equal views, variance 1
    >>> {name: round(value.item(), 4) for name, value in logdet_loss(z, eps=1.0).items()}  # -2 log(1 + 1)
    {'loss': -1.3863, 'invariance': 0.0, 'volume': 0.6931}
    """
    alpha, eps = weights_of(form, alpha, eps)
    z = check_embeddings(z)
    _, n_images, dim = z.shape
    if form == "logdet" and dim >= n_images:
        raise UserError(
            f"embeddings have shape {tuple(z.shape)}: the covariance of {n_images} images in {dim} dimensions is "
            "singular: lower --model.proj_dim, raise --data.batch_size, or take form tcr"
        )
    with torch.autocast(z.device.type, enabled=False):
        u = F.normalize(z, dim=-1)
        if form == "tcr":
            invariance = -F.cosine_similarity(u, u.mean(dim=0, keepdim=True), dim=-1).mean()
            volume = _logdet_of_identity_plus(u, dim / (n_images * eps)).mean() / 2
            return {"loss": alpha * invariance - volume, "invariance": invariance, "volume": volume}
        invariance = 2 * (u.square().sum(dim=-1).mean() - mean_pair_product(u))
        centred = u - u.mean(dim=1, keepdim=True)
        covariance = centred.mT @ centred / n_images
        volume = _logdet(covariance + eps * _identity(covariance)).mean() / dim
        return {"loss": alpha * invariance - 2 * volume, "invariance": invariance, "volume": volume}


def weights_of(form: str, alpha: float | None, eps: float | None) -> tuple[float, float]:
    """Alpha and eps of a form, where None stands for the default; ValueError where a value is out of range."""
    if form not in EPS:
        raise UserError(f"form is {form!r}: expected one of {', '.join(EPS)}")
    alpha, eps = ALPHA[form] if alpha is None else alpha, EPS[form] if eps is None else eps
    return check_weight("alpha", alpha), check_positive("eps", eps)


def _logdet_of_identity_plus(u: Tensor, factor: float) -> Tensor:
    """logdet(I + factor u^T u) of each view of u (K, N, D), by u u^T where that is smaller."""
    gram = u @ u.mT if u.shape[1] < u.shape[2] else u.mT @ u
    return _logdet(factor * gram + _identity(gram))


def _identity(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def _logdet(matrix: Tensor) -> Tensor:
    """Of symmetric positive definite matrices (..., D, D); NaN for others, as rounding may make them."""
    factor, info = torch.linalg.cholesky_ex(matrix)  # not `cholesky`, for whose check the host waits
    logdet: Tensor = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    return torch.where(info == 0, logdet, torch.nan)
