"""Checks that augmentations draw random numbers for each row: drawn once per batch, views would be equal."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from inspect import signature
from typing import Any

import kornia.augmentation
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from msssl.errors import UserError
from msssl.views.keyed import KeyedAugmentation

_DRAWN_BY_TORCHVISION = (  # beside those whose name begins with Random
    *("AugMix", "AutoAugment", "ColorJitter", "CutMix", "ElasticTransform", "GaussianBlur"),
    *("JPEG", "MixUp", "RandAugment", "ScaleJitter", "TrivialAugmentWide"),
)
_KORNIA = {name.lower(): name for name in dir(kornia.augmentation)}
_N_TRIES = 8


def check_recipe(augmentations: Sequence[Any]) -> None:
    """Raise ValueError for a module that is known to draw once for a batch, and for anything that is no module.

    The message has its place in the list.
    """
    for position, module in enumerate(augmentations):
        _check_module(module, f"augmentations[{position}]")


def _check_module(module: Any, place: str) -> None:
    name = type(module).__name__
    if not isinstance(module, nn.Module):
        raise UserError(
            f"{place} is a {name}: expected a torch.nn.Module that takes a batch, such as those of kornia.augmentation"
        )
    draws = name.startswith("Random") or name in _DRAWN_BY_TORCHVISION
    if draws and type(module).__module__.startswith("torchvision.transforms"):
        own = _KORNIA.get(name.lower()) or _KORNIA.get(f"random{name.lower()}")
        instead = f"take kornia.augmentation.{own}, or " if own else ""
        raise UserError(
            f"{place} is {name} of torchvision, which draws once for a batch, so that all views of an image would be "
            f"equal: {instead}apply it to one image after the other, as docs/views.md shows"
        )
    # Kornia's own resizing has the attribute too, but no such argument.
    if getattr(module, "same_on_batch", None) and "same_on_batch" in signature(type(module)).parameters:
        raise UserError(
            f"{place}, {name}, has same_on_batch true, so that all views of an image would be equal: leave it out"
        )
    if isinstance(module, nn.Sequential | v2.Compose):  # Kornia's containers are of the first kind
        for i, part in enumerate(module if isinstance(module, nn.Sequential) else module.transforms):
            if isinstance(part, nn.Module):
                _check_module(part, f"{place}[{i}]")


def check_draws(
    steps: Sequence[nn.Module],
    n_views: int,
    shape: Sequence[int],
    device: torch.device,
    seeded: Callable[[int], AbstractContextManager[None]],
) -> None:
    """Run the steps on copies of one image; raise ValueError for a step that depends on the seed but not on the copy.

    Such a step draws its random numbers once for a batch. All ranks use the same image and seeds, so that they reach
    the same result. A step that rarely changes an image may pass. The host waits for the device.

    Args:
        steps: in their order.
        n_views: K.
        shape: of an image, (C, H, W).
        device: of the images.
        seeded: a context in which the global random state is that of a number.
    """
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    for step in steps:
        if isinstance(step, KeyedAugmentation):
            with seeded(0):
                image = step(image)
            continue
        made: list[Tensor] = []
        for seed in range(_N_TRIES):
            with seeded(seed):
                rows = step(image.repeat(2 * n_views, 1, 1, 1))
            made.append(rows[:1])
            if not _alike(rows, rows[:1].expand_as(rows)):
                break
            if not _alike(made[0], made[-1]):
                raise UserError(
                    f"{type(step).__name__} of augmentations draws once for a batch, so that all views of an image "
                    "would be equal: draw for each row, or apply it to one image after the other, as docs/views.md "
                    "shows"
                )
        image = made[0]


def _alike(a: Tensor, b: Tensor) -> bool:
    """Equal to rounding: the same pixels need not have the same bits in another row."""
    return a.shape == b.shape and bool(torch.isclose(a, b, rtol=0, atol=1e-4).all())
