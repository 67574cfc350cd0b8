"""Adds to an out-of-memory error what can be changed to need less memory."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from typing_extensions import override


class MemoryAdvice(Callback):
    """Adds to an out-of-memory error how large a step was, and which two arguments make it smaller.

    Every `MultiViewModule` adds this callback.
    """

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, torch.OutOfMemoryError):
            return
        data: Any = getattr(trainer, "datamodule", None)
        batch, views = getattr(data, "batch_size", "?"), getattr(getattr(data, "views", None), "n_views", "?")
        chunk_views = getattr(pl_module, "chunk_views", None)
        together = "all" if chunk_views is None else chunk_views
        exception.add_note(
            f"A step on this device had {batch} images with {views} views each, {together} of them in memory together. "
            f"Lower data.batch_size ({batch}), or set model.chunk_views: 1 view at a time needs the least memory, and "
            "the loss still sees all of them."
        )
