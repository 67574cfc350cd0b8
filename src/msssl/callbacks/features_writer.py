"""Writes the features or classes of images to a file, for `msssl predict`."""

import json
import logging
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor, nn
from typing_extensions import override

from msssl.distributed import gather_rows
from msssl.errors import MissingPackageError, UserError
from msssl.run.files import atomic_write, check_file_writable
from msssl.run.head import read_head
from msssl.wording import counted

log = logging.getLogger(__name__)


class FeaturesWriter(BasePredictionWriter):
    """Writes the features of the predicted images, or with a head their classes, to one file.

    The file has a row for each image of all ranks, in the order of the data set, with these columns:

    - without a head `features` (n, F), float32;
    - with a head `class` (n,), the name of the most probable class; `probability` (n,), the probability of that class;
      `probabilities` (n, C), those of all classes; and `classes` (C,), the names of all classes in the same order;
    - `label` (n,), int64; -1 where the image has none;
    - `path` (n,), the path of the image's file, or a description of the image where it has no file;
    - `dataset` (n,), the name of the image's data set, such as `test`;
    - `index` (n,), the position of the image in that data set.

    A parquet file has `classes` in the metadata of its schema, as JSON.

    Args:
        path: file to write, whose name ends in `.npz`, or in `.parquet`, which needs pyarrow. An earlier file is
            replaced.
        head: file of a linear head, `probe.head.pt` as `msssl probe` writes it.

    Raises:
        ImportError: pyarrow is missing.
        ValueError: the name of the file has another ending.
    """

    def __init__(self, path: str | Path, head: str | None = None) -> None:
        super().__init__(write_interval="epoch")
        self.path = Path(path)
        self.head = head
        self._head: tuple[nn.Linear, list[str]] | None = None
        if self.path.suffix not in _WRITERS:
            raise UserError(f"out {path}: expected the name of a file that ends in .npz or .parquet")
        if self.path.suffix == ".parquet" and find_spec("pyarrow") is None:
            raise MissingPackageError("format parquet needs pyarrow: pip install 'msssl[parquet]'")

    def prepare(self, module: LightningModule, ckpt_path: str | Path | None) -> None:
        """Read the head and check that the file can be written, so that errors come before any features are computed.

        Args:
            module: the module whose features are written.
            ckpt_path: checkpoint of the module; a head that was fitted on features of another checkpoint is refused.

        Raises:
            FileNotFoundError: the file of the head does not exist.
            NotWrittenError: the file cannot be written.
            ValueError: the head was fitted on other features.
        """
        if self.head is not None and self._head is None:
            width: Any = module.feature_dim
            self._head = read_head(self.head, width, ckpt_path)
        check_file_writable(self.path)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.prepare(pl_module, trainer.ckpt_path)

    @override
    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        loaders = getattr(trainer.predict_dataloaders, "loaders", [None])  # None: a loader of the user's own
        remaining = iter(predictions)
        parts = []
        for loader in loaders:  # gathered one by one, as an index is the position in the data set of its loader
            of_loader = islice(remaining, len(loader) if loader else None)  # empty, perhaps: `limit_predict_batches`
            batches = [tuple(batch[name].cpu() for name in ("index", "label", "features")) for batch in of_loader]
            if rows := gather_rows(batches, on_first_rank_only=True):
                parts.append((loader and loader.images, *rows))
        if not trainer.is_global_zero:
            return
        features = torch.cat([part[-1] for part in parts]).float()
        columns = {
            **self._values(features),
            "label": torch.cat([label for _, _, label, _ in parts]).numpy(),
            "path": np.array([_path(images, i) for images, index, _, _ in parts for i in index.tolist()]),
            "dataset": np.concatenate([np.repeat(images.name if images else "", len(i)) for images, i, _, _ in parts]),
            "index": torch.cat([index for _, index, _, _ in parts]).numpy(),
        }
        replaced = self.path.exists()
        with atomic_write(self.path) as temporary, temporary.open("wb") as file:
            _WRITERS[self.path.suffix](file, columns)
        asked_for = sum(len(loader.images) for loader in loaders if loader)
        self._log_summary(columns, features, asked_for, replaced)

    def _values(self, features: Tensor) -> dict[str, np.ndarray[Any, Any]]:
        if self._head is None:
            return {"features": features.numpy()}
        head, names = self._head
        probabilities = head(features).softmax(dim=1)
        probability, best = probabilities.max(dim=1)
        return {
            "class": np.array(names)[best.numpy()],
            "probability": probability.numpy(),
            "probabilities": probabilities.numpy(),
            "classes": np.array(names),
        }

    def _log_summary(
        self, columns: dict[str, np.ndarray[Any, Any]], features: Tensor, asked_for: int, replaced: bool
    ) -> None:
        n_images = len(features)
        names, counts = np.unique(columns["dataset"], return_counts=True)
        by_dataset = ", ".join(f"{count} of {name}" for name, count in zip(names, counts, strict=True))
        what = f"{'features' if self._head is None else 'classes'} of {counted(n_images, 'image')}"
        what += f" ({by_dataset})" if len(names) > 1 else ""
        log.info("%s: %s%s", what, self.path, ", in place of an earlier file" if replaced else "")
        if n_images < asked_for:
            log.warning("limit_predict_batches leaves out %d of the %d images", asked_for - n_images, asked_for)
        if broken := int((~features.isfinite()).any(dim=1).sum()):
            log.warning("features of %d of %d images are not finite: is the run diverged?", broken, n_images)
        shapes = ", ".join(f"{name} {value.shape}" for name, value in columns.items() if value.ndim > 1)
        log.info("it holds %s and %s; read it by:", shapes, ", ".join(n for n, v in columns.items() if v.ndim == 1))
        for line in _READ[self.path.suffix]:
            log.info("    %s", line.format(path=str(self.path)))


def _path(images: Any, index: int) -> str:
    return images.describe(index) if images else str(index)


def _write_npz(file: Any, columns: dict[str, Any]) -> None:
    np.savez(file, **columns)


def _write_parquet(file: Any, columns: dict[str, Any]) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = {name: value for name, value in columns.items() if name != "classes"}
    table = pyarrow.table({name: list(value) if value.ndim > 1 else value for name, value in rows.items()})
    if "classes" in columns:
        table = table.replace_schema_metadata({"classes": json.dumps(columns["classes"].tolist())})
    parquet.write_table(table, file)


_WRITERS = {".npz": _write_npz, ".parquet": _write_parquet}
_READ = {
    ".npz": ["import numpy as np", "content = np.load({path!r})"],
    ".parquet": ["from pyarrow import parquet", "content = parquet.read_table({path!r})"],
}
