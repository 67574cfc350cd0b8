"""How many labels the features need."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from msssl.errors import UserError
from msssl.evaluation.probe.adam import top1
from msssl.evaluation.probe.features import Split
from msssl.evaluation.probe.heads import DEFAULT, TEMPERATURE, K
from msssl.metrics import knn, linear_probe, mean_interval, neighbours_taken
from msssl.wording import counted

N_SEEDS = 5


def evaluate_few_labels(
    features: dict[str, Split], num_classes: int, counts: Sequence[int], n_seeds: int = N_SEEDS
) -> dict[str, Any]:
    """Accuracy on `test` (on `val` without it) of heads that see few labels, over seeds that choose the images.

    Nothing is chosen: who has ten labels has no validation split. Of one seed the fewer images are among the more.

    Args:
        features: of `probe`, which the labels are of, and `test` or `val`.
        num_classes: C.
        counts: labelled images of each class.
        n_seeds: draws of them.

    Returns:
        For each count, `linear` and `knn`: `top1` of each seed, their `mean` and `interval` (95 %, Student's t, within
        [0, 1]); for `knn` also `k`, the number of neighbours that voted.

    Raises:
        ValueError: a class has fewer images; the message names it.
    """
    x, y = features["probe"]
    test_x, test_y = features["test" if "test" in features else "val"]
    result = {}
    for count in counts:
        found: dict[str, list[float]] = {"linear": [], "knn": []}
        for seed in range(n_seeds):
            rows = draw(y, count, seed).to(x.device)
            head = linear_probe(x[rows], y[rows], num_classes=num_classes, weight_decay=DEFAULT)
            scores = knn(test_x, x[rows], y[rows], num_classes=num_classes, k=K, temperature=TEMPERATURE)
            found["linear"].append(top1(head(test_x), test_y))
            found["knn"].append(top1(scores, test_y))
        result[str(count)] = {name: _summary(values) for name, values in found.items()}
        result[str(count)]["knn"]["k"] = neighbours_taken(y[rows], K)  # every draw is a bank of this size
    return result


def draw(labels: Tensor, count: int, seed: int) -> Tensor:
    """Sorted rows of so many images of each class, nested.

    >>> labels = torch.tensor([0, 0, 0, 1, 1, 1])
    >>> labels[draw(labels, 2, seed=0)]
    tensor([0, 0, 1, 1])
    """
    if count < 1:
        raise UserError(f"labels_per_class is {count}: expected one image at least")
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels[labels >= 0].unique().tolist():
        rows = (labels == label).nonzero().flatten().cpu()
        if len(rows) < count:
            there = counted(len(rows), "training image")
            raise UserError(f"labels_per_class is {count}, but class {label} has {there}")
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def _summary(values: list[float]) -> dict[str, Any]:
    mean, low, high = mean_interval(values, bounds=(0.0, 1.0))
    return {"top1": values, "mean": mean, "interval": (low, high)}
