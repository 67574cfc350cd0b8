"""The learning-rate schedule of most recipes."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override


class WarmupCosine(LambdaLR):
    """Learning rates that rise linearly to those of the optimizer, then fall along half a cosine, step by step.

    Args:
        optimizer: whose learning rates are the highest.
        warmup: share of the steps in which they rise, in [0, 1).
        final: share of the learning rate that is left at the end, in [0, 1].
        total_steps: of the run; `MultiViewModule` fills it in from its trainer.

    The rate is a function of how much of the run is behind it. So a run that goes on with another number of steps an
    epoch (another `batch_size`, say) goes on at the same rate, and one that has been made longer is where a run that
    had been so long from the start would be. Either ends at `final`.

    Raises:
        ValueError: a share outside its range.

    Source: Loshchilov and Hutter 2017 (arXiv:1608.03983) without restarts; the warm-up of Goyal et al. 2017.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = WarmupCosine(optimizer, warmup=0.4, total_steps=5)
    >>> rates = []
    >>> for _ in range(5):
    ...     rates += schedule.get_last_lr()
    ...     optimizer.step()
    ...     schedule.step()
    >>> [round(rate, 2) for rate in rates]
    [0.5, 1.0, 1.0, 0.75, 0.25]
    """

    def __init__(
        self, optimizer: Optimizer, warmup: float = 0.1, final: float = 0.0, total_steps: int | None = None
    ) -> None:
        if not (0 <= warmup < 1 and 0 <= final <= 1):
            raise ValueError(
                f"warmup is {warmup} and final {final}: expected shares of the steps and the learning rate"
            )
        self.warmup = warmup
        self.final = final
        self.total_steps = total_steps
        super().__init__(optimizer, self._factor)

    def fill_in(self, total_steps: float, step: int | None = None) -> None:
        """Set the number of steps, and with it the learning rate of the next.

        Args:
            total_steps: of the whole run.
            step: how many of these are behind it; by default those that the schedule has counted.

        Raises:
            ValueError: an endless run.
        """
        if total_steps == math.inf:
            raise ValueError("WarmupCosine needs an end: give trainer.max_epochs or trainer.max_steps")
        self.total_steps = int(total_steps)
        self.last_epoch = self.last_epoch if step is None else step  # torch's name for the steps taken
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * self._factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _factor(self, step: int) -> float:
        if self.total_steps is None:  # until it is filled in
            return 1.0
        rising = round(self.warmup * self.total_steps)
        if step < rising:
            return (step + 1) / rising
        done = min(1.0, (step - rising) / max(1, self.total_steps - rising))
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2

    @override
    def state_dict(self) -> dict[str, Any]:
        kept = super().state_dict()
        return {name: value for name, value in kept.items() if name not in ("warmup", "final", "total_steps")}
