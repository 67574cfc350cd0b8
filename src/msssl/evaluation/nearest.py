"""The images whose frozen features are nearest to those of some others."""

from typing import NamedTuple

import torch
from torch import Tensor

from msssl import metrics


class Nearest(NamedTuple):
    """Some images of a split, and the training images whose features are nearest to those of each.

    Attributes:
        rows: rows of the images in their split, shape (n,).
        similarity: cosine similarity to the neighbours, nearest first, shape (n, k).
        neighbours: rows of the neighbours among the training images, shape (n, k).
    """

    rows: Tensor
    similarity: Tensor
    neighbours: Tensor


def nearest_of(features: Tensor, bank: Tensor, n_images: int, n_neighbours: int, same: bool) -> Nearest:
    """The nearest neighbours in a bank (M, F) of images that are evenly spread over those of `features` (N, F).

    Args:
        features: of the images.
        bank: features of the images that are searched, on the same device.
        n_images: how many images, at most.
        n_neighbours: how many neighbours of each, at most.
        same: whether both are the same images, so that each image is left out of its own neighbours.
    """
    rows = torch.linspace(0, len(features) - 1, min(n_images, len(features))).long()
    number = min(n_neighbours + same, len(bank))
    similarity, nearest = (
        values.cpu() for values in metrics.neighbours(features[rows.to(features.device)], bank, number)
    )
    if same:
        kept = nearest != rows[:, None]
        kept[kept.all(dim=1), -1] = False  # so many copies of the image that it is not among the nearest itself
        similarity, nearest = (values[kept].unflatten(0, (len(rows), -1)) for values in (similarity, nearest))
    return Nearest(rows, similarity, nearest)
