"""Stops a run whose loss is NaN or infinite, before a checkpoint is written."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from msssl.distributed import gather_objects
from msssl.run.files import NotWrittenError, write_text

_MOST = 1000  # steps whose losses are kept at most, whatever `log_every_n_steps` is


class NonFiniteGuard(Callback):
    """Stops a run at a loss that is not finite, and says in which step, with which terms and for which images.

    The losses stay on the device and are read together: at logging steps, at the end of an epoch and before a
    checkpoint is written. So steps do not wait for the device, and no checkpoint holds weights from after such a loss.
    (The only exception is a checkpoint of weights alone within an epoch, for which Lightning calls no hook.) Every
    `MultiViewModule` adds this callback.

    Raises:
        FloatingPointError: on every rank. It names the first such step, and the file `non_finite.json` in the trainer's
            `default_root_dir`, which holds the indices of the images of the global batch.
    """

    def __init__(self) -> None:
        self._steps: list[dict[str, Any]] = []  # since the losses were read last
        self._read_at = 0  # step at which they were read last

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not outputs:  # a `training_step` that skipped the batch
            return
        place = {"step": trainer.global_step, "epoch": trainer.current_epoch, "batch": batch_idx}
        terms = outputs.get("terms") or {"loss": outputs["loss"]}
        self._steps.append({**place, "terms": terms, "index": batch.get("index")})
        every = min(trainer.log_every_n_steps or _MOST, _MOST)  # type: ignore[attr-defined]
        # Several batches have the same step where gradients are accumulated.
        logs = trainer.global_step % every == 0 and trainer.global_step > self._read_at
        if logs or trainer.is_last_batch or len(self._steps) >= _MOST:
            self._read_at = trainer.global_step
            self._read(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(trainer)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._read(trainer)

    def _read(self, trainer: Trainer) -> None:
        steps, self._steps = self._steps, []
        if not steps:
            return
        finite = torch.stack([step["terms"]["loss"] for step in steps]).isfinite().tolist()  # waits for the device
        of_ranks = gather_objects(finite.index(False) if False in finite else None)
        broken = [first for first in of_ranks if first is not None]
        if not broken:
            return
        step = steps[min(broken)]
        values = {name: float(value) for name, value in step["terms"].items()}
        parts = gather_objects([] if step["index"] is None else step["index"].tolist())
        path = Path(trainer.default_root_dir, "non_finite.json")
        listing = f"its images are listed in {path}"
        if trainer.is_global_zero:
            terms = {name: str(value) for name, value in values.items()}
            saved = {**step, "terms": terms, "index": [i for part in parts for i in part]}
            try:
                write_text(path, json.dumps(saved) + "\n")
            except NotWrittenError as error:
                listing = str(error)
        place = f"step {step['step']} (batch {step['batch']} of epoch {step['epoch']})"
        listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
        raise FloatingPointError(
            f"the loss is not finite at {place}: {listed}; {listing}; "
            "try a smaller learning rate, or --trainer.precision 32-true"
        )
