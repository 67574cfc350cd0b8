"""The LeJEPA loss: views agree, and their distribution is an isotropic Gaussian."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from msssl.losses._common import check_directions, check_embeddings, check_share, invariance_to_the_mean

# The characteristic functions are compared at t_j = 3 j / 16, j = 0 to 16. At t = 0 all of them are 1, so that j begins
# at 1 here.
_STEP, _N_POINTS = 3 / 16, 16


def lejepa_loss(
    z: Tensor, *, directions: Tensor, lambda_: float = 0.05, n_targets: int | None = None
) -> dict[str, Tensor]:
    r"""LeJEPA for K >= 2 views: loss = (1 - lambda) invariance + lambda sigreg.

    Let zb be the mean of the views, a_s the directions, x_kns = z_kn . a_s, phi_j = exp(-t_j^2 / 2), t_j = 3 j / 16 for
    j = 0 to 16, and w_j = 2 dt phi_j (dt phi_j for the first and the last j), dt = 3/16:

        invariance  = mean_{k,n,d} (z_knd - zb_nd)^2
        sigreg      = N mean_{k,s} sum_j w_j [(mean_n cos(t_j x_kns) - phi_j)^2 + (mean_n sin(t_j x_kns))^2]

    sigreg is the statistic of Epps and Pulley, by which each view of the batch is tested for being normally
    distributed along each direction. It vanishes only at mean 0 and variance 1, so that z needs no other normalisation.

    Args:
        z: projector outputs, shape (K, N, D), not normalised. Not modified.
        directions: columns of unit length, shape (D, S). Draw new ones at each step, the same on all ranks.
        lambda_: weight of sigreg, in [0, 1].
        n_targets: number of views, the first ones, whose mean is zb; by default all. Multi-crop compares all views with
            the mean of the large ones.

    Returns:
        Scalars `loss`, `invariance` and `sigreg`, the terms unweighted; float32, or float64 if z is.

    Raises:
        ValueError: z is not 3-D, K < 2 or N < 2 (the message holds the shape), `directions` are not (D, S), or lambda_
            or n_targets is out of range.

    Source: Balestriero and LeCun 2025 (arXiv:2511.08544), with the points of the authors' code ([-3, 3], where the
    paper has [-5, 5]) and its mean of all views as the target.

    >>> z = torch.tensor([[[1.0], [-1.0]], [[1.0], [-1.0]]])  # two equal views: mean 0, variance 1, but not Gaussian
    >>> {name: round(value.item(), 4) for name, value in lejepa_loss(z, directions=torch.ones(1, 1)).items()}
    {'loss': 0.0103, 'invariance': 0.0, 'sigreg': 0.2057}
    """
    z = check_embeddings(z)
    check_directions(directions, z)
    check_share("lambda_", lambda_)
    with torch.autocast(z.device.type, enabled=False):
        invariance = invariance_to_the_mean(z, n_targets)
        sigreg = z.shape[1] * _EppsPulley.apply(z @ directions.to(z.dtype))
        return {"loss": (1 - lambda_) * invariance + lambda_ * sigreg, "invariance": invariance, "sigreg": sigreg}


class _EppsPulley(torch.autograd.Function):
    """mean_{k,s} sum_j w_j |mean_n exp(i t_j x_kns) - phi_j|^2 for x (K, N, S).

    Autograd would keep cosines and sines at all t_j. Here both passes compute them at one t_j after the other, which
    takes the memory of a few x.
    """

    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor) -> Tensor:
        means = torch.stack([torch.stack([cos.mean(dim=1), sin.mean(dim=1)]) for cos, sin in _waves(x)])
        _, normal, weights = _points(x)
        difference = torch.stack([means[:, 0] - normal, means[:, 1]], dim=1)
        ctx.save_for_backward(x, difference)
        return (weights * difference.square().sum(dim=1)).sum() / (x.shape[0] * x.shape[2])

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, difference = ctx.saved_tensors
        times, _, weights = _points(x)
        factors = (2 / x.numel() * grad * weights * times)[:, None] * difference
        gradient = torch.zeros_like(x)
        for (cos, sin), (real, imaginary) in zip(_waves(x), factors[:, :, :, None], strict=True):
            gradient = gradient.addcmul_(cos, imaginary).addcmul_(sin, real, value=-1)
        return gradient


def _points(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """t_j, the characteristic function of a normal distribution there, and w_j, each (16, 1, 1), for j = 1 to 16."""
    j = torch.arange(1, _N_POINTS + 1, dtype=x.dtype, device=x.device).view(-1, 1, 1)
    times = _STEP * j
    normal = (-times.square() / 2).exp()
    return times, normal, _STEP * normal * (1 + (j < _N_POINTS).to(x.dtype))


def _waves(x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """cos(t_j x) and sin(t_j x) for j = 1 to 16, each by rotating the one before: half the time of cosines on a CPU."""
    phase = _STEP * x
    cos = cos_of_step = phase.cos()
    sin = sin_of_step = phase.sin_()
    yield cos, sin
    for _ in range(1, _N_POINTS):
        cos, sin = (
            (cos * cos_of_step).addcmul_(sin, sin_of_step, value=-1),
            (sin * cos_of_step).addcmul_(cos, sin_of_step),
        )
        yield cos, sin
