"""The MMCR method: maximum manifold capacity representations."""

from typing import Any

from torch import Tensor
from typing_extensions import override

from msssl.losses import mmcr_loss
from msssl.losses._common import check_weight
from msssl.methods.module import MultiViewModule


class MMCR(MultiViewModule):
    """MMCR for K >= 2 views; the loss is `msssl.losses.mmcr_loss`, whose singular values synchronise with the GPU.

    Args:
        local_coeff: weight of the spread of an image's views.
        **kwargs: arguments of `MultiViewModule`.

    Raises:
        ValueError: the weight is negative.
    """

    def __init__(self, local_coeff: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.local_coeff = check_weight("local_coeff", local_coeff)

    @override
    def compute_loss(self, z: Tensor) -> dict[str, Tensor]:
        return mmcr_loss(z, local_coeff=self.local_coeff)
