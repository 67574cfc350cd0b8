"""The SimCLR method."""

from typing import Any

from torch import Tensor
from typing_extensions import override

from msssl.losses import simclr_loss
from msssl.losses._common import check_positive
from msssl.methods.module import MultiViewModule


class SimCLR(MultiViewModule):
    """SimCLR for K >= 2 views; the loss is `msssl.losses.simclr_loss`.

    Args:
        temperature: 0.15 is best for the small batches of one GPU (Bordes et al. 2023).
        **kwargs: arguments of `MultiViewModule`.

    Raises:
        ValueError: the temperature is not above 0.
    """

    def __init__(self, temperature: float = 0.15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = check_positive("temperature", temperature)

    @override
    def compute_loss(self, z: Tensor) -> dict[str, Tensor]:
        return simclr_loss(z, temperature=self.temperature)
