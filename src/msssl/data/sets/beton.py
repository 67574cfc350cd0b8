"""`Beton`, the data module for the `.beton` files of FFCV."""

import shlex
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset
from typing_extensions import override

from msssl.data.datamodule import MultiViewDataModule, Split
from msssl.data.pixels.beton_file import BetonFile
from msssl.data.pixels.pixel_format import PixelFormat
from msssl.errors import UserError


class Beton(MultiViewDataModule):
    """Images in `data_dir/{train,val,test}.beton`, as `msssl write-beton` writes them; FFCV decodes.

    `val` and `test` may be missing; `probe.beton` holds labelled images where the others have no labels. The order is
    that of every other data set.

    Args:
        data_dir: folder of the files.
        order: `quasi_random` is FFCV's order, which keeps to few pages of the file at a time: for files larger than
            the memory, on one device.
        **kwargs: those of `MultiViewDataModule`, but for `storage`, `on_error`, `image_size`, `window`, `channels`
            and `dtype`.

    Raises:
        ImportError: FFCV is missing; the message says how to install it.
    """

    def __init__(
        self, data_dir: str = "data", order: Literal["exact", "quasi_random"] = "exact", **kwargs: Any
    ) -> None:
        super().__init__(data_dir=data_dir, **kwargs)
        if self.storage != "auto" or self.on_error != "stop":
            raise UserError("storage and on_error are not for Beton: FFCV reads the file, and all of it was readable")
        if self.pixel_format != PixelFormat() or self.window is not None:
            raise UserError(
                "image_size, window, channels and dtype are not for Beton: its files hold squares; give them to msssl "
                "write-beton"
            )
        self.order = order
        self._size: tuple[int, int] | None = None

    @override
    def dataset(self, split: Split) -> Dataset[Any] | None:
        return self._file(split)

    @override
    def probe_dataset(self) -> Dataset[Any] | None:
        return self._file("probe")

    def _file(self, name: str) -> BetonFile | None:
        path = Path(self.data_dir, f"{name}.beton")
        if not path.is_file():
            if name == "train":
                folder = shlex.quote(self.data_dir)
                raise FileNotFoundError(f"{path} is not a file: write it with msssl write-beton --out {folder}")
            return None
        file = BetonFile(path, self.order == "quasi_random" and name == "train")
        self._size = self._size or file.size
        if file.size != self._size:
            raise UserError(f"{path} holds images of {file.size} pixels, train.beton of {self._size}")
        return file
