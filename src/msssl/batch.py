"""The dictionaries that loaders, training steps and callbacks exchange: batches of images or views, and outputs.

K is the number of views of an image, N of images on a device, F the width of features.
"""

from typing import NotRequired, TypedDict, TypeGuard

from torch import Tensor


class Labelled(TypedDict):
    """Images or features of a labelled set that travel along with those to pretrain on."""

    image: Tensor  # (N, C, H, W)
    label: Tensor  # (N,)


class Batch(TypedDict):
    """What a loader of evaluation images hands out; after `make_views` the images are float32 and normalised."""

    image: Tensor  # (N, C, H, W), uint8, uint16 or float32
    label: Tensor  # (N,), int64, -1 for none
    index: Tensor  # (N,), int64, position in the data set


class TrainBatch(Batch):
    """What the loader of training images hands out. Views are drawn from the seed, `epoch` and `batch`."""

    epoch: int
    batch: int  # number of the batch in its epoch
    probe: NotRequired[Labelled]


class ViewsBatch(TypedDict):
    """What `make_views` makes of a `TrainBatch`, and a training step takes."""

    views: Tensor | list[Tensor]  # (K, N, C, H, W), float32, normalised; a list of such for views of several sizes
    label: Tensor
    index: Tensor
    probe: NotRequired[Labelled]  # float32, normalised


class Features(TypedDict):
    """Features of labelled images."""

    features: Tensor  # (1, N, F)
    label: Tensor  # (N,)


class StepOutput(TypedDict):
    """What a training step returns, and callbacks read as `outputs`."""

    loss: Tensor  # scalar, the only one with a gradient
    terms: dict[str, Tensor]  # what `compute_loss` returned, detached scalars
    features: Tensor  # (K, N, F), detached
    label: Tensor  # (N,)
    probe: NotRequired[Features]


class EvaluationOutput(TypedDict):
    """What a validation, test or prediction step returns."""

    features: Tensor  # (N, F)
    label: Tensor  # (N,)
    index: Tensor  # (N,)


def is_for_training(batch: Batch | TrainBatch) -> TypeGuard[TrainBatch]:
    """Whether a batch is of the training loader: it says its place in the run, which its views are drawn from."""
    return "epoch" in batch
