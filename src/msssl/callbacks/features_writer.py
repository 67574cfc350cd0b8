"""What `msssl predict` leaves behind."""

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor, nn
from typing_extensions import override

from msssl.checkpoint import read_head, whole
from msssl.distributed import gather_rows

log = logging.getLogger(__name__)


class FeaturesWriter(BasePredictionWriter):
    """Writes `features.npz`: `features` (n, F), `label` (n,), `index` (n,) and `path` (n,) of the predicted images.

    With a head it writes `classes.npz`: `class` (n,), its name, and `probability` (n,), beside `label`, `index` and
    `path`. The rows are in the order of `index`, those of all ranks together.

    Args:
        folder: where to write.
        format: `npz`, or `parquet`, which needs pyarrow.
        head: linear head, `probe.head.pt` as `msssl probe` writes it.

    Raises:
        ImportError: pyarrow is missing.
    """

    def __init__(self, folder: str | Path, format: Literal["npz", "parquet"] = "npz", head: str | None = None) -> None:
        super().__init__(write_interval="epoch")
        if format == "parquet" and find_spec("pyarrow") is None:
            raise ImportError("format parquet needs pyarrow: pip install 'msssl[parquet]'")
        self.folder = Path(folder)
        self.format = format
        self.head = head
        self._head: tuple[nn.Linear, list[str]] | None = None

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        width: Any = pl_module.feature_dim
        if self.head is not None:  # read before the work, not after
            self._head = read_head(self.head, width, trainer.ckpt_path)

    @override
    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        batches = [tuple(batch[name].cpu() for name in ("index", "label", "features")) for batch in predictions]
        index, label, features = gather_rows(batches)
        if not trainer.is_global_zero:
            return
        images = getattr(trainer.predict_dataloaders, "images", None)  # none of a loader of the user's own
        columns = {
            "path": np.array([images.describe(each) if images else str(each) for each in index.tolist()]),
            "label": label.numpy(),
            "index": index.numpy(),
            **self._values(features.float()),
        }
        path = self.folder / f"{'features' if self._head is None else 'classes'}.{self.format}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole(path) as growing, growing.open("wb") as file:
            _WRITERS[self.format](file, columns)
        log.info("%s of %d images: %s", "features" if self._head is None else "classes", len(index), path)

    def _values(self, features: Tensor) -> dict[str, np.ndarray[Any, Any]]:
        if self._head is None:
            return {"features": features.numpy()}
        head, names = self._head
        probability, found = head(features).softmax(dim=1).max(dim=1)
        return {"class": np.array(names)[found.numpy()], "probability": probability.numpy()}


def _write_npz(file: Any, columns: dict[str, Any]) -> None:
    np.savez(file, **columns)


def _write_parquet(file: Any, columns: dict[str, Any]) -> None:
    import pyarrow
    from pyarrow import parquet

    table = {name: list(value) if value.ndim > 1 else value for name, value in columns.items()}
    parquet.write_table(pyarrow.table(table), file)


_WRITERS = {"npz": _write_npz, "parquet": _write_parquet}
