"""The spectral contrastive loss for any number of views."""

import torch
from torch import Tensor

from msssl.losses._common import check_embeddings, energy, mean_pair_product


def spectral_contrastive_loss(z: Tensor) -> dict[str, Tensor]:
    r"""Spectral contrastive loss for K >= 2 views, at O(K) cost.

    Let zb_{-k} be the mean of all views except k:

        alignment  = 1/(K N) sum_{k,n} z_kn . zb_{-k,n}, each view against the mean of the others
        repulsion  = mean over all views k, l and images n != m of (z_kn . z_lm)^2
        loss       = repulsion - 2 alignment

    The sum of squares needs no loop over pairs: it is ||Z Z^T||_F^2 of all K N embeddings Z, computed by the smaller of
    Z Z^T and Z^T Z, minus the squares of pairs within an image.

    Args:
        z: projector outputs, shape (K, N, D), not normalised: the loss fixes their scale. Not modified.

    Returns:
        Scalars `loss`, `alignment` and `repulsion`; float32, or float64 if z is.

    Raises:
        ValueError: z is not 3-D, K < 2 or N < 2; the message holds the shape.

    Source: HaoChen et al. 2021 (arXiv:2106.04156), eq. 6; Ghosh et al. 2024 (NeurIPS), appendix C.2, eq. 44, for the
    alignment with the mean of the views. Differs: the mean here leaves out the view itself, so that the alignment is
    the average over pairs; and the repulsion uses all views of both images, not one view of each.

    >>> z = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]).expand(2, 2, 2)  # z_1 . z_1 = 1, z_2 . z_2 = 2, z_1 . z_2 = 1
    >>> {name: value.item() for name, value in spectral_contrastive_loss(z).items()}
    {'loss': -2.0, 'alignment': 1.5, 'repulsion': 1.0}
    """
    z = check_embeddings(z)
    n_views, n_images, _ = z.shape
    with torch.autocast(z.device.type, enabled=False):
        alignment = mean_pair_product(z)
        within = energy(z.transpose(0, 1)).sum()
        repulsion = (energy(z.flatten(0, 1)) - within) / (n_views**2 * n_images * (n_images - 1))
        return {"loss": repulsion - 2 * alignment, "alignment": alignment, "repulsion": repulsion}
