"""What a module's arguments say about the optimizer and its schedule, in a fresh run and in one that goes on."""

from collections.abc import Callable
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from torch import Tensor, nn
from torch.optim import Optimizer

from msssl.modules.warmup_cosine import WarmupCosine

_OF_THE_STATE = ("params", "lr", "initial_lr", "fused", "capturable")  # `lr` is scaled; the last two say where state is


def refuse_finders(trainer: Trainer) -> None:
    """Raise ValueError for callbacks of Lightning that set arguments which are not theirs to set here."""
    for callback in getattr(trainer, "callbacks", []):
        if isinstance(callback, LearningRateFinder):
            raise ValueError(
                "LearningRateFinder is not supported: a loss without labels does not tell which rate is good. Compare "
                "runs with several --model.optimizer.lr by their probe"
            )
        if isinstance(callback, BatchSizeFinder):
            raise ValueError(
                "BatchSizeFinder is not supported: what a batch holds changes the loss. Choose --data.batch_size; "
                "where memory ends, --model.chunk_views 1 takes less"
            )


def parameter_groups(module: nn.Module, decay_bias_and_norm: bool) -> list[dict[str, Any]]:
    """The parameters that learn: one group, or one without weight decay for biases and normalisation."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if decay_bias_and_norm:
        return [{"params": parameters}]
    return [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def with_schedule(optimizer: Optimizer, make_lr_scheduler: Callable[[Optimizer], Any] | None) -> Any:
    """What `configure_optimizers` returns."""
    if make_lr_scheduler is None:
        return optimizer
    scheduler = make_lr_scheduler(optimizer)
    interval = "step" if isinstance(scheduler, WarmupCosine) else "epoch"
    monitor = getattr(scheduler, "monitor", None)  # Lightning's own ReduceLROnPlateau has one
    if monitor is None and isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        monitor = "train/loss"  # which each run has, also without validation
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval, "monitor": monitor}}


def let_clip(optimizer: Optimizer, trainer: Trainer | None) -> None:
    """Let Lightning clip gradients for a fused optimizer under bf16, which has no scaler that would be in the way.

    Lightning refuses whatever says that it can undo the scaling of float16, and asks nothing else.
    """
    if trainer is not None and getattr(trainer.precision_plugin, "scaler", None) is None:
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def arguments_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The hyperparameters of each group of a fresh optimizer."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def take_memory_layout(optimizer: Optimizer) -> None:
    """Lay the averages that an optimizer has loaded out in memory as its parameters are.

    They differ where a run goes on with channels last that began without. PyTorch's fused kernels go through both in
    the order of the memory: on a CPU they would pair a weight with the average of another one, without an error.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def take_arguments(optimizer: Optimizer, arguments: list[dict[str, Any]], scheduler: Any) -> None:
    """Give an optimizer that was loaded from a checkpoint the hyperparameters of a fresh one.

    A learning rate under a schedule stays where the schedule has it, in proportion.
    """
    for i, (group, given) in enumerate(zip(optimizer.param_groups, arguments, strict=True)):
        group.update({name: value for name, value in given.items() if name not in _OF_THE_STATE})
        if scheduler is None:
            group["lr"] = given["lr"]
        elif "initial_lr" in group and group["initial_lr"] != given["lr"]:
            group["lr"] *= given["lr"] / group["initial_lr"]
            group["initial_lr"] = scheduler.base_lrs[i] = given["lr"]
