"""Where decoded images are kept: in memory, in a mapped file, or nowhere."""

import csv
import functools
import logging
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Trainer
from torch.utils.data import Dataset

from msssl.data.pixels import cache
from msssl.data.pixels.beton_file import BetonFile
from msssl.data.pixels.decode import Decoded, check, decode, image_kind, usable_cores
from msssl.data.pixels.item import UnreadableImageError, is_readable, why_not_fixed
from msssl.data.pixels.labels import fingerprint, strings_of
from msssl.data.pixels.pixel_format import ImageKind
from msssl.distributed import gather_objects
from msssl.errors import UserError
from msssl.run.files import atomic_write
from msssl.wording import counted

StorageKind = Literal["auto", "memory", "cached", "stream"]
MEMORY_LIMIT = 8 << 30  # of `auto`, in bytes: what is decoded anew at each start
SHARE = 0.25  # of the machine's or the GPU's memory that images may take
_ON_DEVICE: weakref.WeakSet[Decoded] = weakref.WeakSet()  # data sets on a GPU, of all data modules of this process
log = logging.getLogger(__name__)


class Storage:
    """Opens data sets, each once, in the storage that was asked for.

    Args:
        kind: `memory` decodes once, to a tensor on the GPU as long as all data sets there take no more than a quarter
            of its memory, else on the host; `cached` maps a file that is kept between runs; `stream` reads and decodes
            each time; `auto` is the first of these that fits. A data set whose pixels change is never kept.
        cache_dir: folder of the caches.
        parallel: whether to decode on all cores.
        skip: whether unreadable images are left out.
        trainer: of the run, for its device.

    Attributes:
        folder: of the run, where this process writes there.
        chosen: what was chosen and why, by data set.
    """

    def __init__(
        self, kind: StorageKind, cache_dir: str, *, parallel: bool, skip: bool, trainer: Trainer | None
    ) -> None:
        self.kind = kind
        self.cache_dir = Path(cache_dir)
        self.parallel = parallel
        self.skip = skip
        self.device = trainer.strategy.root_device if trainer else torch.device("cpu")
        self.n_devices = trainer.num_devices if trainer else 1
        self.folder = Path(trainer.default_root_dir) if trainer and trainer.is_global_zero else None
        self.chosen: dict[str, str] = {}
        self._trainer = trainer
        self._taken = 0
        self._opened: dict[int, tuple[Dataset[Any], Dataset[Any]]] = {}
        self._kinds: dict[int, ImageKind] = {}

    def kind_of(self, dataset: Dataset[Any], name: str) -> ImageKind:
        """The kind of a data set's images, which the first one is read for."""
        if id(dataset) not in self._kinds:
            known: ImageKind | None = getattr(dataset, "kind", None)
            self._kinds[id(dataset)] = known or image_kind(dataset, name, self.skip)
        return self._kinds[id(dataset)]

    def open(self, dataset: Dataset[Any], name: str) -> Dataset[Any]:
        """The data set itself, or `Decoded`; logs which and why."""
        if id(dataset) not in self._opened:
            self._opened[id(dataset)] = dataset, self._open(dataset, name)  # both, so that no other gets its id
        return self._opened[id(dataset)][1]

    def _open(self, dataset: Dataset[Any], name: str) -> Dataset[Any]:
        if isinstance(dataset, BetonFile):
            self._log_choice(name, f"FFCV, {dataset.path}")
            return dataset
        images = self.kind_of(dataset, name)
        n_bytes = len(dataset) * images.n_bytes  # type: ignore[arg-type]

        @functools.cache  # it may read all of a set that fits into memory
        def folder() -> Path | None:
            content = fingerprint(dataset)
            return cache.path_in(self.cache_dir, content, images) if content else None

        changing = why_not_fixed(dataset, name)
        kind, reason = ("stream", changing) if changing else self.choose(n_bytes, folder)
        if self._trainer is not None:  # memory and disks may differ between ranks
            kind, reason, changing = self._trainer.strategy.broadcast((kind, reason, changing))
        if changing and self.kind not in ("auto", "stream"):
            raise UserError(
                f"storage: {self.kind} would keep the first pixels of each image for the whole run, but {changing}: "
                "take storage: stream, or transforms that are not random"
            )
        self._log_choice(name, f"{kind}, {readable(n_bytes)} of {images}; {reason}")
        if kind == "stream":
            return dataset
        opened = (
            self._cached(dataset, name, images, folder())
            if kind == "cached"
            else self._in_memory(dataset, name, images)
        )
        if opened.unreadable and not self.skip:
            raise UnreadableImageError(next(iter(opened.unreadable.values())))
        return opened

    def _log_choice(self, name: str, choice: str) -> None:
        self.chosen[name] = choice
        log.info("storage of %s: %s", name, choice)

    def choose(self, n_bytes: int, find_folder: Callable[[], Path | None]) -> tuple[StorageKind, str]:
        """The kind, and why.

        Args:
            n_bytes: of the decoded images.
            find_folder: the folder of their cache; None where they cannot be cached.
        """
        if self.kind != "auto":
            return self.kind, "as asked for"
        limit = (min(MEMORY_LIMIT, int(SHARE * _memory())) - self._taken) // self.n_devices
        if n_bytes <= limit:
            return "memory", f"it fits into {readable(limit)}"
        too_large = f"it does not fit into {readable(max(0, limit))} of memory"
        folder = find_folder()
        if folder is None:
            return "stream", f"{too_large}, and a data set without a fingerprint cannot be cached"
        if folder.is_dir():
            return "cached", f"{too_large}; found in {self.cache_dir}"
        place = _existing(self.cache_dir)
        if not os.access(place, os.W_OK):
            return "stream", f"{too_large}, and {self.cache_dir} cannot be written (cache_dir says where else)"
        free = shutil.disk_usage(place).free
        if n_bytes > 0.9 * free:
            return "stream", f"{too_large} nor on the disk of {self.cache_dir} ({readable(free)} free)"
        return "cached", f"{too_large}; in {self.cache_dir}"

    def _cached(self, dataset: Dataset[Any], name: str, kind: ImageKind, folder: Path | None) -> Decoded:
        if folder is None:
            raise UserError(
                f"storage: cached needs to tell whether {name} is what was cached: give {type(dataset).__name__} an "
                "attribute `fingerprint`, a string that names its content, or take storage: memory or stream"
            )
        chunks = decode(dataset, name, kind, usable_cores() if self.parallel else 0, self.skip)
        n_images = len(dataset)  # type: ignore[arg-type]
        return cache.load_or_build(
            folder,
            n_images,
            kind,
            chunks,
            still_unreadable=lambda index: not is_readable(dataset, index, name, kind),
            paths=strings_of(dataset, "paths"),
        )

    def _in_memory(self, dataset: Dataset[Any], name: str, kind: ImageKind) -> Decoded:
        images = torch.empty(len(dataset), *kind.shape, dtype=kind.dtype)  # type: ignore[arg-type]
        targets = torch.empty(len(images), dtype=torch.long)
        unreadable: dict[int, str] = {}
        start = 0
        num_workers = max(1, usable_cores() // self.n_devices) if self.parallel else 0  # every rank decodes
        for chunk in decode(dataset, name, kind, num_workers, self.skip):
            end = start + len(chunk.images)
            images[start:end], targets[start:end] = chunk.images, chunk.targets
            unreadable.update(chunk.unreadable)
            start = end
        self._taken += images.nbytes
        decoded = Decoded(images, targets, unreadable, strings_of(dataset, "paths"))
        if (memory := _free_and_total(self.device)) is not None:
            self._move_to_device(decoded, name, *memory)
        return decoded

    def _move_to_device(self, decoded: Decoded, name: str, free: int, total: int) -> None:
        """Move a data set to the GPU if it fits into what the others have left of their share."""
        others = sum(other.images.nbytes for other in _ON_DEVICE if other.images.device == self.device)
        left = max(0, min(free, int(SHARE * total) - others))
        if decoded.images.nbytes > left:
            log.info("storage of %s: on the host; images may take %s more on %s", name, readable(left), self.device)
            return
        log.info("storage of %s: on %s", name, self.device)
        decoded.images, decoded.targets = decoded.images.to(self.device), decoded.targets.to(self.device)
        _ON_DEVICE.add(decoded)


def find_skipped(
    datasets: dict[str, Dataset[Any]], storage: Storage, *, rank: int, world_size: int, num_workers: int
) -> dict[str, dict[int, str]]:
    """Why images cannot be read, by data set and position; logs how many, and lists them in the run's folder.

    Where images are streamed, this reads all of them once; the ranks share the work.
    """
    skipped = {}
    for name, dataset in datasets.items():
        opened = storage.open(dataset, name)
        if isinstance(opened, Decoded | BetonFile):
            reasons = opened.unreadable
        else:
            rows = range(rank, len(dataset), world_size)  # type: ignore[arg-type]
            reasons = check(dataset, name, storage.kind_of(dataset, name), rows, num_workers)
        shares = gather_objects(reasons)  # of all ranks: what one cannot read, none shows
        skipped[name] = dict(sorted((index, reason) for share in shares for index, reason in share.items()))
        if skipped[name] and rank == 0:
            what = counted(len(skipped[name]), f"image of {name} is", f"images of {name} are")
            log.warning("%s skipped, such as: %s", what, next(iter(skipped[name].values())))
    if storage.folder is not None and any(skipped.values()):
        path = storage.folder / "skipped.csv"
        listed = [(name, index, reason) for name, reasons in skipped.items() for index, reason in reasons.items()]
        with atomic_write(path) as growing, growing.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("data set", "index", "reason"), *listed])
        log.warning("skipped images: listed in %s", path)
    return skipped


def _free_and_total(device: torch.device) -> tuple[int, int] | None:
    """Bytes of memory that a GPU has free, and that it has; None for a CPU."""
    return torch.cuda.mem_get_info(device) if device.type == "cuda" else None


def _memory() -> int:
    """Bytes that the machine has, or that this job may use."""
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.is_file() else "max"
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(physical, int(allowed)) if allowed.isdecimal() else physical


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())


def readable(n_bytes: int) -> str:
    """Bytes in the nearest unit.

    >>> readable(184_320_000)
    '184 MB'
    """
    power = min(3, (len(str(n_bytes)) - 1) // 3)
    return f"{n_bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"
