"""Draws features with matplotlib: their spectrum, nearest neighbours and confusion matrix."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def draw_spectrum(axes: Any, spectra: dict[str, Tensor]) -> None:
    """Draw eigenvalues of covariances, relative to the largest one, on logarithmic axes.

    Args:
        axes: axes of matplotlib.
        spectra: eigenvalues (n,), largest first, by the name of their curve.
    """
    for name, values in spectra.items():
        shown = (values / values[0].clamp(min=torch.finfo(values.dtype).tiny)).cpu()
        axes.loglog(torch.arange(1, len(shown) + 1).numpy(), shown.clamp(min=1e-12).numpy(), label=name)
    axes.set(xlabel="dimension", ylabel="variance, of the largest", title="Eigenspectrum of features")
    if len(spectra) > 1:
        axes.legend(frameon=False)


def draw_neighbours(axes: Any, images: Tensor, nearest: Tensor, similarity: Tensor) -> None:
    """Draw a row for each image, with its nearest neighbours to the right.

    Args:
        axes: axes of matplotlib.
        images: uint8, shape (n, 3, H, W).
        nearest: images of the neighbours, uint8, shape (n, k, 3, H, W).
        similarity: similarities, shape (n, k), which are written on the neighbours.
    """
    n, k, _, height, width = nearest.shape
    canvas = torch.full((n, height, (k + 1) * width + width // 4, 3), 255, dtype=torch.uint8)
    canvas[:, :, :width] = images.permute(0, 2, 3, 1).cpu()
    canvas[:, :, width + width // 4 :] = nearest.permute(0, 3, 1, 4, 2).reshape(n, height, k * width, 3).cpu()
    axes.imshow(canvas.flatten(0, 1).numpy(), interpolation="nearest")
    for row in range(n):
        for column in range(k):
            x, y = width * (column + 1.25) + 1, row * height + 1
            label = f"{float(similarity[row, column]):.2f}"
            axes.text(
                x, y, label, fontsize=5, color="white", va="top", bbox={"color": "black", "pad": 0.5, "alpha": 0.5}
            )
    axes.set_axis_off()
    axes.set_title("Images and their nearest neighbours")


def draw_confusion(axes: Any, confusion: Tensor, names: Sequence[str]) -> None:
    """Draw a confusion matrix: the share of each true class (rows) that was predicted as each class (columns).

    Args:
        axes: axes of matplotlib.
        confusion: counts, shape (C, C).
        names: names of the classes.
    """
    shares = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="taken for", ylabel="class", title="Confusion on images not seen")
    if len(names) > 20:
        return
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    for row, column in (shares >= 0.005).nonzero().tolist():
        share = float(shares[row, column])
        colour = "white" if share > 0.5 else "black"
        axes.text(column, row, f"{share:.2f}".lstrip("0"), ha="center", va="center", fontsize=5, color=colour)
