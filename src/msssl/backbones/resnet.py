"""`ResNet`, the residual networks of torchvision at any width, and with a stem for small images."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from msssl.errors import UserError
from msssl.recorded import Recorded

_STAGES: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(Recorded, nn.Module):
    """ResNet (He et al. 2016) without its classifier: images (N, C, H, W) to features (N, num_features).

    Parameter names and initialisation are torchvision's, so at `width=64, low_resolution=False` its weights load.

    Args:
        depth: 18, 34 or 50.
        width: channels of the first stage; the last stage has 8 times as many (32 times at depth 50).
        low_resolution: whether the stem is for images of 32 to 96 px: 3x3 with stride 1 and no max-pool, as in the
            paper, with the ReLU that is missing in its code. Otherwise it is 7x7 with stride 2 and max-pool.
        in_channels: C, the number of channels of the images; 3 for RGB.

    Raises:
        ValueError: another depth, or no channels.

    >>> import torch
    >>> ResNet(18, width=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 64])
    >>> ResNet(18, width=8, in_channels=5)(torch.zeros(2, 5, 32, 32)).shape
    torch.Size([2, 64])
    """

    def __init__(self, depth: int = 18, width: int = 64, low_resolution: bool = True, in_channels: int = 3) -> None:
        super().__init__()
        if depth not in _STAGES:
            raise UserError(f"depth is {depth}: a ResNet has depth {', '.join(map(str, _STAGES))}")
        if in_channels < 1:
            raise UserError(f"in_channels is {in_channels}: expected at least 1")
        block, lengths = _STAGES[depth]
        self.depth, self.width, self.low_resolution, self.in_channels = depth, width, low_resolution, in_channels
        self.num_features = 8 * width * block.expansion
        kernel, stride = (3, 1) if low_resolution else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if low_resolution else nn.MaxPool2d(3, stride=2, padding=1)
        stages = []
        channels = width
        for stage, length in enumerate(lengths):
            planes = width * 2**stage
            blocks = [_block(block, channels, planes, stride=1 if stage == 0 else 2)]
            channels = planes * block.expansion
            blocks += [_block(block, channels, planes, stride=1) for _ in range(length - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, num_features) of images (N, C, H, W)."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        features: Tensor = self.avgpool(x).flatten(1)
        return features


def _block(
    kind: type[BasicBlock] | type[Bottleneck], channels: int, planes: int, stride: int
) -> BasicBlock | Bottleneck:
    shortcut = None
    if stride != 1 or channels != planes * kind.expansion:
        shortcut = nn.Sequential(
            nn.Conv2d(channels, planes * kind.expansion, 1, stride, bias=False),
            nn.BatchNorm2d(planes * kind.expansion),
        )
    return kind(channels, planes, stride, shortcut)
