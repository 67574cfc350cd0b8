"""Seeded, class-balanced, nested choices of images."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from msssl.data.images import Images, labels_or_minus_one


def make_splits(
    train: Dataset[Any],
    val: Dataset[Any] | None,
    test: Dataset[Any] | None,
    labelled: Dataset[Any] | None,
    *,
    fraction: float,
    val_fraction: float,
    seed: int,
) -> dict[str, Images]:
    """The images of `train`, `probe` and, where there are any, `val` and `test`.

    Args:
        train: to pretrain on, and to probe with where `labelled` is None.
        val: for choices; where None they are held out of the set to probe with, and not pretrained on either.
        test: reported on.
        labelled: to probe with.
        fraction: share of the pretraining images to keep.
        val_fraction: share to hold out.
        seed: of both.
    """
    source = train if labelled is None else labelled
    kept, held_out = hold_out(labels_or_minus_one(source), 0.0 if val is not None else val_fraction, seed)
    available = kept if labelled is None else torch.arange(_length(train))
    name = "train" if labelled is None else "probe"
    images = {
        "train": Images(train, available[choose(labels_or_minus_one(train)[available], fraction, seed)], "train"),
        "probe": Images(source, kept, name),
    }
    if val is not None:
        images["val"] = Images(val, torch.arange(_length(val)), "val")
    elif len(held_out):
        images["val"] = Images(source, held_out, name)
    if test is not None:
        images["test"] = Images(test, torch.arange(_length(test)), "test")
    return images


def hold_out(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Positions kept and held out, each sorted; of every class the same fraction (rounded) is held out.

    >>> kept, held_out = hold_out(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)
    >>> len(kept), len(held_out)
    (6, 2)
    """
    chosen = choose(labels, fraction, seed)
    mask = torch.ones(len(labels), dtype=torch.bool)
    mask[chosen] = False
    return mask.nonzero().flatten(), chosen


def choose(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Sorted positions of a fraction of each class (rounded), nested: a smaller fraction is inside a larger one."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        positions = (labels == label).nonzero().flatten()
        order = torch.randperm(len(positions), generator=generator)
        chosen.append(positions[order[: round(fraction * len(positions))]])
    return torch.cat(chosen).sort().values


def _length(dataset: Dataset[Any]) -> int:
    return len(dataset)  # type: ignore[arg-type]  # a map-style data set has one
