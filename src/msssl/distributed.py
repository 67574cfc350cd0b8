"""What ranks tell each other: embeddings, with autograd, and a few plain objects."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.n_images = z.shape[1]
        parts = [torch.empty_like(z) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, z)
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # In float32 at least: in bf16 each addition would round to three digits.
        exact = torch.promote_types(grads[0].dtype, torch.float32)
        grad = grads[0].to(exact, memory_format=torch.contiguous_format, copy=True)
        dist.all_reduce(grad)  # summed: DDP's mean over ranks then leaves the gradient of the global loss
        return grad.narrow(1, dist.get_rank() * ctx.n_images, ctx.n_images).to(grads[0].dtype)


def gather(z: Tensor) -> Tensor:
    """Concatenate the embeddings of all ranks along the images, with autograd.

    Args:
        z: shape (K, N, D) on each of W ranks, the same N on every rank.

    Returns:
        Shape (K, W*N, D), rank-major within a view, the same on every rank; z itself in a single process.
        The gradient is that of one process times W, which DDP's mean over ranks divides by again: exact to float32,
        then rounded to the type of z. Give it z.float() for a loss in float32.
        Unequal shapes are not noticed here, where it would take a wait for the device: see `check_equal_shapes`.

    >>> z = torch.randn(4, 8, 2)
    >>> gather(z) is z
    True
    """
    if _alone():
        return z
    gathered: Tensor = _Gather.apply(z.contiguous())
    return gathered


def gather_objects(value: Any) -> list[Any]:
    """A plain object of each rank, in their order; waits for all of them."""
    if _alone():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_rows(batches: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The rows of all ranks' batches, in the order of the first tensor of each, which is that of one process."""
    parts = [batch for share in gather_objects(batches) for batch in share]
    rows = [torch.cat(each) for each in zip(*parts, strict=True)]
    order = rows[0].argsort()
    return tuple(each[order] for each in rows)


def rank_and_world_size() -> tuple[int, int]:
    """Of this process among those of torch's default group; (0, 1) without one."""
    return (0, 1) if _alone() else (dist.get_rank(), dist.get_world_size())


def check_equal_shapes(z: Tensor) -> None:
    """Raise ValueError, on every rank, where the ranks' tensors differ in shape; waits for all of them."""
    shapes = gather_objects(tuple(z.shape))
    if len(set(shapes)) > 1:
        listed = ", ".join(f"{shape} on rank {rank}" for rank, shape in enumerate(shapes))
        raise ValueError(f"embeddings have shape {listed}: every rank needs the same number of images and views")


def _alone() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
