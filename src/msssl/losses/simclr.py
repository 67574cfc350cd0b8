"""The SimCLR loss for any number of views."""

import torch
from torch import Tensor
from torch.nn import functional as F

from msssl.losses._common import check_embeddings, check_positive, mean_pair_product


def simclr_loss(z: Tensor, *, temperature: float = 0.15) -> dict[str, Tensor]:
    r"""SimCLR for K >= 2 views, with all other views of an image as positives; at K = 2 it is NT-Xent.

    Let u be the K N embeddings at unit length, indexed by i = (k, n), and t the temperature:

        similarity = mean over i, and over the K - 1 other views p of the same image, of u_i . u_p
        partition  = mean over i of log sum_{a != i} exp(u_i . u_a / t)
        loss       = partition - similarity / t

    Args:
        z: projector outputs, shape (K, N, D), of any length. Not modified.
        temperature: t, dimensionless, above 0; 0.15 is best for small batches (Bordes et al. 2023).

    Returns:
        Scalars `loss`, `similarity` (in [-1, 1]) and `partition` (in nats); float32, or float64 if z is.

    Raises:
        ValueError: z is not 3-D, K < 2 or N < 2 (the message holds the shape), or the temperature is not above 0.

    Source: Chen et al. 2020 (arXiv:2002.05709), eq. 1; Khosla et al. 2020 (arXiv:2004.11362), eq. 2, for more than
    one positive, where each image is its own class. It costs one (K N, K N) product, O(K^2).

    >>> z = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).expand(2, 2, 2)  # equal views of two orthogonal images
    >>> terms = simclr_loss(z, temperature=1.0)  # log(e + 1 + 1) - 1
    >>> {name: round(value.item(), 4) for name, value in terms.items()}
    {'loss': 0.5514, 'similarity': 1.0, 'partition': 1.5514}
    """
    z = check_embeddings(z)
    check_positive("temperature", temperature)
    with torch.autocast(z.device.type, enabled=False):
        unit = F.normalize(z, dim=-1)
        similarity = mean_pair_product(unit)
        rows = unit.flatten(0, 1)
        diagonal = torch.eye(len(rows), dtype=torch.bool, device=z.device)
        logits = (rows @ rows.T / temperature).masked_fill(diagonal, float("-inf"))
        partition = logits.logsumexp(dim=1).mean()
        return {"loss": partition - similarity / temperature, "similarity": similarity, "partition": partition}
