"""The MV-DHEL method."""

from typing import Any

from torch import Tensor
from typing_extensions import override

from msssl.losses import mvdhel_loss
from msssl.losses._common import check_positive
from msssl.methods.module import MultiViewModule


class MVDHEL(MultiViewModule):
    """MV-DHEL for K >= 2 views; the loss is `msssl.losses.mvdhel_loss`.

    Args:
        temperature: tau, above 0.
        **kwargs: arguments of `MultiViewModule`.

    Raises:
        ValueError: the temperature is not above 0.
    """

    def __init__(self, temperature: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = check_positive("temperature", temperature)

    @override
    def compute_loss(self, z: Tensor) -> dict[str, Tensor]:
        return mvdhel_loss(z, temperature=self.temperature)
