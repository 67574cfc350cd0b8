"""The optimizer and its learning-rate schedule (`WarmupCosine`), in a fresh run and in one that is resumed."""

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from msssl.errors import UserError

# Entries of a parameter group that a resumed run keeps: the learning rate is scaled instead, and the last two say on
# which device the state is.
_KEPT_FROM_CHECKPOINT = ("params", "lr", "initial_lr", "fused", "capturable")


def refuse_finders(trainer: Trainer) -> None:
    """Raise ValueError for Lightning's callbacks that tune the learning rate or the batch size."""
    for callback in getattr(trainer, "callbacks", []):
        if isinstance(callback, LearningRateFinder):
            raise UserError(
                "LearningRateFinder is not supported: a loss without labels does not tell which rate is good. Compare "
                "runs with several --model.optimizer.lr by their probe"
            )
        if isinstance(callback, BatchSizeFinder):
            raise UserError(
                "BatchSizeFinder is not supported: what a batch holds changes the loss. Choose --data.batch_size; "
                "where memory ends, --model.chunk_views 1 takes less"
            )


def parameter_groups(
    module: nn.Module, decay_bias_and_norm: bool, backbone: nn.Module | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters in groups: those of the backbone apart, and biases and normalisation without weight decay.

    Args:
        module: whose parameters.
        decay_bias_and_norm: whether biases and normalisation parameters are decayed as the others are.
        backbone: the part whose parameters are groups of their own, with the key `of_backbone`; none by default.
    """
    of_backbone = set() if backbone is None else {id(p) for p in backbone.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for p in module.parameters():
        if p.requires_grad:
            groups.setdefault((id(p) in of_backbone, p.ndim <= 1 and not decay_bias_and_norm), []).append(p)
    apart: dict[bool, dict[str, Any]] = {True: {"of_backbone": True}, False: {}}
    decay: dict[bool, dict[str, Any]] = {True: {"weight_decay": 0.0}, False: {}}
    return [{"params": groups[key], **apart[key[0]], **decay[key[1]]} for key in sorted(groups)]


def scale_backbone_rate(optimizer: Optimizer, scale: float) -> None:
    """Multiply the learning rate of the groups of the backbone; called before the schedule is made."""
    for group in optimizer.param_groups:
        if group.pop("of_backbone", False):
            group["lr"] = group["lr"] * scale


def with_schedule(optimizer: Optimizer, make_lr_scheduler: Callable[[Optimizer], Any] | None) -> Any:
    """The optimizer with its schedule, if there is one, as `configure_optimizers` returns them to Lightning."""
    if make_lr_scheduler is None:
        return optimizer
    scheduler = make_lr_scheduler(optimizer)
    interval = "step" if isinstance(scheduler, WarmupCosine) else "epoch"
    monitor = getattr(scheduler, "monitor", None)  # Lightning's own ReduceLROnPlateau has one
    if monitor is None and isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        monitor = "train/loss"  # which each run has, also without validation
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval, "monitor": monitor}}


def let_clip(optimizer: Optimizer, trainer: Trainer | None) -> None:
    """Allow gradient clipping with a fused optimizer where there is no gradient scaler, such as under bf16.

    Lightning refuses to clip for any optimizer that supports the gradient scaling of float16, even if none is used.
    """
    if trainer is not None and getattr(trainer.precision_plugin, "scaler", None) is None:
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def arguments_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The hyperparameters of each parameter group of a new optimizer."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def take_memory_layout(optimizer: Optimizer) -> None:
    """Give the averages that an optimizer loaded from a checkpoint the memory layout of its parameters.

    The layouts differ where a run without channels-last memory is resumed with it. PyTorch's fused kernels read both in
    memory order: on a CPU they would combine a weight with the average of another weight, without an error.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def take_arguments(optimizer: Optimizer, arguments: list[dict[str, Any]], scheduler: Any) -> None:
    """Give an optimizer that was loaded from a checkpoint the hyperparameters of a new one.

    With a schedule, the current learning rate is scaled in proportion to the new initial one.
    """
    for i, (group, new) in enumerate(zip(optimizer.param_groups, arguments, strict=True)):
        group.update({name: value for name, value in new.items() if name not in _KEPT_FROM_CHECKPOINT})
        if scheduler is None:
            group["lr"] = new["lr"]
        elif "initial_lr" in group and group["initial_lr"] != new["lr"]:
            group["lr"] *= new["lr"] / group["initial_lr"]
            group["initial_lr"] = scheduler.base_lrs[i] = new["lr"]


class WarmupCosine(LambdaLR):
    """Linear warm-up to the learning rate of the optimizer, then cosine decay, step by step.

    Args:
        optimizer: its learning rates are the highest of the schedule.
        warmup: share of the steps in which the rate rises, in [0, 1).
        final: share of the learning rate at the end of the run, in [0, 1].
        total_steps: number of steps of the run; `MultiViewModule` sets it from its trainer.

    The rate depends only on the share of the run that is over. So a run that is resumed with another number of steps in
    an epoch, such as with another `batch_size`, continues at the same rate. A run that is resumed with more epochs has
    the rate of a run that had this length from the start.

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
            raise UserError(f"warmup is {warmup} and final {final}: expected shares of the steps and the learning rate")
        self.warmup = warmup
        self.final = final
        self.total_steps = total_steps
        super().__init__(optimizer, self._factor)

    def fill_in(self, total_steps: float, step: int | None = None) -> None:
        """Set the number of steps of the run, and the learning rate of the next step.

        Args:
            total_steps: number of steps of the run.
            step: number of steps that were taken; by default those that the schedule has counted.

        Raises:
            ValueError: the run has no end.
        """
        if total_steps == math.inf:
            raise UserError("WarmupCosine needs an end: give trainer.max_epochs or trainer.max_steps")
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
        state = super().state_dict()
        return {name: value for name, value in state.items() if name not in ("warmup", "final", "total_steps")}
