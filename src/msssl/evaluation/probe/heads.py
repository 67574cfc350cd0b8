"""What frozen features are worth: classifiers on them, chosen on validation images and reported once on test."""

import warnings
from typing import Any

from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_auroc, multiclass_confusion_matrix

from msssl.evaluation.probe.adam import ROUNDS, mlp_probe, paper_probe, scores_of, top1
from msssl.evaluation.probe.cross_validation import Folds, cross_validate
from msssl.evaluation.probe.features import Split, joined, training
from msssl.metrics import accuracy_interval, knn, linear_probes, neighbours_taken

WEIGHT_DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
DEFAULT, DEFAULT_ROUNDS = 1e-2, 10  # where there is no validation split to choose by
K, TEMPERATURE = 200, 0.1
MIN_VAL = 20  # labelled images: fewer choose nothing


def evaluate(
    features: dict[str, Split], num_classes: int, folds: Folds | None = None
) -> tuple[dict[str, Any], nn.Linear]:
    """Accuracies in [0, 1] of a linear head, of one with a hidden layer, and of nearest neighbours.

    The linear head's weight decay is the one of `WEIGHT_DECAYS` that is best on `val`, and so is how long the MLP
    trains; both are refitted on train and val for `test`. With `folds` the weight decay is chosen by cross-validation
    instead; without either (`val` needs 20 labelled images) nothing is chosen. Without `test` the accuracies are those
    on `val`, or of the cross-validation.

    Args:
        features: of the splits `probe` (to fit) and `val`, `test` where there are any.
        num_classes: C.
        folds: of the images of `probe` and then `val`, where `val` cannot choose.

    Returns:
        `weight_decay`, `val_top1`, `grid` (of each weight decay, on val or cross-validated), `mlp_rounds`, `val_mlp`,
        `val_knn` and `val_knn_k` (the number of neighbours that voted); with folds `cv_top1` and `cv_interval`; and
        where there is a test split `test_top1`, `test_interval` (95 %, Wilson's), `test_top5`, `test_balanced` (mean
        over classes), `test_auroc`, `test_per_class` (None for a class without test images), `test_confusion` (rows are
        the true classes), `test_mlp` and `test_knn` with intervals, and `test_knn_k`; without a test split, intervals
        of the accuracies on val. And the linear head.
    """
    features = joined(features)
    x, y = both = training(features)
    if folds is None:
        cross_validated = {}
    else:
        cross_validated = cross_validate(x, y, folds, num_classes=num_classes, weight_decays=WEIGHT_DECAYS)
    chosen = cross_validated.get("weight_decay")
    result = {"grid": {}, "val_top1": None, **_on_val(features, num_classes, chosen), **cross_validated}
    head = linear_probes(x, y, num_classes=num_classes, weight_decays=[result["weight_decay"]])[0]
    if "test" in features:
        test_x, test_y = features["test"]
        result |= _named("test", measures(head(test_x), test_y, num_classes))
        mlp = mlp_probe(both, num_classes=num_classes, rounds=result["mlp_rounds"])[0]
        scores = knn(test_x, x, y, num_classes=num_classes, k=K, temperature=TEMPERATURE)
        for name, found in {"mlp": scores_of(mlp, test_x), "knn": scores}.items():
            result[f"test_{name}"] = top1(found, test_y)
            result[f"test_{name}_interval"] = _interval(found, test_y)
        result["test_knn_k"] = neighbours_taken(y, K)
    elif "val" in features:
        n = int((features["val"][1] >= 0).sum())
        for name in ("val", "val_mlp", "val_knn"):
            accuracy = result["val_top1" if name == "val" else name]
            result[f"{name}_interval"] = accuracy_interval(round(accuracy * n), n)
    return result, head


def evaluate_as_the_paper(features: dict[str, Split], num_classes: int) -> tuple[dict[str, Any], nn.Module]:
    """The same measures of the paper's linear head, which is fitted on train and val, and chosen by nothing."""
    split = "test" if "test" in features else "val"
    fitted = training(joined(features)) if split == "test" else features["probe"]
    head = paper_probe(fitted, num_classes=num_classes)
    x, y = features[split]
    return _named(split, measures(head(x), y, num_classes)), head


def _on_val(features: dict[str, Split], num_classes: int, weight_decay: float | None) -> dict[str, Any]:
    """The choices, and the accuracies that they were made by; a given weight decay is not chosen again."""
    if "val" not in features:
        return {"weight_decay": DEFAULT, "mlp_rounds": DEFAULT_ROUNDS}
    x, y = features["val"]
    choosing = weight_decay is None and can_choose(y)
    decays: tuple[float, ...] = WEIGHT_DECAYS if choosing else (weight_decay or DEFAULT,)
    heads = linear_probes(*features["probe"], num_classes=num_classes, weight_decays=decays)
    grid = {decay: top1(head(x), y) for decay, head in zip(decays, heads, strict=True)}
    chosen, best = max(grid.items(), key=lambda item: item[1])
    mlp, rounds, of_mlp = mlp_probe(
        features["probe"],
        num_classes=num_classes,
        rounds=ROUNDS if choosing else DEFAULT_ROUNDS,
        val=(x, y) if choosing else None,
    )
    votes = knn(x, *features["probe"], num_classes=num_classes, k=K, temperature=TEMPERATURE)
    return {
        "grid": {str(decay): accuracy for decay, accuracy in grid.items()},
        "val_top1": best,
        "weight_decay": chosen,
        "val_mlp": top1(scores_of(mlp, x), y) if of_mlp is None else of_mlp,
        "mlp_rounds": rounds,
        "val_knn": top1(votes, y),
        "val_knn_k": neighbours_taken(features["probe"][1], K),
    }


def can_choose(val_labels: Tensor) -> bool:
    """Whether there are enough labelled validation images to choose by."""
    return int((val_labels >= 0).sum()) >= MIN_VAL


def measures(logits: Tensor, labels: Tensor, num_classes: int) -> dict[str, Any]:
    """Top-1 with its interval, top-5, mean over classes, AUROC, per class and the confusion matrix.

    Means are over the classes that have images among these; of another, accuracy and AUROC are None.
    """
    labelled = labels >= 0
    logits, labels = logits[labelled], labels[labelled]
    confusion = multiclass_confusion_matrix(logits, labels, num_classes)
    found = confusion.sum(dim=1) > 0
    per_class = confusion.diag() / confusion.sum(dim=1).clamp(min=1)
    top5 = logits.topk(min(5, num_classes), dim=1).indices
    return {
        "top1": top1(logits, labels),
        "interval": _interval(logits, labels),
        "top5": float((top5 == labels[:, None]).any(dim=1).float().mean()),
        "balanced": float(per_class[found].mean()),
        "auroc": _auroc(logits, labels, found),
        "per_class": [accuracy if there else None for accuracy, there in zip(per_class.tolist(), found, strict=True)],
        "confusion": confusion.tolist(),
    }


def _auroc(logits: Tensor, labels: Tensor, found: Tensor) -> float | None:
    """Mean of the area under each class's curve; None for images of one class."""
    if found.sum() < 2:
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No positive samples")  # of a class that is not among these
        of_class = multiclass_auroc(logits, labels, len(found), average=None)
    return float(of_class[found].mean())


def _interval(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    labelled = labels >= 0
    right = scores[labelled].argmax(dim=1) == labels[labelled]
    return accuracy_interval(int(right.sum()), len(right))


def _named(split: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{split}_{name}": value for name, value in values.items()}
