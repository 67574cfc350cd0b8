"""How views pass through the encoder: compiled where it can be, and some at a time where memory is short."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

log = logging.getLogger(__name__)


def features_of(encode: Any, views: Tensor, chunk_views: int | None, backbone: nn.Module) -> Any:
    """Features (K, N, F) of views (K, N, C, H, W): all together, or so many at a time, recomputed.

    Args:
        encode: from images to features, through the backbone.
        views: normalised.
        chunk_views: how many views pass together, of which only they are kept until the backward pass runs them again.
        backbone: whose buffers change in the first pass alone: BatchNorm must see a batch once, not twice.

    Source: Chen et al. 2016 (arXiv:1604.06174).
    """
    if chunk_views is None:
        return encode(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    chunks = [
        checkpoint(
            encode,
            chunk.flatten(0, 1),
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _buffers_kept(backbone)),
        )
        for chunk in views.split(chunk_views)
    ]
    return torch.cat(chunks).unflatten(0, views.shape[:2])


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """What the module writes into its buffers is lost."""
    kept = [(part, name, buffer) for part in module.modules() for name, buffer in part.named_buffers(recurse=False)]
    try:
        for part, name, buffer in kept:
            part._buffers[name] = buffer.clone()
        yield
    finally:
        for part, name, buffer in kept:
            part._buffers[name] = buffer


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
