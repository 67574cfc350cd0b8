"""`RandomDirections`, the base of methods whose loss looks at embeddings along random directions."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from msssl.batch import StepOutput, ViewsBatch
from msssl.errors import UserError
from msssl.methods.module import MultiViewModule


class RandomDirections(MultiViewModule):
    """A method with S random directions, unit columns of the buffer `directions` (D, S).

    New directions are drawn before each optimizer step, from the seed of the run and the number of the step. So they
    are the same on all ranks, for all batches whose gradients are accumulated, and in a resumed run; and the loss stays
    a function of z, since nothing is drawn within it.

    Where views have several sizes, `n_targets` is the number of the large ones, with whose mean all views are compared.

    Args:
        n_directions: S.
        **kwargs: arguments of `MultiViewModule`.

    Raises:
        ValueError: n_directions is below 1.
    """

    directions: Tensor

    def __init__(self, n_directions: int = 256, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if n_directions < 1:
            raise UserError(f"n_directions is {n_directions}: expected at least 1")
        self.n_directions = n_directions
        self.n_targets: int | None = None  # all of the views
        directions = torch.empty(self.proj_dim, n_directions)
        self.register_buffer("directions", _fill(directions, torch.Generator().manual_seed(0)))

    @override
    def training_step(self, batch: ViewsBatch, batch_idx: int) -> StepOutput:
        views = batch["views"]
        self.n_targets = len(views[0]) if isinstance(views, list) else None
        try:
            return super().training_step(batch, batch_idx)
        finally:
            self.n_targets = None

    @override
    def on_train_batch_start(self, batch: ViewsBatch, batch_idx: int) -> None:
        _fill(self.directions, self.step_generator())


@torch.no_grad()
def _fill(directions: Tensor, generator: torch.Generator) -> Tensor:
    """Fill with columns of unit length, in place."""
    return directions.copy_(F.normalize(directions.normal_(generator=generator), dim=0))
