"""Whether a classifier that is trained along has labels to learn from and to be measured on."""

from typing import Any

UNLABELLED_VALIDATION = "no validation image has a label"


def why_nothing_is_learnt(data: Any, *, nearest: bool = False) -> str | None:
    """Why a classifier cannot learn from the labels of a data module, in words, or None where it can.

    All ranks find the same, since they know all labels.

    Args:
        data: that of the trainer, set up; one of the user's own kind needs no more than `num_classes`.
        nearest: whether the classifier sees all labelled training images, and not the batches of the run.
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
    """Whether there are labelled validation images, or no validation, or no way to tell."""
    if not hasattr(data, "split_labels") or "val" not in data.splits:
        return True
    return bool((data.split_labels("val") >= 0).any())
