"""Draws the report of a probe: confusion matrix, spectra of the features, and nearest neighbours of some images."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msssl.data import MultiViewDataModule
from msssl.drawing import draw_confusion, draw_neighbours, draw_spectrum
from msssl.evaluation.nearest import Nearest, nearest_of
from msssl.evaluation.probe.features import Split
from msssl.run.files import atomic_write

N_IMAGES, N_NEIGHBOURS = 6, 6


def nearest_images(features: dict[str, Split], split: str) -> tuple[str, Nearest]:
    """The nearest training images of a few images of a split, or of `probe` where there are no features of that split.

    Args:
        features: of each split.
        split: of the images.

    Returns:
        The split, and the neighbours of its images.
    """
    split = split if split in features else "probe"  # a cross-validation has no split of its own
    bank = features["probe"][0]
    return split, nearest_of(features[split][0], bank, N_IMAGES, N_NEIGHBOURS, same=split == "probe")


def draw_report(
    report: dict[str, Any],
    data: MultiViewDataModule,
    spectra: dict[str, Tensor],
    nearest: tuple[str, Nearest],
    path: Path,
) -> None:
    """Write a picture of the confusion matrix, the spectra and the nearest training images of a few images.

    Args:
        report: its last row is that of the pretrained encoder.
        data: data module of the images.
        spectra: eigenvalues of the features' covariance, largest first, by the name of the encoder.
        nearest: what `nearest_images` returned for the features of the pretrained encoder.
        path: of the picture.
    """
    from matplotlib.figure import Figure  # half a second, for this only

    split, row = report["reported_on"], report["rows"][-1]
    figure = Figure(figsize=(15, 5), dpi=150, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    if f"{split}_confusion" in row:
        draw_confusion(left, torch.tensor(row[f"{split}_confusion"]), report["classes"])
    draw_spectrum(middle, spectra)
    (of_split, found), preprocess = nearest, data.preprocess
    shown = preprocess.picture(data.evaluation_dataloader("probe").pixels(found.neighbours.flatten()))
    shown = shown.unflatten(0, found.neighbours.shape)
    queries = preprocess.picture(data.evaluation_dataloader(of_split).pixels(found.rows))
    draw_neighbours(right, queries, shown, found.similarity)
    figure.suptitle(f"{row['features']}: {report['protocol']}", fontsize=8, wrap=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
