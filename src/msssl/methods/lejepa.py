"""The LeJEPA method."""

from typing import Any

from torch import Tensor
from typing_extensions import override

from msssl.losses import lejepa_loss
from msssl.losses._common import check_share
from msssl.methods.random_directions import RandomDirections


class LeJEPA(RandomDirections):
    """LeJEPA for K >= 2 views; the loss is `msssl.losses.lejepa_loss`.

    Args:
        lambda_: weight of the test for a Gaussian distribution.
        n_directions: S, the number of random directions along which the distribution is tested.
        **kwargs: arguments of `MultiViewModule`.
    """

    def __init__(self, lambda_: float = 0.05, n_directions: int = 256, **kwargs: Any) -> None:
        super().__init__(n_directions=n_directions, **kwargs)
        self.lambda_ = check_share("lambda_", lambda_)

    @override
    def compute_loss(self, z: Tensor) -> dict[str, Tensor]:
        return lejepa_loss(z, directions=self.directions, lambda_=self.lambda_, n_targets=self.n_targets)
