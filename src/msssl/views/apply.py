"""Applies augmentations whose parameters have been drawn, one after the other: eagerly or as one compiled function."""

import logging
from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from msssl.views.keyed import KeyedAugmentation, constant

log = logging.getLogger(__name__)

Params = dict[str, Tensor]


class Repeat(KeyedAugmentation):
    """The first step: K copies in [0, 1], view-major, of images (N, C, H, W) of uint8, or of float32 in [0, 1]."""

    n_uniforms = 0

    def __init__(self, n_views: int) -> None:
        self.n_views = n_views
        self.flags: dict[str, Any] = {}

    def make_params(self, uniforms: Tensor, size: tuple[int, int]) -> Params:
        """None."""
        return {}

    def apply_transform(self, input: Tensor, params: Params, flags: dict[str, Any]) -> Tensor:
        """The copies (K * N, C, H, W)."""
        copies = input.repeat(self.n_views, 1, 1, 1)
        return copies.float().div_(255) if input.dtype == torch.uint8 else copies


class Normalize(KeyedAugmentation):
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


class CompiledRun:
    """`run`, compiled once for each shape of a batch.

    After a compilation that failed, and beyond 8 shapes, batches of new shapes run uncompiled. Only the first call of a
    shape may fall back, since a later error does not come from the compiler.
    """

    most = 8  # shapes: each takes seconds, and those of training are few

    def __init__(self) -> None:
        self._by_shape: dict[Any, Callable[..., Tensor]] = {}
        self._stopped = False

    def __call__(self, shape: Hashable, views: Tensor, steps: list[Any], params: list[Params]) -> Tensor:
        """The views; `shape` is whatever makes another function of `run`."""
        if shape not in self._by_shape and not self._stopped:
            if len(self._by_shape) < self.most:
                return self._try(shape, views, steps, params)
            log.warning("views: compiled for %d shapes of batches; others run slower, but the same", self.most)
            self._stopped = True
        function = self._by_shape.get(shape)
        return run(views, steps, params) if function is None else function(views, steps, params)

    @property
    def is_compiled(self) -> bool:
        """Whether each call so far ran compiled."""
        return bool(self._by_shape) and not self._stopped

    def __reduce__(self) -> tuple[type["CompiledRun"], tuple[()]]:
        return CompiledRun, ()  # compiled code is for one process and the very steps

    def _try(self, shape: Hashable, views: Tensor, steps: list[Any], params: list[Params]) -> Tensor:
        function = compiled(run)
        try:
            made = function(views, steps, params)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # no compiler, or one that fails: many kinds
            log.warning("views: not compiled, slower but the same: %s", str(error).partition("\n")[0])
            self._stopped = True
            return run(views, steps, params)
        self._by_shape[shape] = function
        return made


def compiled(function: Any) -> Callable[..., Tensor]:
    """A function compiled anew: torch stops after a few compilations of the same code, whosever they are."""
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    return torch.compile(own, dynamic=False)
