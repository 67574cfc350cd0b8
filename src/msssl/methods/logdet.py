"""The LogDet method: CorInfoMax for any number of views, and the total coding rate of EMP-SSL."""

from typing import Any

from torch import Tensor
from typing_extensions import override

from msssl.losses import logdet_loss
from msssl.losses.logdet import Form, weights_of
from msssl.methods.module import MultiViewModule


class LogDet(MultiViewModule):
    """LogDet for K >= 2 views; the loss is `msssl.losses.logdet_loss`.

    Args:
        alpha: weight of the invariance; by default 4 for `logdet`, and the published 200 for `tcr`.
        form: `logdet` or `tcr`; see the loss.
        eps: 1e-4 for `logdet` and 0.2 for `tcr` by default.
        **kwargs: arguments of `MultiViewModule`; `logdet` needs a `proj_dim` below the number of images in a batch.

    Raises:
        ValueError: the form is unknown, alpha is negative, or eps is not positive.
    """

    def __init__(
        self, alpha: float | None = None, form: Form = "logdet", eps: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.alpha, self.eps = weights_of(form, alpha, eps)
        self.form: Form = form

    @override
    def compute_loss(self, z: Tensor) -> dict[str, Tensor]:
        return logdet_loss(z, alpha=self.alpha, form=self.form, eps=self.eps)
