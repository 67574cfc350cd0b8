"""The LogDet method: CorInfoMax for any number of views, and the total coding rate of EMP-SSL."""

from typing import Any

from torch import Tensor
from typing_extensions import override

from msssl.errors import UserError
from msssl.losses import logdet_loss
from msssl.losses.logdet import Form
from msssl.methods.module import MultiViewModule


class LogDet(MultiViewModule):
    """LogDet for K >= 2 views; the loss is `msssl.losses.logdet_loss`.

    Args:
        alpha: weight of the invariance; 4 suits the form `logdet`, and 200 is the published one of `tcr`.
        form: `logdet` or `tcr`; see the loss.
        eps: 1e-4 for `logdet` and 0.2 for `tcr` by default.
        **kwargs: arguments of `MultiViewModule`; `logdet` needs a `proj_dim` below the number of images in a batch.

    Raises:
        ValueError: alpha is negative.
    """

    def __init__(self, alpha: float = 4.0, form: Form = "logdet", eps: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if alpha < 0:
            raise UserError(f"alpha is {alpha}: a weight is at least 0")
        self.alpha = alpha
        self.form: Form = form
        self.eps = eps

    @override
    def compute_loss(self, z: Tensor) -> dict[str, Tensor]:
        return logdet_loss(z, alpha=self.alpha, form=self.form, eps=self.eps)
