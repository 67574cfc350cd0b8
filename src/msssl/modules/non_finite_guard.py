"""What stops a run whose loss is no longer a number."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from msssl.distributed import gather_objects

_MOST = 1000  # steps remembered, whatever `log_every_n_steps` is


class NonFiniteGuard(Callback):
    """Stops at a loss that is not finite, with its step, its terms and the images of its batch.

    The losses stay on the device and are read together, every `log_every_n_steps` batches and before a checkpoint is
    written: no step waits for its own, and no checkpoint holds what came after. Every `MultiViewModule` brings one.

    Raises:
        FloatingPointError: names the first such step and the file, `non_finite.json` in the trainer's
            `default_root_dir`, with the indices of the images of the global batch.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[int, int, dict[str, Tensor], Any]] = []

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not outputs:  # a `training_step` that skipped the batch
            return
        terms = outputs.get("terms") or {"loss": outputs["loss"]}
        self._steps.append((trainer.current_epoch, batch_idx, terms, batch["index"]))
        every = min(trainer.log_every_n_steps or _MOST, _MOST)  # type: ignore[attr-defined]
        if (batch_idx + 1) % every == 0 or trainer.is_last_batch:
            self._read(trainer)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._read(trainer)

    def _read(self, trainer: Trainer) -> None:
        steps, self._steps = self._steps, []
        if not steps:
            return
        finite = torch.stack([terms["loss"] for _, _, terms, _ in steps]).isfinite().tolist()  # the one wait
        if all(finite):
            return
        epoch, batch_idx, terms, index = steps[finite.index(False)]
        parts = gather_objects(index.tolist())
        values = {name: float(value) for name, value in terms.items()}
        path = Path(trainer.default_root_dir, "non_finite.json")
        if trainer.is_global_zero:
            found = {"epoch": epoch, "batch": batch_idx, "terms": {name: str(value) for name, value in values.items()}}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**found, "index": [i for part in parts for i in part]}) + "\n")
        listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
        raise FloatingPointError(
            f"the loss is not finite at batch {batch_idx} of epoch {epoch}: {listed}; "
            f"the indices of its images are in {path}; try a smaller learning rate, or --trainer.precision 32-true"
        )
