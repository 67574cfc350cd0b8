"""Checks whether an online probe has labels to learn from and to be measured on."""

from typing import Any

UNLABELLED_VALIDATION = "no validation image has a label"


def reason_not_to_learn(data: Any, *, nearest: bool = False) -> str | None:
    """Why a classifier cannot learn from the labels of a data module, in words; None where it can.

    The result is the same on all ranks, since each of them knows all labels.

    Args:
        data: data module of the trainer, set up; one of another library needs no more than `num_classes`.
        nearest: whether the classifier learns from all labelled training images, and not from the batches of the run.
    """
    if getattr(data, "num_classes", None) is None:
        return "the data has no labels (or its data set no `targets` to count the classes by)"
    if not hasattr(data, "split_labels"):
        return None
    labels = data.split_labels("probe" if nearest or data.labelled_apart else "train")
    classes = labels[labels >= 0].unique()
    if len(classes) == 0:
        return "no training image has a label"
    return "all labelled training images are of one class" if len(classes) == 1 else None


def validation_is_labelled(data: Any) -> bool:
    """Whether validation images have labels; also true without validation images, or where this is not known."""
    if not hasattr(data, "split_labels") or "val" not in data.splits:
        return True
    return bool((data.split_labels("val") >= 0).any())
