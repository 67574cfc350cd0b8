"""Communication between ranks: gathers embeddings with autograd, rows of tensors and small objects."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from msssl.errors import UserError

CHUNK_BYTES = 1 << 25  # that each rank sends at a time, so that a GPU never holds all rows of all ranks


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

    The gradient is summed over the ranks, in float32 at least, and then rounded to the type of z: pass `z.float()` for
    a gradient in float32. DDP's mean over the W ranks then gives the gradient of one process with the global batch.

    Unequal shapes are not detected here, since the host would have to wait for the device: use `check_equal_shapes`.

    Args:
        z: shape (K, N, D) on each of W ranks, the same shape on every rank.

    Returns:
        Shape (K, W*N, D), within each view in the order of the ranks, the same on every rank; in a single process z
        itself.

    >>> z = torch.randn(4, 8, 2)
    >>> gather(z) is z
    True
    """
    if _is_single_process():
        return z
    gathered: Tensor = _Gather.apply(z.contiguous())
    return gathered


def gather_objects(value: Any) -> list[Any]:
    """The objects of all ranks, in the order of the ranks; waits for all of them.

    Objects are pickled, and under NCCL copied through the memory of the GPU, so they should be small: use `gather_rows`
    for tensors.
    """
    if _is_single_process():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_rows(batches: Sequence[tuple[Tensor, ...]], *, on_first_rank_only: bool = False) -> tuple[Tensor, ...]:
    """Concatenate the rows of all batches of all ranks, sorted by their index; waits for all ranks.

    Rows are sent in chunks of `CHUNK_BYTES`, so that a GPU never holds all of them.

    Args:
        batches: the batches of this rank, which may have none. Each is a tuple of tensors whose first one is the index,
            such as index (n,), features (n, F) and label (n,). n may differ between batches and ranks, and may be 0;
            other dimensions and the types are the same everywhere.
        on_first_rank_only: whether only the first rank gets the result, so that other ranks need no memory for it.

    Returns:
        A tuple with a tensor for each of the tensors of a batch, on the same device (on the CPU, if this rank has no
        batches). It is empty if no rank has a batch, and on ranks that do not get the result.
    """
    columns = [torch.cat(column) for column in zip(*batches, strict=True)]
    if _is_single_process():
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
    position = torch.arange(sum(counts))  # row of the result for each gathered row
    gathered: list[Tensor] = []
    for column in columns:
        result = column.new_empty(sum(counts), *column.shape[1:])
        _gather_column(column, counts, result, position.to(column.device))
        if not gathered:  # this is the index, which determines the positions of the rows
            order = result.argsort(stable=True)
            position[order.cpu()] = torch.arange(len(order))
            result = result[order]
        gathered.append(result)
    return tuple(gathered)


def _gather_column(
    column: Tensor, counts: list[int], result: Tensor | None = None, position: Tensor | None = None
) -> None:
    """Send this rank's rows in chunks, and write those of all ranks to their positions in the result, if it is given.

    Args:
        column: the rows of this rank.
        counts: number of rows of each rank.
        result: tensor for the rows of all ranks.
        position: row of the result for each row, in the order of the ranks.
    """
    width = math.prod(column.shape[1:])
    own = column.contiguous().view(len(column), width).view(torch.uint8)  # bytes, which every backend can send
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
        for part, offset, count in zip(parts, first, counts, strict=True):
            n = min(len(part), max(0, count - start))
            rows = part[:n].flatten().to(result.device).view(column.dtype).view(n, *column.shape[1:])
            result[position[offset + start : offset + start + n]] = rows


class BackgroundMaximum:
    """Finds the largest number of all ranks in the background, while they go on with other work.

    It communicates through gloo, on CPUs, whatever the backend of the default group is, and so never waits for a GPU.
    All ranks must create it and call its methods in the same order.
    """

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo")
        self._pending: tuple[Tensor, Any] | None = None

    def begin(self, number: int) -> None:
        """Send this rank's number; the result of the last call must have been taken before."""
        largest = torch.tensor(number)
        self._pending = largest, dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def take(self) -> int:
        """The largest of the numbers that were sent last, or 0 if there are none; waits for those that are missing."""
        if self._pending is None:
            return 0
        (largest, work), self._pending = self._pending, None
        work.wait()
        return int(largest)

    def close(self) -> None:
        """Close the connections between the ranks."""
        self.take()
        dist.destroy_process_group(self._group)


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process and number of processes in torch's default group; (0, 1) without a group."""
    return (0, 1) if _is_single_process() else (dist.get_rank(), dist.get_world_size())


def check_equal_shapes(z: Tensor) -> None:
    """Raise ValueError on every rank if the tensors of the ranks differ in shape; waits for all ranks."""
    shapes = gather_objects(tuple(z.shape))
    if len(set(shapes)) > 1:
        listed = ", ".join(f"{shape} on rank {rank}" for rank, shape in enumerate(shapes))
        raise UserError(f"embeddings have shape {listed}: every rank needs the same number of images and views")


def _is_single_process() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
