"""Choices, and an accuracy, by cross-validation: for sets with too few labels to hold some out."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from msssl.metrics import accuracy_interval, linear_probes

N_FOLDS = 5


class Folds(NamedTuple):
    """Which images are held out together.

    Attributes:
        of_image: shape (n,), the fold in which an image is held out; -1 for those that are never held out.
        n: number of folds.
        n_groups: how many groups are held out once; None where images have no groups.
    """

    of_image: Tensor
    n: int
    n_groups: int | None


def make_folds(labels: Tensor, groups: Sequence[str] | None = None, n: int = N_FOLDS, seed: int = 0) -> Folds | None:
    """Folds with nearly equally many images of each class, and no group in two of them.

    Images without a label, and a class that has only one group (or only one image), are never held out.

    Args:
        labels: shape (n,); -1 for none.
        groups: names of what must stay together, one an image; by default each image is alone.
        n: number of folds, at most as many as the largest class has groups.
        seed: of the order in which groups are dealt out.

    Returns:
        The folds; None where fewer than two classes have two groups.

    >>> make_folds(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), ["a", "a", "b", "b", "c", "c", "d", "d"], n=2).of_image
    tensor([0, 0, 1, 1, 1, 1, 0, 0])
    """
    values = labels.tolist()
    members: dict[str, list[int]] = {}
    for image, label in enumerate(values):
        if label >= 0:
            members.setdefault(groups[image] if groups else str(image), []).append(image)
    groups_of_class: dict[int, list[str]] = {}
    for name, images in members.items():
        groups_of_class.setdefault(_most_common([values[image] for image in images]), []).append(name)
    divisible = {label: names for label, names in sorted(groups_of_class.items()) if len(names) > 1}
    if len(divisible) < 2:
        return None
    n = min(n, max(map(len, divisible.values())))
    of_image = torch.full((len(values),), -1)
    counts: list[Counter[int]] = [Counter() for _ in range(n)]
    sizes = [0] * n
    generator = torch.Generator().manual_seed(seed)
    for label, names in divisible.items():
        shuffled = [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]
        for name in sorted(shuffled, key=lambda name: -len(members[name])):
            fold = min(range(n), key=lambda fold: (counts[fold][label], sizes[fold]))
            of_image[members[name]] = fold
            counts[fold].update(values[image] for image in members[name])
            sizes[fold] += len(members[name])
    return Folds(of_image, n, None if groups is None else sum(map(len, divisible.values())))


def cross_validate(
    x: Tensor, y: Tensor, folds: Folds, *, num_classes: int, weight_decays: Sequence[float]
) -> dict[str, Any]:
    """The weight decay of a linear head whose predictions for images that it was not fitted on are best.

    Args:
        x: features, shape (n, F).
        y: labels, shape (n,).
        folds: of these images.
        num_classes: C.
        weight_decays: to choose from; the first of several that are equally good is taken.

    Returns:
        `weight_decay`; `grid`, the accuracy of each in [0, 1], each image predicted by the head of the fold in which
        it was held out; `cv_top1`, that of the chosen one; and `cv_interval`, its ends at 95 %. Images of a group are
        no independent measurements: with groups the interval is that of as many images as there are groups.
    """
    of_image = folds.of_image.to(y.device)
    predicted = y.new_full((len(weight_decays), len(y)), -1)
    for fold in range(folds.n):
        held_out = of_image == fold
        seen = y.masked_fill(held_out, -1)  # no copy of the features
        heads = linear_probes(x, seen, num_classes=num_classes, weight_decays=weight_decays)
        for row, head in zip(predicted, heads, strict=True):
            row[held_out] = head(x[held_out]).argmax(dim=1)
    scored = of_image >= 0
    accuracies = (predicted[:, scored] == y[scored]).double().mean(dim=1).tolist()
    best = max(accuracies)
    n_independent = folds.n_groups or int(scored.sum())
    return {
        "weight_decay": weight_decays[accuracies.index(best)],
        "grid": {str(decay): accuracy for decay, accuracy in zip(weight_decays, accuracies, strict=True)},
        "cv_top1": best,
        "cv_interval": accuracy_interval(round(best * n_independent), n_independent),
    }


def _most_common(labels: list[int]) -> int:
    """The most frequent label; of several the smallest."""
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))
