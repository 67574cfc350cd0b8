"""Augmentation recipes by name."""

from collections.abc import Callable
from dataclasses import dataclass

from kornia import augmentation as K
from torch import nn

RGB = tuple[float, float, float]

IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preset:
    """A recipe: augmentations for a size (H, W) in pixels, and the statistics of its data set (of values in [0, 1])."""

    augmentations: Callable[[tuple[int, int]], list[nn.Module]]
    mean: RGB
    std: RGB


def _cifar(size: tuple[int, int]) -> list[nn.Module]:
    return [
        # "slice", Kornia's default, loops over the images in Python.
        K.RandomResizedCrop(size, scale=(0.08, 1.0), cropping_mode="resample"),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.0, p=0.8),  # no hue, as the paper's code has it
        K.RandomGrayscale(p=0.2),
    ]


PRESETS = {
    # Ghosh et al. 2024, CIFAR-10. The statistics are those of its 50,000 training images, pooled over pixels.
    "cifar": Preset(_cifar, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
}
