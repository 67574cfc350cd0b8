"""Seeded, class-balanced, nested choices of images."""

import torch
from torch import Tensor


def hold_out(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Positions kept and held out, each sorted; of every class the same fraction (rounded) is held out.

    >>> kept, held_out = hold_out(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)
    >>> len(kept), len(held_out)
    (6, 2)
    """
    chosen = choose(labels, fraction, seed)
    mask = torch.ones(len(labels), dtype=torch.bool)
    mask[chosen] = False
    return mask.nonzero().flatten(), chosen


def choose(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Sorted positions of a fraction of each class (rounded), nested: a smaller fraction is inside a larger one."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        positions = (labels == label).nonzero().flatten()
        order = torch.randperm(len(positions), generator=generator)
        chosen.append(positions[order[: round(fraction * len(positions))]])
    return torch.cat(chosen).sort().values
