"""From the `backbone` argument to a module and the width of its features."""

import torch
from torch import Tensor, nn

from msssl.backbones.resnet import ResNet

_NAMES = {"resnet18": 18, "resnet34": 34, "resnet50": 50}


def build_backbone(backbone: str | nn.Module) -> nn.Module:
    """A module as it is; a name (`resnet18`, `resnet34`, `resnet50`) as `ResNet` at width 64, small-image stem."""
    if isinstance(backbone, nn.Module):
        return backbone
    if backbone not in _NAMES:
        raise ValueError(
            f"backbone {backbone!r} is not one of {', '.join(_NAMES)}; give a module by class_path instead"
        )
    return ResNet(_NAMES[backbone])


def find_feature_dim(backbone: nn.Module) -> int:
    """Width F of a backbone's features: its `num_features` or `feature_dim`, else that of one 3x32x32 image."""
    for name in ("num_features", "feature_dim"):
        if isinstance(value := getattr(backbone, name, None), int):
            return value
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()  # BatchNorm must not learn from the dry run
    try:
        with torch.no_grad():
            features = backbone(torch.zeros(1, 3, 32, 32))
    except Exception as error:
        raise ValueError(
            f"{type(backbone).__name__} failed on one 3x32x32 image ({error}): "
            "give feature_dim, the width of its features"
        ) from error
    finally:
        for module, training in modes:  # one by one: a part of it may be frozen
            module.training = training
    return check_features(features, backbone).shape[1]


def check_features(features: Tensor, backbone: nn.Module) -> Tensor:
    """Return features (N, F), or raise ValueError naming what the backbone returned."""
    if not isinstance(features, Tensor) or features.ndim != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"backbone {type(backbone).__name__} returned {found}: expected features of shape (N, F)")
    return features
