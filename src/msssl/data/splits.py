"""Chooses the images of each split by a seed: held-out images and nested fractions, balanced over classes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from msssl.data.pixels.labels import labels_or_minus_one, strings_of
from msssl.errors import UserError
from msssl.wording import counted

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
_SPLIT_OF_NAME: dict[str, Split] = {  # what folders and tables call them
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}
N_LISTED = 20  # classes whose counts are logged one by one
log = logging.getLogger(__name__)


@dataclass
class Part:
    """Which images are of a split: rows of a data set, which need not have been read.

    Attributes:
        dataset: of (image, label).
        indices: the rows, shape (n,).
        name: how messages call the data set.
    """

    dataset: Dataset[Any]
    indices: Tensor
    name: str

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Tensor:
        """Label (n,) of each image, -1 for none."""
        return labels_or_minus_one(self.dataset)[self.indices]


def split_of(name: str) -> Split | None:
    """The split that a folder or a row of a table means, in upper or lower case, or None.

    >>> [split_of(name) for name in ("Training", "valid", "TEST", "images")]
    ['train', 'val', 'test', None]
    """
    return _SPLIT_OF_NAME.get(name.lower())


def make_splits(
    datasets: dict[str, Dataset[Any]],
    unreadable: dict[str, dict[int, str]],
    *,
    fraction: float,
    val_fraction: float,
    seed: int,
) -> dict[str, Part]:
    """The images of `train`, `probe` and, where there are any, `val` and `test`.

    Without a `val` set some images are held out of the set to probe with, and not pretrained on either. Where a data
    set has `groups`, one name an image, a group is held out as a whole.

    Args:
        datasets: `train` to pretrain on, `probe` to probe with where that is another set, `val` for choices and
            `test` to report on.
        unreadable: positions to leave out, for each data set.
        fraction: share of the pretraining images to keep.
        val_fraction: share to hold out.
        seed: of both.

    Raises:
        ValueError: a class would be left without training images.
    """
    usable = {name: readable_rows(dataset, unreadable.get(name, {})) for name, dataset in datasets.items()}
    source = "probe" if "probe" in usable else "train"
    all_labels = {name: labels_or_minus_one(dataset) for name, dataset in datasets.items()}
    _check_labels(all_labels, usable, source)
    labelled, rows, labels = datasets[source], usable[source], all_labels[source]
    groups = strings_of(labelled, "groups")
    of_row = groups and [groups[row] for row in rows.tolist()]
    kept, held_out = hold_out(labels[rows], 0.0 if "val" in usable else val_fraction, seed, of_row)
    _check_classes(labels[rows], labels[rows][kept], f"val_fraction {val_fraction}")
    if val_fraction and "val" not in usable:
        _log_held_out(val_fraction, held_out, len(rows), of_row)
    available = rows[kept] if source == "train" else usable["train"]
    train_labels = all_labels["train"][available]
    chosen = choose(train_labels, fraction, seed)
    _check_classes(train_labels, train_labels[chosen], f"fraction {fraction}")
    images = {"train": Part(datasets["train"], available[chosen], "train"), "probe": Part(labelled, rows[kept], source)}
    if "val" in usable:
        images["val"] = Part(datasets["val"], usable["val"], "val")
    elif len(held_out):
        images["val"] = Part(labelled, rows[held_out], source)
    if "test" in usable:
        images["test"] = Part(datasets["test"], usable["test"], "test")
    named = [name for name in images if name != "probe" or source == "probe"]
    log.info("images: %s", ", ".join(f"{len(images[name])} {name}" for name in named))
    if fraction < 1:
        log.info("fraction %g: %d of %d images; %s", fraction, len(chosen), len(available), _by_class(images["train"]))
    return images


def hold_out(labels: Tensor, fraction: float, seed: int, groups: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
    """Positions kept and held out, each sorted; of every class the same fraction (rounded) is held out.

    With groups, whole groups are held out, as near to the fraction as they allow; a group belongs to the class of most
    of its images. Unless the fraction is 0, at least one image (or group) is held out of each class that has two.

    >>> kept, held_out = hold_out(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)
    >>> len(kept), len(held_out)
    (6, 2)
    """
    if fraction == 0:
        chosen = torch.empty(0, dtype=torch.long)
    elif groups is None:
        chosen = choose(labels, fraction, seed, one_of_two=True)
    else:
        chosen = _choose_groups(labels, fraction, seed, groups)
    mask = torch.ones(len(labels), dtype=torch.bool)
    mask[chosen] = False
    return mask.nonzero().flatten(), chosen


def choose(labels: Tensor, fraction: float, seed: int, one_of_two: bool = False) -> Tensor:
    """Sorted positions of a fraction of each class (rounded), nested: a smaller fraction is inside a larger one.

    Args:
        labels: shape (n,).
        fraction: of each class.
        seed: of the choice.
        one_of_two: whether to choose at least one of each class that has two.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        positions = (labels == label).nonzero().flatten()
        order = torch.randperm(len(positions), generator=generator)
        least = int(one_of_two and len(positions) > 1)
        chosen.append(positions[order[: max(least, round(fraction * len(positions)))]])
    return torch.cat(chosen).sort().values


