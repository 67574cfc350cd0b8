"""Reads a `.beton` file of FFCV (Leclerc et al. 2023) in batches, in the order that msssl's loader chooses."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from msssl.batch import Batch
from msssl.data.pixels.images import BatchRows
from msssl.data.pixels.pixel_format import ImageKind
from msssl.errors import MissingPackageError, UserError

FIELDS = ["image", "label"]
INSTALL = """FFCV cannot be imported ({}), and pip cannot build it alone:
  apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++
  pip install 'msssl[ffcv]'
or read the images themselves, with storage: cached"""


def import_ffcv() -> ModuleType:
    """FFCV, with its submodules; ImportError says how to install it."""
    try:
        with _threads_kept():
            import ffcv.fields
            import ffcv.fields.decoders
            import ffcv.loader
            import ffcv.reader
            import ffcv.transforms
            import ffcv.writer
    except (ImportError, OSError) as error:  # OSError: its OpenCV has gone
        raise MissingPackageError(INSTALL.format(error)) from error
    module: ModuleType = ffcv
    return module


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Put torch's number of threads back, which FFCV sets for the whole process."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class BetonFile(Dataset[Any]):
    """The images and labels of a `.beton` file, which FFCV reads in batches.

    Args:
        path: of a file that `msssl write-beton` wrote: fields `image`, of one size, and `label`.
        quasi_random: whether an epoch's order is FFCV's, which keeps to few pages at a time, for files larger than
            the memory.

    Attributes:
        size: (H, W) of the images.
        kind: of the images.
        targets: labels (n,).
        unreadable: none: they were left out when the file was written.

    Raises:
        ImportError: FFCV is missing.
        ValueError: the file is cut short, or holds something else.
    """

    is_formatted = True

    def __init__(self, path: Path, quasi_random: bool = False) -> None:
        self.path = path
        self.quasi_random = quasi_random
        ffcv = import_ffcv()
        try:
            reader = ffcv.reader.Reader(str(path))
        except Exception as error:  # many kinds
            reason = str(error) or type(error).__name__
            raise UserError(f"{path} is no beton or cut short ({reason}): write it with msssl write-beton") from error
        # FFCV would read beyond the end, and die.
        if len(reader.metadata) < reader.num_samples or len(reader.alloc_table) < reader.num_samples:
            raise UserError(f"{path} is cut short: write it again with msssl write-beton")
        if reader.field_names != FIELDS:
            raise UserError(f"{path} has the fields {', '.join(reader.field_names)}: expected image, label")
        image, label = (reader.metadata[name] for name in reader.metadata.dtype.names)
        sizes = {name: (int(image[name].min()), int(image[name].max())) for name in ("height", "width")}
        if any(least != most for least, most in sizes.values()):
            ranges = " x ".join(f"{least} to {most}" for least, most in sizes.values())
            raise UserError(f"{path} holds images of {ranges} pixels: write them with msssl write-beton, of one size")
        self.size = (sizes["height"][0], sizes["width"][0])
        self.kind = ImageKind((3, *self.size), torch.uint8)
        self.targets = torch.from_numpy(label.astype(np.int64))
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.targets)

    def quasi_random_order(self, indices: Tensor, batch_size: int, seed: int) -> Tensor:
        """Positions in `indices` in FFCV's quasi-random order."""
        ffcv = import_ffcv()
        order = ffcv.loader.OrderOption.QUASI_RANDOM
        seed %= 2**12  # FFCV multiplies it by 912300, and numba's seeds have 32 bits
        options = {"order": order, "os_cache": False, "indices": indices.numpy(), "seed": seed}
        with _threads_kept():
            loader = ffcv.loader.Loader(str(self.path), batch_size, num_workers=1, pipelines={"image": None}, **options)
        position = torch.empty(len(self), dtype=torch.long)
        position[indices] = torch.arange(len(indices))
        return position[torch.from_numpy(loader.first_traversal_order)]

    def loader(self, batch_size: int, indices: Tensor, num_workers: int) -> Any:
        """FFCV's own loader of the images in this order."""
        ffcv = import_ffcv()
        with _threads_kept():
            return ffcv.loader.Loader(
                str(self.path),
                batch_size=batch_size,
                num_workers=max(1, num_workers),
                os_cache=not self.quasi_random,
                order=ffcv.loader.OrderOption.SEQUENTIAL,
                indices=indices.numpy(),
                seed=0,
                drop_last=False,
                pipelines={
                    "image": [ffcv.fields.decoders.SimpleRGBImageDecoder(), ffcv.transforms.ToTensor()],
                    "label": [ffcv.fields.decoders.IntDecoder(), ffcv.transforms.ToTensor()],
                },
            )


class BetonBatches:
    """Batches of a `.beton` file: `{"image": (N, 3, H, W) uint8, "label": (N,), "index": (N,)}`.

    Args:
        file: to read.
        indices: rows of the file.
        batches: positions in `indices`, read anew at each iteration.
        num_workers: threads.
    """

    def __init__(self, file: BetonFile, indices: Tensor, batches: BatchRows, num_workers: int) -> None:
        self.file = file
        self.indices = indices
        self.batches = batches
        self.num_workers = num_workers
        self._loader: Any = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        if not len(self.batches):
            return
        size = max(map(len, self.batches))
        # FFCV's batches have one size: shorter ones are filled up, and cut off again.
        rows = torch.tensor([batch + batch[-1:] * (size - len(batch)) for batch in self.batches])
        order = self.indices[rows.flatten()]
        if self._loader is None or self._loader.batch_size != size:
            self._loader = self.file.loader(size, order, self.num_workers)
        self._loader.traversal_order = _FixedOrder(order.numpy())
        self._loader.first_traversal_order = order.numpy()  # what its length is taken from
        with _threads_kept():
            batches = iter(self._loader)
        pinned = torch.cuda.is_available()
        try:
            for (image, label), batch in zip(batches, self.batches, strict=True):
                n = len(batch)
                # Both copy: FFCV writes the next batches into the same memory.
                image, label = image[:n].permute(0, 3, 1, 2).contiguous(), label[:n, 0].long().clone()
                values = (image, label, self.indices[batch])
                image, label, index = (value.pin_memory() for value in values) if pinned else values
                yield {"image": image, "label": label, "index": index}
        finally:
            batches.close()


class _FixedOrder:
    """An order that was made elsewhere, as FFCV asks for one."""

    def __init__(self, order: np.ndarray[Any, Any]) -> None:
        self.order = order

    def sample_order(self, epoch: int) -> np.ndarray[Any, Any]:
        return self.order
