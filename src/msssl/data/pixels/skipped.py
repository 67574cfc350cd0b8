"""Unreadable images that a run leaves out: found before anything is chosen, counted and listed."""

import csv
import logging
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from msssl.data.ffcv.beton_file import BetonFile
from msssl.data.pixels.decode import check
from msssl.data.pixels.images import Decoded
from msssl.data.pixels.storage import Storage
from msssl.distributed import gather_objects
from msssl.run.files import atomic_write
from msssl.wording import counted

FILE = "skipped.csv"
log = logging.getLogger(__name__)


def find_skipped(
    datasets: dict[str, Dataset[Any]], storage: Storage, *, rank: int, world_size: int, num_workers: int
) -> dict[str, dict[int, str]]:
    """Why images cannot be read, by data set and position; says how many, and lists them in the run's folder.

    Where images are streamed, this reads all of them once; the ranks share the work.
    """
    skipped = {}
    for name, dataset in datasets.items():
        opened = storage.open(dataset, name)
        if isinstance(opened, Decoded | BetonFile):
            found = opened.unreadable
        else:
            found = check(dataset, name, range(rank, len(dataset), world_size), num_workers)  # type: ignore[arg-type]
        shares = gather_objects(found)  # of all ranks: what one cannot read, none shows
        skipped[name] = dict(sorted((index, reason) for share in shares for index, reason in share.items()))
    for name, found in skipped.items():
        if found and rank == 0:
            what = counted(len(found), f"image of {name} is", f"images of {name} are")
            log.warning("%s skipped, such as: %s", what, next(iter(found.values())))
    if storage.folder is not None and any(skipped.values()):
        _write(skipped, storage.folder / FILE)
    return skipped


def _write(skipped: dict[str, dict[int, str]], path: Path) -> None:
    rows = [(name, index, reason) for name, found in skipped.items() for index, reason in found.items()]
    with atomic_write(path) as growing, growing.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("data set", "index", "reason"), *rows])
    log.warning("skipped images: listed in %s", path)
