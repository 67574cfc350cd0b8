"""Loaders of training and evaluation batches: order of an epoch, shards over ranks, and position after a resume."""

import logging
from collections.abc import Callable, Iterator
from itertools import repeat

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from msssl.batch import Batch, TrainBatch
from msssl.data.pixels.beton_file import BetonBatches, BetonFile
from msssl.data.pixels.decode import Decoded, usable_cores
from msssl.data.pixels.images import BatchRows, Images
from msssl.errors import UserError
from msssl.seeding import derive_seed
from msssl.wording import counted

Batches = DataLoader[Batch] | BetonBatches
log = logging.getLogger(__name__)


class EpochOrder(BatchRows):
    """Sampler of the batches of one rank in an epoch; `set_epoch` as that of torch's `DistributedSampler`.

    The loader that it belongs to lives as long as the run, and so do its worker processes: only the order changes.

    Args:
        rows_of: rows (batches, N) of the batches in an epoch, by its number.
    """

    def __init__(self, rows_of: Callable[[int], Tensor]) -> None:
        super().__init__()
        self._rows_of = rows_of

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Give the batches of this epoch from now on, without the first `start` of them."""
        self.batches = self._rows_of(epoch)[start:]


class TrainLoader:
    """Batches of one seeded permutation per epoch, the same for any number of ranks and workers.

    Global batch i is rows i*W*N to (i+1)*W*N of the permutation of (seed, epoch), and rank r holds rows r*N to
    (r+1)*N of it. The last short batch is dropped. Each batch carries its `epoch` and `batch` as integers, from which
    its views are drawn.

    It is not a `DataLoader`, so that Lightning leaves its order alone, and it carries `state_dict`, so that a
    resumed epoch goes on after the last batch that was handed out.

    Args:
        images: what to read.
        batch_size: N, images per rank.
        seed: of the order.
        epoch: function that is called when an epoch starts, and returns its number; the trainer's count is right after
            a resume too. By default each `iter` starts the next epoch, or finishes that given to `load_state_dict`.
        rank: of this process, below `world_size`.
        world_size: W.
        num_workers: processes that read ahead.
        probe: labelled images that travel along, as many as N, in an order of their own.
        same_order: whether every epoch has the order of the first one.

    Raises:
        ValueError: if a global batch is larger than the set.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        *,
        seed: int,
        epoch: Callable[[], int] | None = None,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        probe: Images | None = None,
        same_order: bool = False,
    ) -> None:
        if len(images) < batch_size * world_size:
            devices = f" on each of {world_size} devices" if world_size > 1 else ""
            raise UserError(
                f"batch_size is {batch_size}{devices}, but {images.name} has {counted(len(images), 'image')}: lower it"
            )
        if isinstance(images.dataset, BetonFile) and images.dataset.quasi_random and world_size > 1:
            raise UserError("order: quasi_random is for one device; the exact order is for any number")
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self._position = {"epoch": -1, "batch": 0}  # batches handed out of that epoch
        self._resume_at: dict[str, int] | None = None
        self.probe = probe
        self.same_order = same_order
        self._orders = EpochOrder(self.order), EpochOrder(self.probe_order)
        self._loader = batches_of(images, self._orders[0], num_workers)
        self._probe_loader = probe and batches_of(probe, self._orders[1], num_workers)

    def __len__(self) -> int:
        return len(self.images) // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[TrainBatch]:
        resume_at, self._resume_at = self._resume_at, None
        epoch = self._next_epoch(resume_at) if self.epoch is None else self.epoch()
        # Lightning also loads a position saved at an epoch's end: it belongs to another epoch.
        start = resume_at["batch"] if resume_at and resume_at["epoch"] == epoch else 0
        self._position = {"epoch": epoch, "batch": start}
        for order in self._orders:
            order.set_epoch(epoch, start)
        probe_batches = self._probe_loader or repeat(None)
        for number, (images, probe) in enumerate(zip(self._loader, probe_batches, strict=False), start):
            self._position = {"epoch": epoch, "batch": number + 1}
            batch = TrainBatch(
                image=images["image"], label=images["label"], index=images["index"], epoch=epoch, batch=number
            )
            if probe is not None:
                batch["probe"] = {"image": probe["image"], "label": probe["label"]}
            yield batch

    def _next_epoch(self, resume_at: dict[str, int] | None) -> int:
        """The one after the last, or the one that was left in the middle."""
        if resume_at is not None and resume_at["batch"] < len(self):
            return resume_at["epoch"]
        return self._position["epoch"] + 1

    def order(self, epoch: int) -> Tensor:
        """Rows of this rank's batches in an epoch, shape (batches, N)."""
        epoch = 0 if self.same_order else epoch
        file = self.images.dataset
        if isinstance(file, BetonFile) and file.quasi_random:
            seed = derive_seed("quasi-random order", self.seed, epoch)
            return self._shard(file.quasi_random_order(self.images.indices, self.batch_size, seed))
        return self._shard(_permutation("order", self.seed, epoch, len(self.images)))

    def probe_order(self, epoch: int) -> Tensor:
        """Rows of the probe images that travel along, of the same shape; none without them."""
        if self.probe is None:
            return torch.empty(0)
        rows = _permutation("probe order", self.seed, 0 if self.same_order else epoch, len(self.probe))
        return self._shard(rows[torch.arange(len(self.images)) % len(rows)])

    def _shard(self, rows: Tensor) -> Tensor:
        whole = rows[: len(self) * self.world_size * self.batch_size]
        return whole.view(len(self), self.world_size, self.batch_size)[:, self.rank]

    def state_dict(self) -> dict[str, int]:
        """Epoch, the number of its batches that were handed out, and of all its batches."""
        return {**self._position, "batches": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the last batch that was handed out, if it belongs to the epoch that comes.

        If the saved epoch had a different number of batches, the same fraction of the new one is skipped.
        """
        batch = state["batch"] * len(self) // state.get("batches", len(self))
        self._position = self._resume_at = {"epoch": state["epoch"], "batch": batch}


class EvaluationLoader:
    """Every image once: rank r reads images r, r + W, ...; all ranks take the same number of batches.

    Equal counts matter because a module under DDP synchronises its buffers in every forward pass.
    """

    def __init__(
        self, images: Images, batch_size: int, *, rank: int = 0, world_size: int = 1, num_workers: int = 0
    ) -> None:
        per_rank = -(-len(images) // world_size)
        n_batches = -(-per_rank // batch_size)
        if len(images) // world_size < n_batches:
            has = counted(len(images), "image")
            raise UserError(f"{images.name} has {has} for {world_size} devices: too few to share")
        self.images = images
        rows = torch.arange(rank, len(images), world_size)
        self._loader = batches_of(images, BatchRows(rows.tensor_split(n_batches)), num_workers)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)

    def pixels(self, rows: Tensor) -> Tensor:
        """Images (n, C, H, W), as they are read, of some rows (n,) of the split."""
        (batch,) = batches_of(self.images, BatchRows([rows]), num_workers=0)
        return batch["image"]


def _permutation(purpose: str, seed: int, epoch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(purpose, seed, epoch))
    return torch.randperm(length, generator=generator)


def batches_of(images: Images, batches: BatchRows, num_workers: int) -> Batches:
    """Batches of images, by their rows, read ahead by as many processes (threads, for FFCV)."""
    num_workers = min(num_workers, usable_cores())
    if isinstance(images.dataset, BetonFile):
        return BetonBatches(images.dataset, images.indices, batches, num_workers)
    pin_memory = torch.cuda.is_available()
    if isinstance(images.dataset, Decoded):
        pin_memory &= not images.dataset.images.is_cuda
        num_workers = num_workers if images.dataset.mapped else 0  # memory is read faster than it is handed over
    return DataLoader(
        images,
        batch_size=None,  # `Images` reads whole batches
        sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # its base seed must not come from the global state, which dropout uses
    )


def compare_global_batch(now: int, before: int) -> None:
    """Say what it means that a run goes on with another number of images in a batch of all devices."""
    if now != before:
        log.warning(
            "the global batch is %d images, and was %d: the loss compares another number of images, so its values "
            "before and after cannot be compared, and each image has %.3g times the learning rate that it had; "
            "%.3g times --model.optimizer.lr would keep that",
            *(now, before, before / now, now / before),
        )
