"""The VISReg method."""

from typing import Any

from torch import Tensor
from typing_extensions import override

from msssl.losses import visreg_loss
from msssl.losses._common import check_share
from msssl.methods.random_directions import RandomDirections


class VISReg(RandomDirections):
    """VISReg for K >= 2 views; the loss is `msssl.losses.visreg_loss`.

    Args:
        lambda_: weight of center, scale and shape together; 0.6 suits small data sets and 0.9 large ones.
        n_directions: S, the number of random directions along which the shape is compared; the authors take 4096.
        **kwargs: arguments of `MultiViewModule`.
    """

    def __init__(self, lambda_: float = 0.6, n_directions: int = 1024, **kwargs: Any) -> None:
        super().__init__(n_directions=n_directions, **kwargs)
        self.lambda_ = check_share("lambda_", lambda_)

    @override
    def compute_loss(self, z: Tensor) -> dict[str, Tensor]:
        return visreg_loss(z, directions=self.directions, lambda_=self.lambda_, n_targets=self.n_targets)
