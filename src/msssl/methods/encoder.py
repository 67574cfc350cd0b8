"""Passes views through the encoder: compiled where possible, and in chunks with recomputation to save memory."""

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
    """Features (K, N, F) of normalised views (K, N, C, H, W).

    Args:
        encode: maps images to features by the backbone.
        views: all views of a batch.
        chunk_views: number of views that pass together, with activation checkpointing: their activations are computed
            again in the backward pass. None passes all views at once without it.
        backbone: its buffers are not changed by the recomputation, since BatchNorm must count each batch once.

    Source: Chen et al. 2016 (arXiv:1604.06174).
    """
    if chunk_views is None:
        return encode(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    chunks = [
        checkpoint(
            encode,
            chunk.flatten(0, 1),
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _frozen_buffers(backbone)),
        )
        for chunk in views.split(chunk_views)
    ]
    return torch.cat(chunks).unflatten(0, views.shape[:2])


@contextmanager
def _frozen_buffers(module: nn.Module) -> Iterator[None]:
    """Discards what the module writes into its buffers within the context."""
    buffers = [(part, name, buffer) for part in module.modules() for name, buffer in part.named_buffers(recurse=False)]
    try:
        for part, name, buffer in buffers:
            part._buffers[name] = buffer.clone()
        yield
    finally:
        for part, name, buffer in buffers:
            part._buffers[name] = buffer


class CompiledEncoder:
    """Runs an encoder compiled by `torch.compile`, or eagerly, with a warning, where compilation fails.

    Args:
        encode: maps images (N, C, H, W) to features (N, F).

    Attributes:
        is_compiled: whether it runs compiled; None before the first call, in which compilation is tried.
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

    def __reduce__(self) -> tuple[Any, ...]:  # for `pickle` and `copy`: compiled code belongs to these weights
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
