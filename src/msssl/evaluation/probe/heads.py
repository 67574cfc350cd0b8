"""Fits classifiers on frozen features, chooses hyperparameters on validation images, and measures once on test."""

import warnings
from typing import Any

from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_auroc, multiclass_confusion_matrix

from msssl.evaluation.probe.adam import ROUNDS, mlp_probe, paper_probe, scores_of, top1
from msssl.evaluation.probe.cross_validation import Folds, cross_validate
from msssl.evaluation.probe.features import TRAINING, Split, joined
from msssl.metrics import accuracy_interval, knn, linear_probes, neighbours_taken

WEIGHT_DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
DEFAULT, DEFAULT_ROUNDS = 1e-2, 10  # weight decay and rounds of the MLP where nothing is chosen
K, TEMPERATURE = 200, 0.1
MIN_VAL = 20  # labelled validation images that are needed to choose hyperparameters on


def evaluate(
    features: dict[str, Split], num_classes: int, folds: Folds | None = None
) -> tuple[dict[str, Any], nn.Linear]:
    """Accuracies in [0, 1] of a linear head, of one with a hidden layer (MLP), and of nearest neighbours.

    The weight decay of the linear head is the one of `WEIGHT_DECAYS` with the best accuracy on `val`; how long the MLP
    trains is chosen likewise. Both heads are then fitted again on train and val together, and measured once on `test`.
    With `folds`, the weight decay is chosen by cross-validation instead. Nothing is chosen where there are neither
    folds nor 20 labelled images in `val`. Without `test`, accuracies are those on `val` or of the cross-validation.

    Args:
        features: of the splits `probe` (on which heads are fitted), `val` and `test`, where there are any.
        num_classes: C.
        folds: of the images of `probe` and then `val`, where `val` has too few labels.

    Returns:
        The measures, and the linear head. The measures are `weight_decay`, `val_top1`, `grid` (the accuracy of each
        weight decay), `mlp_rounds`, `val_mlp`, `val_knn` and `val_knn_k` (the number of neighbours that vote).

        With folds: `cv_top1` and `cv_interval`. With a test split: `test_top1`, `test_interval` (95 %, Wilson's),
        `test_top5`, `test_balanced` (mean over classes), `test_auroc`, `test_per_class` (None for a class without test
        images), `test_confusion` (rows are the true classes), `test_mlp` and `test_knn` with intervals, and
        `test_knn_k`. Without a test split: intervals of the accuracies on val.
    """
    features = joined(features)
    x, y = features[TRAINING]
    cross_validated: dict[str, Any] = {}
    if folds is not None:
        cross_validated = cross_validate(x, y, folds, num_classes=num_classes, weight_decays=WEIGHT_DECAYS)
    chosen = cross_validated.get("weight_decay")
    result = {"grid": {}, "val_top1": None, **_on_val(features, num_classes, chosen), **cross_validated}
    head = linear_probes(x, y, num_classes=num_classes, weight_decays=[result["weight_decay"]])[0]
    if "test" in features:
        test_x, test_y = features["test"]
        result |= _named("test", measures(head(test_x), test_y, num_classes))
        mlp = mlp_probe((x, y), num_classes=num_classes, rounds=result["mlp_rounds"])[0]
        votes = knn(test_x, x, y, num_classes=num_classes, k=K, temperature=TEMPERATURE)
        for name, scores in {"mlp": scores_of(mlp, test_x), "knn": votes}.items():
            result |= {f"test_{name}": top1(scores, test_y), f"test_{name}_interval": _interval(scores, test_y)}
        result["test_knn_k"] = neighbours_taken(y, K)
    elif "val" in features:
        n = int((features["val"][1] >= 0).sum())
        for name in ("val", "val_mlp", "val_knn"):
            accuracy = result["val_top1" if name == "val" else name]
            result[f"{name}_interval"] = accuracy_interval(round(accuracy * n), n)
    return result, head


