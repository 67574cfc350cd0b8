"""Cross-validation, which chooses the weight decay and measures accuracy on sets with too few labels for a split."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from msssl.metrics import accuracy_interval, linear_probes

N_FOLDS = 5


class Folds(NamedTuple):
    """The assignment of images to the folds of a cross-validation.

    Attributes:
        of_image: shape (n,), the number of the fold in which each image is held out; -1 if it is never held out.
        n: number of folds.
        n_groups: number of groups that are held out; None where images have no groups.
    """

    of_image: Tensor
    n: int
    n_groups: int | None


def make_folds(labels: Tensor, groups: Sequence[str] | None = None, n: int = N_FOLDS, seed: int = 0) -> Folds | None:
    """Assign images to folds so that classes are balanced and no group is in two folds.

    Images without a label are never held out, nor are those of a class that has only one group or only one image.

    Args:
        labels: shape (n,); -1 for an image without a label.
        groups: name of each image's group, whose images stay in one fold; by default each image is its own group.
        n: number of folds; fewer where the largest class has fewer groups.
        seed: seed of the order in which groups are assigned.

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
        # Sorted, so that of several equally frequent labels it is the smallest.
        most_common = Counter(sorted(values[image] for image in images)).most_common(1)[0][0]
        groups_of_class.setdefault(most_common, []).append(name)
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
    """Choose the weight decay of a linear head by cross-validation, and measure its accuracy.

    Each image is predicted by the head of the fold in which it was held out, which was fitted without it.

    Args:
        x: features, shape (n, F).
        y: labels, shape (n,).
        folds: folds of these images.
        num_classes: C.
        weight_decays: values to choose from; of several with equal accuracy the first is chosen.

    Returns:
        `weight_decay`, the chosen value; `grid`, the accuracy in [0, 1] of each value; `cv_top1`, the accuracy of the
        chosen value; and `cv_interval`, its 95 % interval. The images of a group are not independent measurements, so
        that with groups the interval is as wide as that of one image for each group.
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
