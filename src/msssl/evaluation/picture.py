"""The report of a probe as a picture."""

from pathlib import Path
from typing import Any

import torch

from msssl.checkpoint import whole
from msssl.data import MultiViewDataModule
from msssl.drawing import draw_confusion, draw_neighbours, draw_spectrum
from msssl.evaluation.features import Split
from msssl.metrics import eigenspectrum, neighbours

N_IMAGES, N_NEIGHBOURS = 6, 6


def draw_report(
    report: dict[str, Any],
    data: MultiViewDataModule,
    random: dict[str, Split] | None,
    pretrained: dict[str, Split],
    path: Path,
) -> None:
    """Write the confusion matrix, the spectra and the training images nearest to images not seen.

    Args:
        report: with its rows, the pretrained encoder's last.
        data: of the images.
        random: features of each split by the network with random weights, if there are any.
        pretrained: features of each split.
        path: of the picture.
    """
    from matplotlib.figure import Figure  # half a second, for this only

    split, row = report["reported_on"], report["rows"][-1]
    figure = Figure(figsize=(15, 5), dpi=150, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    if f"{split}_confusion" in row:
        draw_confusion(left, torch.tensor(row[f"{split}_confusion"]), report["classes"])
    spectra = {} if random is None else {"random weights": random["probe"][0]}
    spectra["pretrained"] = pretrained["probe"][0]
    draw_spectrum(middle, {name: eigenspectrum(features) for name, features in spectra.items()})
    of = split if split in pretrained else "probe"  # a cross-validation has no split of its own
    n_self = int(of == "probe")  # the nearest of these is the image itself
    features, bank = pretrained[of][0], pretrained["probe"][0]
    rows = torch.linspace(0, len(features) - 1, min(N_IMAGES, len(features))).long()
    similarity, nearest = neighbours(features[rows.to(features.device)], bank, min(N_NEIGHBOURS + n_self, len(bank)))
    similarity, nearest = similarity[:, n_self:], nearest[:, n_self:]
    shown = data.evaluation_dataloader("probe").pixels(nearest.flatten().cpu()).unflatten(0, nearest.shape)
    draw_neighbours(right, data.evaluation_dataloader(of).pixels(rows), shown, similarity)
    figure.suptitle(f"{row['features']}: {report['protocol']}", fontsize=8, wrap=True)
    with whole(path) as growing:
        figure.savefig(growing, format="png")
