"""What ranks tell each other: embeddings with autograd, rows of tensors, small objects, a number in the background."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from msssl.errors import UserError

CHUNK_BYTES = 1 << 25  # that a rank sends of its rows at a time: a GPU holds this much for each rank, not all rows


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
    """A small object of each rank, in the order of the ranks; waits for all of them.

    It is pickled, and under NCCL passes through the memory of the GPU: tensors go through `gather_rows`.
    """
    if _alone():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_rows(batches: Sequence[tuple[Tensor, ...]], *, on_first_rank_only: bool = False) -> tuple[Tensor, ...]:
    """The rows of all ranks, in the order of their index, which is that of one process; waits for all ranks.

    They are sent in parts of `CHUNK_BYTES`, so that a GPU never holds all of them.

    Args:
        batches: of this rank, none or more. Each is a tuple of tensors, such as index (n,), features (n, F) and label
            (n,); n may be 0 and differ between batches and ranks, the rest of shapes and types is the same everywhere.
            The index comes first.
        on_first_rank_only: whether the other ranks get nothing, and need no memory for it.

    Returns:
        Each of the tensors, of all batches of all ranks, on the device of this rank's own (the CPU, where it has no
        batches); an empty tuple where no rank has a batch, and on the ranks that get nothing.
    """
    columns = [torch.cat(column) for column in zip(*batches, strict=True)]
    if _alone():
        order = columns[0].argsort(stable=True) if columns else None
        return tuple(column[order] for column in columns)
    layouts = gather_objects([(len(column), column.shape[1:], column.dtype) for column in columns])
    counts = [layout[0][0] if layout else 0 for layout in layouts]
    layout: list[Any] = next(filter(None, layouts), [])
    columns = columns or [torch.empty(0, *shape, dtype=dtype) for _, shape, dtype in layout]
    if on_first_rank_only and dist.get_rank() > 0:
        for column in columns:
            _gather_column(column, counts)
        return ()
    position = torch.arange(sum(counts))  # of the rows in the result
    gathered: list[Tensor] = []
    for column in columns:
        result = column.new_empty(sum(counts), *column.shape[1:])
        _gather_column(column, counts, result, position.to(column.device))
        if not gathered:  # the index, from which it is known where the rows of the others belong
            order = result.argsort(stable=True)
            position[order.cpu()] = torch.arange(len(order))
            result = result[order]
        gathered.append(result)
    return tuple(gathered)


def _gather_column(
    column: Tensor, counts: list[int], result: Tensor | None = None, position: Tensor | None = None
) -> None:
    """Send this rank's rows, and put those of all ranks, `counts` of each, at their positions in the result, if any."""
    width = math.prod(column.shape[1:])
    own = column.contiguous().view(len(column), width).view(torch.uint8)  # bytes, which every backend sends as they are
    step = max(1, CHUNK_BYTES // max(1, own.shape[1]))
    first = [sum(counts[:rank]) for rank in range(len(counts))]
    for start in range(0, max(counts), step):
        sent = own.new_zeros(min(step, max(counts) - start), own.shape[1])
        rows = own[start : start + step]
        sent[: len(rows)] = rows
        sent = sent.cuda() if dist.get_backend() == "nccl" else sent
        parts = [torch.empty_like(sent) for _ in counts]
        dist.all_gather(parts, sent)
        if result is None or position is None:
            continue
        for part, at, count in zip(parts, first, counts, strict=True):
            n = min(len(part), max(0, count - start))
            rows = part[:n].flatten().to(result.device).view(column.dtype).view(n, *column.shape[1:])
            result[position[at + start : at + start + n]] = rows


class BackgroundMaximum:
    """The largest of the ranks' numbers, which is found while they go on with other work: no rank waits for another.

    It needs gloo, on CPUs, whatever the ranks send their tensors by: a GPU is not waited for either. All ranks make it,
    and call its methods, in the same order.
    """

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo")
        self._begun: tuple[Tensor, Any] | None = None

    def begin(self, number: int) -> None:
        """Send this rank's number; what came of one sent before must have been taken."""
        largest = torch.tensor(number)
        self._begun = largest, dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def take(self) -> int:
        """The largest of the numbers that were sent last, 0 if there are none; waits if they are not all here yet."""
        if self._begun is None:
            return 0
        (largest, work), self._begun = self._begun, None
        work.wait()
        return int(largest)

    def close(self) -> None:
        """Free its connections."""
        self.take()
        dist.destroy_process_group(self._group)


def rank_and_world_size() -> tuple[int, int]:
    """Of this process among those of torch's default group; (0, 1) without one."""
    return (0, 1) if _alone() else (dist.get_rank(), dist.get_world_size())


def check_equal_shapes(z: Tensor) -> None:
    """Raise ValueError, on every rank, where the ranks' tensors differ in shape; waits for all of them."""
    shapes = gather_objects(tuple(z.shape))
    if len(set(shapes)) > 1:
        listed = ", ".join(f"{shape} on rank {rank}" for rank, shape in enumerate(shapes))
        raise UserError(f"embeddings have shape {listed}: every rank needs the same number of images and views")


def _alone() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