def evaluate_as_the_paper(features: dict[str, Split], num_classes: int) -> tuple[dict[str, Any], nn.Module]:
    """The same measures for the paper's linear head, which has no hyperparameter to choose.

    It is fitted on train and val and measured on `test`; without `test` it is fitted on train and measured on `val`.
    """
    split = "test" if "test" in features else "val"
    fitted = joined(features)[TRAINING] if split == "test" else features["probe"]
    head = paper_probe(fitted, num_classes=num_classes)
    x, y = features[split]
    return _named(split, measures(head(x), y, num_classes)), head


def _on_val(features: dict[str, Split], num_classes: int, weight_decay: float | None) -> dict[str, Any]:
    """The chosen hyperparameters, with the accuracies on `val` that they were chosen by.

    A weight decay that is given, by a cross-validation, is not chosen again.
    """
    if "val" not in features:
        return {"weight_decay": DEFAULT, "mlp_rounds": DEFAULT_ROUNDS}
    x, y = features["val"]
    choosing = weight_decay is None and can_choose(y)
    decays: tuple[float, ...] = WEIGHT_DECAYS if choosing else (weight_decay or DEFAULT,)
    _, grid = best_linear_probe(features["probe"], (x, y), num_classes, decays)
    chosen, best = max(grid.items(), key=lambda item: item[1])
    mlp, rounds, best_of_mlp = mlp_probe(
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
        "val_mlp": top1(scores_of(mlp, x), y) if best_of_mlp is None else best_of_mlp,
        "mlp_rounds": rounds,
        "val_knn": top1(votes, y),
        "val_knn_k": neighbours_taken(features["probe"][1], K),
    }


def best_linear_probe(
    train: Split, val: Split, num_classes: int, weight_decays: tuple[float, ...] = WEIGHT_DECAYS
) -> tuple[nn.Linear, dict[float, float]]:
    """The linear head with the best accuracy on `val`, and the accuracy there with each weight decay."""
    heads = linear_probes(*train, num_classes=num_classes, weight_decays=weight_decays)
    grid = {decay: top1(head(val[0]), val[1]) for decay, head in zip(weight_decays, heads, strict=True)}
    best = max(grid, key=lambda decay: grid[decay])
    return heads[weight_decays.index(best)], grid


def can_choose(val_labels: Tensor) -> bool:
    """Whether there are enough labelled validation images to choose hyperparameters on."""
    return int((val_labels >= 0).sum()) >= MIN_VAL


def measures(logits: Tensor, labels: Tensor, num_classes: int) -> dict[str, Any]:
    """Top-1 with its interval, top-5, balanced accuracy, AUROC, accuracy of each class and the confusion matrix.

    Balanced accuracy and AUROC are means over the classes that have images; a class without images has accuracy None.
    """
    labelled = labels >= 0
    logits, labels = logits[labelled], labels[labelled]
    confusion = multiclass_confusion_matrix(logits, labels, num_classes)
    present = confusion.sum(dim=1) > 0
    per_class = confusion.diag() / confusion.sum(dim=1).clamp(min=1)
    top5 = logits.topk(min(5, num_classes), dim=1).indices
    return {
        "top1": top1(logits, labels),
        "interval": _interval(logits, labels),
        "top5": float((top5 == labels[:, None]).any(dim=1).float().mean()),
        "balanced": float(per_class[present].mean()),
        "auroc": _auroc(logits, labels, present),
        "per_class": [accuracy if has else None for accuracy, has in zip(per_class.tolist(), present, strict=True)],
        "confusion": confusion.tolist(),
    }


def _auroc(logits: Tensor, labels: Tensor, present: Tensor) -> float | None:
    """Mean of the area under the curve of each class that has images; None if only one class has images."""
    if present.sum() < 2:
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No positive samples")  # of a class that is not among these
        of_class = multiclass_auroc(logits, labels, len(present), average=None)
    return float(of_class[present].mean())


def _interval(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    n = int((labels >= 0).sum())
    return accuracy_interval(round(top1(scores, labels) * n), n)


def _named(split: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{split}_{name}": value for name, value in values.items()}
