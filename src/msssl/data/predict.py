"""`PredictLoader`, the batches that `msssl predict` reads from one split or all, and the log line that says so."""

import logging
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Literal

from torch.utils.data import Dataset

from msssl.batch import Batch
from msssl.data.loaders import EvaluationLoader
from msssl.data.pixels.images import Images
from msssl.errors import UserError
from msssl.wording import counted

PredictSplit = Literal["test", "val", "train", "all"]
log = logging.getLogger(__name__)


class PredictLoader:
    """The batches of several evaluation loaders, one loader after the other.

    Attributes:
        loaders: one for each data set; the `index` of a batch counts in the data set that it is of.
    """

    def __init__(self, loaders: list[EvaluationLoader]) -> None:
        self.loaders = loaders

    def __len__(self) -> int:
        return sum(map(len, self.loaders))

    def __iter__(self) -> Iterator[Batch]:
        return chain.from_iterable(self.loaders)


def log_what_is_read(
    parts: list[Images],
    split: PredictSplit,
    datasets: Mapping[str, Dataset[Any]],
    skipped: Mapping[str, Mapping[int, str]],
    where: str,
) -> None:
    """Say how many images are predicted, and which; ValueError where there are none.

    Args:
        parts: the images, of each data set.
        split: that they are of.
        datasets: all that there are.
        skipped: why images cannot be read, by data set and position.
        where: how messages call the data module.
    """
    n_images = sum(map(len, parts))
    if not n_images:
        raise UserError(f"{where} has no {split} images that can be read")
    if split == "all":
        of_each = ", ".join(f"{len(images)} of {images.name}" for images in parts)
        which = f"all of {where}, {counted(n_images, 'image')}" + (f" ({of_each})" if len(parts) > 1 else "")
    else:
        total = sum(len(dataset) for dataset in datasets.values())  # type: ignore[arg-type,misc]  # they have one
        which = f"{n_images} of the {total} images of {where}: its {split} split"
    unreadable = sum(len(skipped.get(images.name, {})) for images in parts)
    log.info("predict: %s%s", which, f"; {unreadable} more cannot be read" if unreadable else "")
