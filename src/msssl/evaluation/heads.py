"""What frozen features are worth: classifiers on them, chosen on validation images and reported once on test."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_auroc, multiclass_confusion_matrix

from msssl.evaluation.features import Split
from msssl.metrics import accuracy_interval, alpha_req, knn, linear_probes

WEIGHT_DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
DEFAULT = 1e-2  # where there is no validation split to choose by
K, TEMPERATURE = 200, 0.1


def evaluate(features: dict[str, Split], num_classes: int) -> dict[str, Any]:
    """Accuracies in [0, 1] of a linear head and of nearest neighbours.

    The head's weight decay is the one of `WEIGHT_DECAYS` that is best on `val`; it is refitted on train and val for
    `test`. Without `val` nothing is chosen; without `test` the accuracies are those on `val`.

    Args:
        features: of the splits `probe` (to fit) and `val`, `test` where there are any.
        num_classes: C.

    Returns:
        `weight_decay`, `val_top1`, `grid` (of each weight decay, on val), `alpha`, and where there is a test split
        `test_top1`, `test_interval` (95 %), `test_top5`, `test_balanced` (mean over classes), `test_auroc`,
        `test_per_class`, `test_confusion` (rows are the true classes), `test_knn`.
    """
    chosen = DEFAULT
    result: dict[str, Any] = {"grid": {}, "val_top1": None}
    if "val" in features:
        heads = linear_probes(*features["probe"], num_classes=num_classes, weight_decays=WEIGHT_DECAYS)
        grid = {
            decay: _top1(head(features["val"][0]), features["val"][1])
            for decay, head in zip(WEIGHT_DECAYS, heads, strict=True)
        }
        chosen, best = max(grid.items(), key=lambda item: item[1])
        result = {"grid": {str(decay): accuracy for decay, accuracy in grid.items()}, "val_top1": best}
    result |= {"weight_decay": chosen, "alpha": float(alpha_req(features["probe"][0]))}
    if "test" not in features:
        return result
    parts = [features[split] for split in ("probe", "val") if split in features]
    x, y = (torch.cat(each) for each in zip(*parts, strict=True))
    head = linear_probes(x, y, num_classes=num_classes, weight_decays=[chosen])[0]
    test_x, test_y = features["test"]
    scores = knn(test_x, x, y, num_classes=num_classes, k=K, temperature=TEMPERATURE)
    measured = {**_measures(head(test_x), test_y, num_classes), "knn": _top1(scores, test_y)}
    return result | {f"test_{name}": value for name, value in measured.items()}


def _measures(logits: Tensor, labels: Tensor, num_classes: int) -> dict[str, Any]:
    labelled = labels >= 0
    logits, labels = logits[labelled], labels[labelled]
    confusion = multiclass_confusion_matrix(logits, labels, num_classes)
    found = confusion.sum(dim=1) > 0
    per_class = confusion.diag() / confusion.sum(dim=1).clamp(min=1)
    n_correct = int(confusion.diag().sum())
    top5 = logits.topk(min(5, num_classes), dim=1).indices
    return {
        "top1": n_correct / len(labels),
        "interval": accuracy_interval(n_correct, len(labels)),
        "top5": float((top5 == labels[:, None]).any(dim=1).float().mean()),
        "balanced": float(per_class[found].mean()),
        "auroc": float(multiclass_auroc(logits, labels, num_classes)),
        "per_class": per_class.tolist(),
        "confusion": confusion.tolist(),
    }


def _top1(scores: Tensor, labels: Tensor) -> float:
    labelled = labels >= 0
    return float((scores[labelled].argmax(dim=1) == labels[labelled]).float().mean())
