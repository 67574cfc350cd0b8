"""A compiled encoder that falls back to the eager one."""

import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class CompiledEncoder:
    """Runs an encoder through `torch.compile`; eagerly, with one line in the log, where there is no compiler.

    Args:
        encode: from images (N, C, H, W) to features (N, F).

    Attributes:
        is_compiled: whether it runs compiled; None before the first call, which tries.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor]) -> None:
        self.is_compiled: bool | None = None
        self._eager = encode
        self._compiled = torch.compile(encode, dynamic=False)  # views have few sizes

    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, F) of images."""
        if self.is_compiled is None:
            return self._try(images)
        return self._compiled(images) if self.is_compiled else self._eager(images)

    def __reduce__(self) -> tuple[Any, ...]:  # for `pickle` and `copy`: compiled code is for the very weights
        return CompiledEncoder, (self._eager,)

    def _try(self, images: Tensor) -> Tensor:
        start, self.is_compiled = perf_counter(), False
        try:
            features = self._compiled(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # no compiler, or one that fails: many kinds
            log.warning("backbone: not compiled, slower but the same: %s", str(error).partition("\n")[0])
            return self._eager(images)
        self.is_compiled = True
        log.info("backbone: forward pass compiled in %.0f s; the backward pass is next", perf_counter() - start)
        return features
