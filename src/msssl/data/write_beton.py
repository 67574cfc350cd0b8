"""`msssl write-beton`: writes the images of a data module as `.beton` files, which FFCV reads."""

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from msssl.data.datamodule import MultiViewDataModule
from msssl.data.pixels.beton_file import FIELDS, import_ffcv
from msssl.data.pixels.decode import image_kind, usable_cores
from msssl.data.pixels.item import UnreadableImageError, read, why_not_fixed
from msssl.data.pixels.labels import labels_of, strings_of
from msssl.errors import UserError
from msssl.run.files import writing
from msssl.wording import counted

PAGE = 1 << 23  # bytes, FFCV's own default
log = logging.getLogger(__name__)


def write_beton(
    data: MultiViewDataModule,
    out: str = "beton",
    write_mode: Literal["raw", "jpg", "proportion"] = "raw",
    max_side: int | None = None,
    quality: int = 90,
    jpg_share: float = 0.5,
) -> None:
    """Write the images of every split as `.beton` files for FFCV, decoded and resized as the data module has them.

    Images that the data module skips are left out. Where images have groups, those that the data module holds out for
    validation become a file of their own, as groups are not written. A file gets its name when it is whole.

    Args:
        data: the images to write.
        out: folder of the files.
        write_mode: `raw` pixels; `jpg`, smaller and slower to read; or `proportion`, some of each.
        max_side: larger images are reduced to this side in pixels.
        quality: of JPEGs, up to 100.
        jpg_share: with `proportion`, the share of JPEGs.
    """
    ffcv = import_ffcv()
    data.prepare_data()
    data.setup()
    with writing(out):
        Path(out).mkdir(parents=True, exist_ok=True)
    for name, (dataset, rows) in _files(data).items():
        if changing := why_not_fixed(dataset, name):
            raise UserError(f"a beton holds the pixels of each image once, but {changing}: leave them out")
        path = Path(out, f"{name}.beton")
        unfinished = path.with_suffix(".tmp")
        image = ffcv.fields.RGBImageField(
            write_mode=write_mode, max_resolution=max_side, jpeg_quality=quality, compress_probability=jpg_share
        )
        fields = dict(zip(FIELDS, (image, ffcv.fields.IntField()), strict=True))
        images = _Rows(dataset, name, rows)
        # A page holds the largest image at least: FFCV's writer would hang.
        page = max(PAGE, 1 << (3 * images.size[0] * images.size[1]).bit_length())
        try:
            writer = ffcv.writer.DatasetWriter(str(unfinished), fields, page_size=page, num_workers=usable_cores())
            writer.from_indexed_dataset(images)
            images.check()
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        log.info("%s: %s, %.3g MB", path, counted(len(images), "image"), path.stat().st_size / 1e6)


def _files(data: MultiViewDataModule) -> dict[str, tuple[Dataset[Any], list[int]]]:
    """Data set and rows of each file."""
    files = {}
    for name, dataset in data.datasets.items():
        skipped = data.skipped.get(name, {})
        files[name] = dataset, [row for row in range(len(dataset)) if row not in skipped]  # type: ignore[arg-type]
    source = "probe" if "probe" in files else "train"
    if strings_of(files[source][0], "groups") and "val" not in files and "val" in data.splits:
        for name, split in ((source, "probe"), ("val", "val")):
            files[name] = files[source][0], data.splits[split].indices.tolist()
    return files


class _Rows(Dataset[Any]):
    """Pixels (H, W, 3) and label of some rows; a row that fails is black and remembered: FFCV's writer would hang."""

    def __init__(self, dataset: Dataset[Any], name: str, rows: list[int]) -> None:
        self.dataset, self.name, self.rows, self.labels = dataset, name, rows, labels_of(dataset)
        kind = image_kind(dataset, name, skip=True)
        if not kind.is_default:
            raise UserError(f"a beton holds RGB of 8 bits, and the images of {name} are {kind}: see channels and dtype")
        self.size = kind.shape[1:]
        self.failed: Tensor = torch.zeros(len(rows), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[np.ndarray[Any, Any], int]:
        try:
            image, label = read(self.dataset, self.rows[row], self.name, self.labels)
        except Exception:  # raised again by `check`, in the main process
            self.failed[row] = True
            return np.zeros((*self.size, 3), dtype=np.uint8), -1
        return image.permute(1, 2, 0).contiguous().numpy(), label

    def check(self) -> None:
        for row in self.failed.nonzero().flatten().tolist():
            read(self.dataset, self.rows[row], self.name, self.labels)
            raise UnreadableImageError(f"image {self.rows[row]} of {self.name} could not be read at first")
