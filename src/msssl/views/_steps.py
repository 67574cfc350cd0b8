"""The drawn augmentations of a step, one after the other: eagerly or as one compiled function."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from msssl.views._drawn import Drawn, constant

Params = dict[str, Tensor]


class Repeat(Drawn):
    """The first step: uint8 images (N, C, H, W) to K copies in [0, 1], view-major."""

    n_uniforms = 0

    def __init__(self, n_views: int) -> None:
        self.n_views = n_views
        self.flags: dict[str, Any] = {}

    def make_params(self, uniforms: Tensor, size: tuple[int, int]) -> Params:
        """None."""
        return {}

    def apply_transform(self, input: Tensor, params: Params, flags: dict[str, Any]) -> Tensor:
        """The copies (K * N, C, H, W)."""
        return input.repeat(self.n_views, 1, 1, 1).float().div_(255)


class Normalize(Drawn):
    """The last step: minus mean, over std."""

    n_uniforms = 0

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean, self.std = mean, std
        self.flags: dict[str, Any] = {}

    def make_params(self, uniforms: Tensor, size: tuple[int, int]) -> Params:
        """Those of the device."""
        return self.constants(uniforms.device)

    def constants(self, device: torch.device) -> Params:
        """Factor and offset: 1 / std and -mean / std."""
        offsets = tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))
        values = {"factor": tuple(1 / std for std in self.std), "offset": offsets}
        return {name: constant(value, device).view(-1, 1, 1) for name, value in values.items()}

    def apply_transform(self, input: Tensor, params: Params, flags: dict[str, Any]) -> Tensor:
        """The normalised views; in the layout that convolutions are fastest in."""
        layout = torch.channels_last if input.is_cuda else torch.contiguous_format
        return torch.addcmul(params["offset"], input, params["factor"]).contiguous(memory_format=layout)


def run(views: Tensor, steps: list[Any], params: list[Params]) -> Tensor:
    """Apply the steps with their parameters."""
    for step, drawn in zip(steps, params, strict=True):
        views = step.apply_transform(views, drawn, step.flags)
    return views


@functools.cache
def compiled_run() -> Callable[[Tensor, list[Any], list[Params]], Tensor]:
    """`run`, compiled for each set of steps and shapes."""
    return torch.compile(run, dynamic=False)
