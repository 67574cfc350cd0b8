"""Draws the report of a probe: confusion matrix, spectra of the features, and nearest neighbours of some images."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from msssl.data import MultiViewDataModule
from msssl.drawing import draw_confusion, draw_neighbours, draw_spectrum
from msssl.evaluation.probe.features import Split
from msssl.metrics import neighbours
from msssl.run.files import atomic_write

N_IMAGES, N_NEIGHBOURS = 6, 6


class Nearest(NamedTuple):
    """Some images of a split, and the training images whose features are nearest to those of each.

    Attributes:
        split: `test`, `val` or `probe`.
        rows: rows of the images in the split, shape (n,).
        similarity: cosine similarity to the neighbours, nearest first, shape (n, k).
        neighbours: rows of the neighbours in `probe`, shape (n, k).
    """

    split: str
    rows: Tensor
    similarity: Tensor
    neighbours: Tensor


def nearest_images(features: dict[str, Split], split: str) -> Nearest:
    """The nearest training images of a few images of a split, or of `probe` where there are no features of that split.

    Args:
        features: of each split.
        split: of the images.
    """
    split = split if split in features else "probe"  # a cross-validation has no split of its own
    n_self = int(split == "probe")  # the nearest of these is the image itself
    (x, _), (bank, _) = features[split], features["probe"]
    rows = torch.linspace(0, len(x) - 1, min(N_IMAGES, len(x))).long()
    similarity, nearest = neighbours(x[rows.to(x.device)], bank, min(N_NEIGHBOURS + n_self, len(bank)))
    return Nearest(split, rows, similarity[:, n_self:].cpu(), nearest[:, n_self:].cpu())


def draw_report(
    report: dict[str, Any], data: MultiViewDataModule, spectra: dict[str, Tensor], nearest: Nearest, path: Path
) -> None:
    """Write a picture of the confusion matrix, the spectra and the nearest training images of a few images.

    Args:
        report: its last row is that of the pretrained encoder.
        data: data module of the images.
        spectra: eigenvalues of the features' covariance, largest first, by the name of the encoder.
        nearest: neighbours by the features of the pretrained encoder.
        path: of the picture.
    """
    from matplotlib.figure import Figure  # half a second, for this only

    split, row = report["reported_on"], report["rows"][-1]
    figure = Figure(figsize=(15, 5), dpi=150, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    if f"{split}_confusion" in row:
        draw_confusion(left, torch.tensor(row[f"{split}_confusion"]), report["classes"])
    draw_spectrum(middle, spectra)
    preprocess = data.preprocess
    shown = preprocess.picture(data.evaluation_dataloader("probe").pixels(nearest.neighbours.flatten()))
    shown = shown.unflatten(0, nearest.neighbours.shape)
    queries = preprocess.picture(data.evaluation_dataloader(nearest.split).pixels(nearest.rows))
    draw_neighbours(right, queries, shown, nearest.similarity)
    figure.suptitle(f"{row['features']}: {report['protocol']}", fontsize=8, wrap=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
