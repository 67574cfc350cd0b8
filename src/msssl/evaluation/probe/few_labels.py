"""Accuracy with few labels: heads that are fitted on a few images of each class, several times."""

from collections.abc import Iterator, Sequence
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
    """Accuracy of heads that are fitted on few labelled images, over several random choices of these images.

    No hyperparameter is chosen, since with so few labels there is no validation split. The images of a small count are
    among those of a larger one with the same seed. Accuracy is measured on `test`, or on `val` without `test`.

    Args:
        features: of `probe`, from which the labelled images are chosen, and of `test` or `val`.
        num_classes: C.
        counts: numbers of labelled images of each class.
        n_seeds: number of random choices for each count.

    Returns:
        For each count, `linear` and `knn`. Each holds `top1`, the accuracy for each seed, their `mean` and `interval`
        (95 %, Student's t, within [0, 1]); `knn` also `k`, the number of neighbours that vote.

    Raises:
        ValueError: a class has fewer images than a count; the message names the class.
    """
    x, y = features["probe"]
    test_x, test_y = features["test" if "test" in features else "val"]
    result: dict[str, Any] = {}
    for count in counts:
        accuracies: dict[str, list[float]] = {"linear": [], "knn": []}
        for seed in range(n_seeds):
            rows = draw(y, count, seed).to(x.device)
            head = linear_probe(x[rows], y[rows], num_classes=num_classes, weight_decay=DEFAULT)
            scores = knn(test_x, x[rows], y[rows], num_classes=num_classes, k=K, temperature=TEMPERATURE)
            accuracies["linear"].append(top1(head(test_x), test_y))
            accuracies["knn"].append(top1(scores, test_y))
        result[str(count)] = {}
        for name, values in accuracies.items():
            mean, low, high = mean_interval(values, bounds=(0.0, 1.0))
            result[str(count)][name] = {"top1": values, "mean": mean, "interval": (low, high)}
        result[str(count)]["knn"]["k"] = neighbours_taken(y[rows], K)  # every draw is a bank of this size
    return result


def draw(labels: Tensor, count: int, seed: int) -> Tensor:
    """Rows, sorted, of `count` random images of each class; those of a smaller count are among them.

    >>> labels = torch.tensor([0, 0, 0, 1, 1, 1])
    >>> labels[draw(labels, 2, seed=0)]
    tensor([0, 0, 1, 1])
    """
    if count < 1:
        raise UserError(f"labels_per_class is {count}: expected one image at least")
    chosen = []
    for label, rows in _shuffled(labels, seed):
        if len(rows) < count:
            images = counted(len(rows), "training image")
            raise UserError(f"labels_per_class is {count}, but class {label} has {images}")
        chosen.append(rows[:count])
    return torch.cat(chosen).sort().values


def draw_share(labels: Tensor, share: float, seed: int) -> Tensor:
    """Rows, sorted, of a share of the images of each class, at least one; those of a smaller share are among them.

    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
    >>> labels[draw_share(labels, 0.5, seed=0)]
    tensor([0, 0, 1])
    """
    if not 0 < share <= 1:
        raise UserError(f"label_fraction is {share}: expected a share in (0, 1]")
    return torch.cat([rows[: max(1, round(share * len(rows)))] for _, rows in _shuffled(labels, seed)]).sort().values


def _shuffled(labels: Tensor, seed: int) -> Iterator[tuple[int, Tensor]]:
    """The rows of each class in a random order that depends only on the labels and the seed."""
    generator = torch.Generator().manual_seed(seed)
    for label in labels[labels >= 0].unique().tolist():
        rows = (labels == label).nonzero().flatten().cpu()
        yield label, rows[torch.randperm(len(rows), generator=generator)]
