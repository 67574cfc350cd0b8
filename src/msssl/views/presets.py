"""The named presets of `MultiView`: augmentations, statistics for normalisation, and sizes."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from msssl.views.blur import BlurSolarize
from msssl.views.channel_drop import ChannelDrop
from msssl.views.colour import ColorJitterGrayscale
from msssl.views.crop import RandomResizedCropFlip
from msssl.views.intensity import IntensityJitter
from msssl.views.symmetry import RandomD4

RGB = tuple[float, float, float]
Size = tuple[int, int]

IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preset:
    """A recipe for training and evaluation images, and the statistics of its data set.

    Attributes:
        augmentations: the recipe for views of a size (H, W) in pixels.
        mean: of the channels, in [0, 1]; None where it is computed from the training images.
        std: likewise.
        size: side of the views in pixels; None for that of the images.
        resize: where `size` is given, the short side to which evaluation images are resized before their central
            square of `size` is taken.
        channels: how many channels images may have; None for any number.
    """

    augmentations: Callable[[Size], list[nn.Module]]
    mean: RGB | None = IMAGENET_MEAN
    std: RGB | None = IMAGENET_STD
    size: int | None = None
    resize: int | None = None
    channels: tuple[int, ...] | None = (3,)


def _cifar(size: Size) -> list[nn.Module]:
    # No hue, as the paper's code has it.
    return [RandomResizedCropFlip(size), ColorJitterGrayscale(0.4, 0.4, 0.4, p_jitter=0.8, p_grayscale=0.2)]


def _stl10(size: Size) -> list[nn.Module]:
    crop = RandomResizedCropFlip(size, scale=(0.2, 1.0))
    return [crop, ColorJitterGrayscale(0.4, 0.4, 0.4, p_jitter=0.8, p_grayscale=0.1)]


def _imagenet(size: Size) -> list[nn.Module]:
    jitter = ColorJitterGrayscale(0.4, 0.4, 0.4, 0.1, p_jitter=0.8, p_grayscale=0.2)
    return [RandomResizedCropFlip(size), jitter, BlurSolarize(p_blur=0.0, p_solarize=0.2)]


def _grayscale(size: Size) -> list[nn.Module]:
    return [RandomResizedCropFlip(size, scale=(0.2, 1.0)), ColorJitterGrayscale(0.4, 0.4, p_jitter=0.8)]


def _simclr(size: Size) -> list[nn.Module]:
    small = min(size) < 64  # the authors' variant for CIFAR-10: half the strength, no blur
    strength = 0.5 if small else 1.0
    most = 0.8 * strength
    jitter = ColorJitterGrayscale(most, most, most, 0.2 * strength, p_jitter=0.8, p_grayscale=0.2)
    recipe: list[nn.Module] = [RandomResizedCropFlip(size), jitter]
    return recipe if small else [*recipe, BlurSolarize(_tenth(size), p_blur=0.5)]


def _barlow(size: Size) -> list[nn.Module]:
    return [*_byol(size), BlurSolarize(_tenth(size), p_blur=[1.0, 0.1], p_solarize=[0.0, 0.2])]


def _vicreg(size: Size) -> list[nn.Module]:
    return [*_byol(size), BlurSolarize(_tenth(size), p_blur=0.5, p_solarize=0.1)]


def _byol(size: Size) -> list[nn.Module]:
    jitter = ColorJitterGrayscale(0.4, 0.4, 0.2, 0.1, p_jitter=0.8, p_grayscale=0.2)
    return [RandomResizedCropFlip(size), jitter]


def _photograph(size: Size) -> list[nn.Module]:
    smallest, largest = (round(sigma * min(size) / 224, 4) for sigma in (0.1, 2.0))
    blur = BlurSolarize(_tenth(size), sigma=(smallest, largest), p_blur=0.5, p_solarize=0.1)
    return [*_byol(size), blur]


def _xray(size: Size) -> list[nn.Module]:
    jitter = IntensityJitter(brightness=0.4, contrast=0.4, gamma=0.4, noise=0.02, p_jitter=0.8)
    return [RandomResizedCropFlip(size, scale=(0.5, 1.0)), jitter]


def _microscopy(size: Size) -> list[nn.Module]:
    crop = RandomResizedCropFlip(size, scale=(0.4, 1.0), p_flip=0.0)
    jitter = IntensityJitter(0.4, 0.4, gamma=0.2, noise=0.02, per_channel=True, p_jitter=0.8)
    return [crop, RandomD4(), jitter, ChannelDrop(p_drop=0.2, most=0.25)]


def _aerial(size: Size) -> list[nn.Module]:
    crop = RandomResizedCropFlip(size, scale=(0.2, 1.0), p_flip=0.0)
    jitter = IntensityJitter(brightness=0.4, contrast=0.4, p_jitter=0.8)
    return [crop, RandomD4(), jitter, BlurSolarize(_tenth(size), p_blur=0.5), ChannelDrop(p_drop=0.5, most=0.5)]


def _tenth(size: Size) -> int:
    """The odd kernel of about a tenth of the side: 23 pixels at 224."""
    return 2 * round(min(size) / 20) + 1


PRESETS = {
    # Ghosh et al. 2024, appendix D and their code, with three slips mended: a std that was the mean (STL-10,
    # ImageNet-100), crops that were always square and an evaluation crop of a quarter of the image (ImageNet-100).
    # CIFAR-10's statistics are those of its 50,000 training images, pooled over pixels.
    "cifar": Preset(_cifar, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    "stl10": Preset(_stl10, mean=(0.4467, 0.4398, 0.4066), std=(0.2242, 0.2215, 0.2239), size=64, resize=64),
    "imagenet": Preset(_imagenet, size=224, resize=256),
    "imagenet100": Preset(_imagenet, size=128, resize=146),
    # Of images whose originals have one channel, which the data modules repeat.
    "grayscale": Preset(_grayscale, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), channels=(1, 3)),
    "simclr": Preset(_simclr),  # Chen et al. 2020, appendix A; B.9 below 64 pixels
    "barlow": Preset(_barlow),  # Zbontar et al. 2021, section 2.2: those of BYOL (Grill et al. 2020, table 6)
    "vicreg": Preset(_vicreg),  # Bardes et al. 2022: the same for all views
    # The four below are for domains rather than for data sets, so that mean and std come from the training images.
    # MoCo-CXR (Sowrirajan et al. 2021): a flip, no colour, and neither blur nor small crops, which can hide a finding.
    "xray": Preset(_xray, None, None, channels=(1, 3)),
    # Cell-DINO (Moutakanni et al. 2025): flips in both axes, gains of each channel, a channel less in a fifth of views.
    "microscopy": Preset(_microscopy, None, None, channels=None),
    # SSL4EO-S12 (Wang et al. 2023), MoCo v2 on 13 bands; without its average of all bands, with turns.
    "aerial": Preset(_aerial, None, None, channels=None),
    # VICReg's, with a blur in proportion to the size of the views: its 0.1 to 2 pixels at 224.
    "photograph": Preset(_photograph, None, None),
}
