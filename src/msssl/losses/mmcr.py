"""The MMCR loss (maximum manifold capacity representations) for any number of views."""

import torch
from torch import Tensor
from torch.nn import functional as F

from msssl.losses._common import check_embeddings, check_weight


def mmcr_loss(z: Tensor, *, local_coeff: float = 0.0) -> dict[str, Tensor]:
    r"""MMCR for K >= 2 views: maximises the extent of the images' centroids, and minimises the spread of their views.

    Let u be the embeddings at unit length, c_n = 1/K sum_k u_kn the centroid of image n, C = (c_1, ..., c_N), U_n the
    (K, D) views of image n, and ||.||_* the sum of the singular values:

        extent  = ||C||_*
        spread  = 1/N sum_n ||U_n||_*
        loss    = local_coeff * spread - extent

    Args:
        z: projector outputs, shape (K, N, D), of any length. Not modified.
        local_coeff: weight of the spread, which is not computed if this is 0, as by default.

    Returns:
        Scalars `loss` and `extent`, and `spread` where local_coeff is not 0; float32, or float64 if z is.

    Raises:
        ValueError: z is not 3-D, K < 2 or N < 2 (the message holds the shape), or local_coeff is negative.

    Source: Yerxa et al. 2023 (arXiv:2303.03307), section 2. It is the only loss here for which the host waits for the
    device, in `torch.linalg.svdvals`.

    >>> z = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).expand(2, 2, 2)  # equal views of two orthogonal images
    >>> {name: round(value.item(), 4) for name, value in mmcr_loss(z, local_coeff=0.5).items()}  # sqrt(2) / 2 - 2
    {'loss': -1.2929, 'extent': 2.0, 'spread': 1.4142}
    """
    z = check_embeddings(z)
    check_weight("local_coeff", local_coeff)
    with torch.autocast(z.device.type, enabled=False):
        unit = F.normalize(z, dim=-1)
        extent = torch.linalg.svdvals(unit.mean(dim=0)).sum()
        if local_coeff == 0:
            return {"loss": -extent, "extent": extent}
        spread = torch.linalg.svdvals(unit.transpose(0, 1)).sum(dim=-1).mean()
        return {"loss": local_coeff * spread - extent, "extent": extent, "spread": spread}
