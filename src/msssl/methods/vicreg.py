"""The VICReg method."""

from typing import Any

from torch import Tensor
from typing_extensions import override

from msssl.losses import vicreg_loss
from msssl.losses._common import check_weight
from msssl.losses.vicreg import Form
from msssl.methods.module import MultiViewModule


class VICReg(MultiViewModule):
    """VICReg for K >= 2 views; the loss is `msssl.losses.vicreg_loss`.

    Args:
        sim_coeff: weight of the invariance.
        std_coeff: weight of the variance.
        cov_coeff: weight of the covariance.
        form: `mean` or `pairs`; see the loss.
        **kwargs: arguments of `MultiViewModule`.

    Raises:
        ValueError: a weight is negative.
    """

    def __init__(
        self,
        sim_coeff: float = 25.0,
        std_coeff: float = 25.0,
        cov_coeff: float = 1.0,
        form: Form = "mean",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sim_coeff = check_weight("sim_coeff", sim_coeff)
        self.std_coeff = check_weight("std_coeff", std_coeff)
        self.cov_coeff = check_weight("cov_coeff", cov_coeff)
        self.form: Form = form

    @override
    def compute_loss(self, z: Tensor) -> dict[str, Tensor]:
        return vicreg_loss(
            z, sim_coeff=self.sim_coeff, std_coeff=self.std_coeff, cov_coeff=self.cov_coeff, form=self.form
        )
