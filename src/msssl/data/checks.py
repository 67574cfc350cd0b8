"""What a data module refuses before it reads an image."""

from typing import Any, get_args

from torch.utils.data import Dataset

from msssl.data.pixels.deep import Window
from msssl.data.pixels.storage import StorageKind
from msssl.errors import UserError


def check_arguments(
    batch_size: int, num_workers: int, fraction: float, val_fraction: float, storage: str, on_error: str
) -> None:
    """Raise ValueError naming the first argument that is out of range; see `MultiViewDataModule`."""
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction}: expected a share in (0, 1]")
    if not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}: expected a share in [0, 1)")
    if batch_size < 2:
        raise UserError(f"batch_size is {batch_size}: the losses compare at least 2 images")
    if num_workers < 0:
        raise UserError(f"num_workers is {num_workers}: expected a number of processes, 0 for none")
    for name, value, known in (("storage", storage, get_args(StorageKind)), ("on_error", on_error, ("stop", "skip"))):
        if value not in known:
            raise UserError(f"{name} is {value!r}: expected one of {', '.join(known)}")


def check_pixel_arguments(image_size: int | None, window: Window | None) -> None:
    """Raise ValueError for a side below 1 pixel, or a window whose white is not above its black."""
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size is {image_size}: expected pixels")
    if window is not None and not window[0] < window[1]:
        raise UserError(f"window is {window}: expected the value that becomes black, and a larger one, white")


def check_datasets(datasets: dict[str, Dataset[Any]], owner: str) -> None:
    """Raise ValueError where there are no training images, or a data set is empty or not map-style."""
    if "train" not in datasets:
        raise UserError(f"{owner} has no train images")
    for name, dataset in datasets.items():
        if not hasattr(dataset, "__len__"):
            raise UserError(f"{name} of {owner} is a {type(dataset).__name__}: expected a data set with a length")
        if len(dataset) == 0:
            raise UserError(f"{owner} has no {name} images")
