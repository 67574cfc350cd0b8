"""A compiled encoder that falls back to the eager one."""

import logging
from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class CompiledEncoder:
    """Runs an encoder through `torch.compile`; eagerly, with one line in the log, where it cannot be compiled.

    Args:
        encode: from images (N, C, H, W) to features (N, F).
    """

    def __init__(self, encode: Callable[[Tensor], Tensor]) -> None:
        self._eager = self._encode = encode
        self._compiled = torch.compile(encode)
        self._tried = False

    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, F) of images."""
        if self._tried:
            return self._encode(images)
        self._tried, start = True, perf_counter()
        try:
            features = self._compiled(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # no compiler, or one that fails: many kinds
            log.warning("backbone: not compiled, slower but the same: %s", str(error).partition("\n")[0])
            return self._eager(images)
        self._encode = self._compiled
        log.info("backbone: forward pass compiled in %.0f s; the backward pass is next", perf_counter() - start)
        return features
