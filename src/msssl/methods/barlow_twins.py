"""The Barlow Twins method."""

from typing import Any, Literal

from torch import Tensor
from typing_extensions import override

from msssl.losses import barlow_twins_loss
from msssl.losses._common import check_weight
from msssl.losses.barlow_twins import Form
from msssl.methods.module import MultiViewModule


class BarlowTwins(MultiViewModule):
    """Barlow Twins for K >= 2 views; the loss is `msssl.losses.barlow_twins_loss`.

    Args:
        beta: weight of the redundancy; `auto` is 5 / proj_dim, so that a small projector works untuned.
        form: `mean`, `pairs` or `eq10`; see the loss.
        **kwargs: arguments of `MultiViewModule`.

    Raises:
        ValueError: beta is negative.
    """

    def __init__(self, beta: float | Literal["auto"] = "auto", form: Form = "mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.form: Form = form
        self.beta = 5 / self.proj_dim if beta == "auto" else check_weight("beta", float(beta))
        if "beta" in self.hparams:  # a checkpoint keeps the number, whatever the rule becomes
            self.hparams["beta"] = self.beta

    @override
    def compute_loss(self, z: Tensor) -> dict[str, Tensor]:
        return barlow_twins_loss(z, beta=self.beta, form=self.form)