def _choose_groups(labels: Tensor, fraction: float, seed: int, groups: Sequence[str]) -> Tensor:
    """Sorted positions of whole groups, about a fraction of each class, at least one group of two; nested."""
    names = sorted(set(groups))
    number = {name: i for i, name in enumerate(names)}
    group = torch.tensor([number[name] for name in groups])
    classes, which = labels.unique(return_inverse=True)
    table = (group * len(classes) + which).bincount(minlength=len(names) * len(classes)).view(len(names), -1)
    label, sizes = table.argmax(dim=1), table.sum(dim=1)
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for one_class in label.unique():
        members = (label == one_class).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        filled = torch.cat([torch.zeros(1, dtype=torch.long), sizes[members].cumsum(0)])
        nearest = int((filled - fraction * filled[-1]).abs().argmin())
        chosen.append(members[: max(nearest, int(len(members) > 1))])
    return torch.isin(group, torch.cat(chosen)).nonzero().flatten()


def _log_held_out(fraction: float, held_out: Tensor, n_images: int, groups: Sequence[str] | None) -> None:
    if not len(held_out):
        log.warning(
            "val_fraction %g holds out none of %d images, as no class has two %s: there is no validation",
            *(fraction, n_images, "images" if groups is None else "groups"),
        )
    elif groups is not None:
        n_groups = len({groups[row] for row in held_out.tolist()})
        images = counted(len(held_out), "image")
        log.info("held out for validation: %d of %d groups, with %s", n_groups, len(set(groups)), images)


def class_counts(part: Part) -> Tensor:
    """How many images there are of each class that there is."""
    labels = part.labels
    counts = labels[labels >= 0].bincount()
    return counts[counts > 0]


def _by_class(part: Part) -> str:
    of_class = class_counts(part)
    if not len(of_class):
        return "without labels"
    if len(of_class) > N_LISTED:
        return f"{int(of_class.min())} to {int(of_class.max())} of each of {len(of_class)} classes"
    return "by class: " + " ".join(str(int(count)) for count in of_class)


def readable_rows(dataset: Dataset[Any], unreadable: dict[int, str]) -> Tensor:
    """Positions in a data set, sorted, without those of unreadable images."""
    rows = torch.ones(len(dataset), dtype=torch.bool)  # type: ignore[arg-type]  # a map-style data set has one
    rows[list(unreadable)] = False
    return rows.nonzero().flatten()


def _check_labels(labels: dict[str, Tensor], usable: dict[str, Tensor], source: str) -> None:
    """Raise ValueError where unreadable images take a class away, or a split has a class that cannot be learnt."""
    for name, of_set in labels.items():
        left = of_set[usable[name]]
        if name in ("val", "test") and len(left):  # measures are over the classes that are there
            for label in _missing(of_set, left):
                log.warning("on_error: skip leaves no images of class %d in %s", label, name)
        else:
            _check_classes(of_set, left, f"on_error: skip in {name}")
        if labels[source].max() >= 0 and len(new := of_set[~torch.isin(of_set, labels[source]) & (of_set >= 0)]):
            raise UserError(f"{name} has the label {int(new[0])}, which {source} has not")


def _check_classes(before: Tensor, after: Tensor, what: str) -> None:
    for label in _missing(before, after):
        name = f"class {label}" if label >= 0 else "the images without a label"
        raise UserError(f"{what} leaves none of {name}: there are {int((before == label).sum())}")


def _missing(before: Tensor, after: Tensor) -> list[int]:
    """Labels of which there is no image any more; -1 for those without a label."""
    return [label for label in before.unique().tolist() if not (after == label).any()]
