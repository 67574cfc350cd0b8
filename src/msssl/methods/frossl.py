"""The FroSSL method."""

from typing import Any

from torch import Tensor
from typing_extensions import override

from msssl.losses import frossl_loss
from msssl.losses._common import check_weight
from msssl.methods.module import MultiViewModule


class FroSSL(MultiViewModule):
    """FroSSL for K >= 2 views; the loss is `msssl.losses.frossl_loss`.

    Args:
        weight: of the invariance.
        **kwargs: arguments of `MultiViewModule`.

    Raises:
        ValueError: the weight is negative.
    """

    def __init__(self, weight: float = 8.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weight = check_weight("weight", weight)

    @override
    def compute_loss(self, z: Tensor) -> dict[str, Tensor]:
        return frossl_loss(z, weight=self.weight)
