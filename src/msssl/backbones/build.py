"""Builds the module that the argument `backbone` names, and finds the widths of its input and of its features."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from msssl.backbones.resnet import ResNet
from msssl.errors import MissingPackageError, UserError
from msssl.wording import counted

_NAMES = {"resnet18": 18, "resnet34": 34, "resnet50": 50}


def build_backbone(backbone: str | nn.Module, in_channels: int = 3) -> nn.Module:
    """The module that a name stands for; a module is returned as it is.

    Args:
        backbone: `resnet18`, `resnet34` or `resnet50` for a `ResNet` of width 64 with the stem for small images;
            `timm:<name>` for a model of timm without its head and weights, which for transformers takes images of any
            size; or a module.
        in_channels: the number of channels of the images, for a backbone that is given by name.

    Raises:
        ImportError: timm is not installed.
        ValueError: the name is unknown, there are no channels, or `in_channels` is given beside a module.
    """
    if isinstance(backbone, nn.Module):
        if in_channels != 3:
            raise UserError(
                f"in_channels is {in_channels}, which is for a backbone given by name: give that number to the "
                f"{type(backbone).__name__} itself, such as --model.backbone.in_channels {in_channels}"
            )
        return backbone
    if in_channels < 1:
        raise UserError(f"in_channels is {in_channels}: expected at least 1")
    if backbone.startswith("timm:"):
        return _build_timm(backbone.removeprefix("timm:"), in_channels)
    if backbone not in _NAMES:
        raise UserError(
            f"backbone {backbone!r} is not one of {', '.join(_NAMES)}, timm:<name>; give a module by class_path instead"
        )
    return ResNet(_NAMES[backbone], in_channels=in_channels)


def _build_timm(name: str, in_channels: int) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise MissingPackageError(f"backbone timm:{name} needs timm: pip install 'msssl[timm]'") from error
    if not timm.is_model(name):
        closest = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0)[0]
        raise UserError(f"timm has no model {name!r}; did you mean timm:{closest}?")
    try:
        model: nn.Module = timm.create_model(name, num_classes=0, in_chans=in_channels, dynamic_img_size=True)
    except TypeError:  # only transformers have this argument
        model = timm.create_model(name, num_classes=0, in_chans=in_channels)
        cfg: Any = model.pretrained_cfg
        if cfg.get("fixed_input_size"):
            model.register_forward_pre_hook(_RequireImageSize(name, cfg["input_size"][-1]))
    return model


class _RequireImageSize:
    """Forward hook that raises ValueError for images of another size than the one that a network is built for."""

    def __init__(self, name: str, side: int) -> None:
        self.name = name
        self.side = side

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        height, width = inputs[0].shape[-2:]
        if (height, width) != (self.side, self.side):
            raise UserError(
                f"backbone timm:{self.name} takes images of {self.side} x {self.side} pixels only, and these have "
                f"{height} x {width}: --data.image_size {self.side} with views of that size, or another backbone"
            )


def channels_of(backbone: nn.Module) -> int | None:
    """The number of channels that a module takes, if it says so: `in_channels` of ours, `in_chans` of timm's.

    >>> channels_of(ResNet(18, width=8, in_channels=5)), channels_of(nn.Flatten())
    (5, None)
    """
    for name in ("in_channels", "in_chans"):
        if isinstance(value := getattr(backbone, name, None), int):
            return value
    return None


def check_channels(images: Tensor, backbone: nn.Module, in_channels: int | None, by_name: bool) -> None:
    """Raise ValueError for images (N, C, H, W) of another number of channels than a backbone takes.

    Args:
        images: of any shape that ends in C, H and W.
        backbone: named in the message.
        in_channels: the number of channels that it takes; None where that is not known, and nothing is checked.
        by_name: whether the backbone was given by name, which decides about the flag that the message names.
    """
    channels = images.shape[-3]
    if in_channels is None or channels == in_channels:
        return
    owner = "model" if by_name else "model.backbone"
    name = "in_channels" if by_name or not hasattr(backbone, "in_chans") else "in_chans"
    raise UserError(
        f"images have {counted(channels, 'channel')}, and the backbone {type(backbone).__name__} takes {in_channels}: "
        f"--{owner}.{name} {channels} builds one for them"
    )


def find_feature_dim(backbone: nn.Module, in_channels: int | None = None) -> int:
    """Width F of a backbone's features: of its own attribute, or else of its output for one image of 32 x 32 pixels.

    The image has `in_channels` channels, 3 where that is not known.

    Raises:
        ValueError: it fails on that image, or returns no features (N, F).
    """
    for name in ("head_hidden_size", "num_features", "feature_dim"):  # the first is timm's, behind a conv head
        if isinstance(value := getattr(backbone, name, None), int):
            return value
    image = torch.zeros(1, in_channels or 3, 32, 32)
    try:
        with torch.no_grad(), evaluating(backbone):  # BatchNorm must not learn from the dry run
            features = backbone(image)
    except Exception as error:
        raise UserError(
            f"{type(backbone).__name__} failed on one {image.shape[1]}x32x32 image ({error}): "
            "give feature_dim, the width of its features"
        ) from error
    return check_features(features, backbone).shape[1]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A context in which a module is in evaluation mode; afterwards each submodule is in its earlier mode."""
    modes = [(part, part.training) for part in module.modules()]  # some may be frozen
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def check_features(features: Tensor, backbone: nn.Module) -> Tensor:
    """Return features (N, F); raise ValueError if the backbone returned something else, which the message names."""
    if not isinstance(features, Tensor) or features.ndim != 2:
        returned = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"backbone {type(backbone).__name__} returned {returned}: expected features of shape (N, F)")
    return features
