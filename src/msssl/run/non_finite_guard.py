"""What stops a run whose loss is no longer a number."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from msssl.distributed import gather_objects
from msssl.run.files import NotWrittenError, write_text

_MOST = 1000  # steps remembered, whatever `log_every_n_steps` is


class NonFiniteGuard(Callback):
    """Stops at a loss that is not finite, with its step, its terms and the images of its batch.

    The losses stay on the device and are read together, at logging steps, at an epoch's end and before a checkpoint
    is written: no step waits for its own, and no checkpoint holds what came after (but for one of weights only within
    an epoch, of which Lightning tells nobody). Every `MultiViewModule` brings a guard.

    Raises:
        FloatingPointError: on every rank; names the first such step and the file, `non_finite.json` in the trainer's
            `default_root_dir`, with the indices of the images of the global batch.
    """

    def __init__(self) -> None:
        self._steps: list[dict[str, Any]] = []
        self._read_at = 0

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
        # Equal steps are batches whose gradients accumulate.
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
        finite = torch.stack([step["terms"]["loss"] for step in steps]).isfinite().tolist()  # the one wait
        found = [
            first for first in gather_objects(finite.index(False) if False in finite else None) if first is not None
        ]
        if not found:
            return
        step = steps[min(found)]
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
