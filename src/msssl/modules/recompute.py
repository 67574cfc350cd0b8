"""Activations that are computed again in the backward pass instead of kept."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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
