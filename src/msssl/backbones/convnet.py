"""`ConvNet`, a plain convolutional network that trains fast, for short runs and for CPUs."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from msssl.errors import UserError
from msssl.recorded import Recorded


class ConvNet(Recorded, nn.Module):
    """Convolutions with batch norm and ReLU, without shortcuts: images (N, C, H, W) to features (N, num_features).

    The first convolution has patches of 4 x 4 pixels, so that an image of 32 px has 8 x 8 positions. The others are
    3 x 3; all of them except the second convolution halve the side. It is for runs of a few minutes and for CPUs: the
    forward pass of an image of 32 px needs 0.014 GFLOP at the default width, that of a ResNet-18 of width 64 needs 1.1.

    Args:
        channels: output channels of the convolutions, in order; the last number is `num_features`.
        in_channels: C, the number of channels of the images; 3 for RGB.

    Raises:
        ValueError: there are fewer than two convolutions, or one has no channels, or the images have none.

    >>> import torch
    >>> ConvNet([8, 16, 64])(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 64])
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 128, 1024), in_channels: int = 3) -> None:
        super().__init__()
        if len(channels) < 2 or min(channels) < 1:
            raise UserError(f"channels is {list(channels)}: expected two numbers or more, each at least 1")
        if in_channels < 1:
            raise UserError(f"in_channels is {in_channels}: expected at least 1")
        self.num_features, self.in_channels = channels[-1], in_channels
        layers = _layer(in_channels, channels[0], kernel=4, stride=4, padding=0)
        for number, (before, after) in enumerate(pairwise(channels)):
            layers += _layer(before, after, kernel=3, stride=2 if number else 1, padding=1)
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, num_features) of images (N, C, H, W)."""
        features: Tensor = self.layers(images)
        return features


def _layer(before: int, after: int, kernel: int, stride: int, padding: int) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
