"""The spectral contrastive method."""

from torch import Tensor
from typing_extensions import override

from msssl.losses import spectral_contrastive_loss
from msssl.methods.module import MultiViewModule


class SpectralContrastive(MultiViewModule):
    """Spectral contrastive learning for K >= 2 views; the loss is `msssl.losses.spectral_contrastive_loss`."""

    @override
    def compute_loss(self, z: Tensor) -> dict[str, Tensor]:
        return spectral_contrastive_loss(z)
