"""The MV-DHEL loss: contrastive, with negatives from the same view only."""

import torch
from torch import Tensor
from torch.nn import functional as F

from msssl.losses._common import check_embeddings, check_positive


def mvdhel_loss(z: Tensor, *, temperature: float = 0.5) -> dict[str, Tensor]:
    r"""MV-DHEL for K >= 2 views: loss = uniformity - alignment.

    Let u be the embeddings at unit length and tau the temperature:

        uniformity  = mean_n sum_k log sum_{m != n} exp(u_kn . u_km / tau)
        alignment   = mean_n log sum_{k != l} exp(u_kn . u_ln / tau)

    The negatives of a view are of the same view, so that the cost grows as K N^2 D, and not as (K N)^2 D. Both
    logarithms are computed by logsumexp: the authors' code multiplies K sums, which overflows float32 from 7 to 13
    views on.

    Args:
        z: projector outputs, shape (K, N, D), of any length. Not modified.
        temperature: tau, above 0.

    Returns:
        Scalars `loss`, `uniformity` and `alignment`; float32, or float64 if z is.

    Raises:
        ValueError: z is not 3-D, K < 2 or N < 2 (the message holds the shape), or the temperature is not above 0.

    Source: Koromilas et al. 2025 (arXiv:2507.06979), eq. 9.

    >>> z = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).expand(2, 2, 2)  # two equal views of two orthogonal images
    >>> terms = mvdhel_loss(z)  # uniformity: log 1, twice; alignment: log(2 exp(2))
    >>> {name: round(value.item(), 4) for name, value in terms.items()}
    {'loss': -2.6931, 'uniformity': 0.0, 'alignment': 2.6931}
    """
    z = check_embeddings(z)
    check_positive("temperature", temperature)
    with torch.autocast(z.device.type, enabled=False):
        u = F.normalize(z, dim=-1)
        uniformity = _logsumexp_without_diagonal(u @ u.mT / temperature, dims=(-1,)).sum(dim=0).mean()
        of_image = u.transpose(0, 1)  # (N, K, D)
        alignment = _logsumexp_without_diagonal(of_image @ of_image.mT / temperature, dims=(-2, -1)).mean()
        return {"loss": uniformity - alignment, "uniformity": uniformity, "alignment": alignment}


def _logsumexp_without_diagonal(similarities: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Log sum exp over these dimensions of square matrices, whose diagonals are left out."""
    diagonal = torch.eye(similarities.shape[-1], dtype=torch.bool, device=similarities.device)
    return similarities.masked_fill(diagonal, -torch.inf).logsumexp(dim=dims)
