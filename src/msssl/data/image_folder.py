"""A user's own images, in folders or listed in a file."""

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from typing_extensions import override

from msssl.data.datamodule import MultiViewDataModule, Split
from msssl.data.listing import ImageFiles, class_names, list_folders
from msssl.data.manifest import Row, read_manifest


class ImageFolder(MultiViewDataModule):
    """Images in `data_dir/{train,val,test}/<class>/*`, or without labels in `data_dir/train/*`.

    `val` and `test` may be missing; where `train` is too, `data_dir` itself is it. Every image is turned upright,
    converted to RGB (transparent parts on white) and resized, its centre square to `image_size` pixels.

    Args:
        data_dir: the folder that holds `train`.
        image_size: side in pixels; by default the median short side of 100 training images, at most 64.
        manifest: a CSV file that lists the images instead of the folders, with columns `path` (below `data_dir`) and
            if wanted `label` (a name or number), `split` (`train`, `val`, `test`) and `group` (such as a patient, who
            is never in two splits).
        classes: names of the classes to read, or a file with one a line; by default all.
        **kwargs: those of `MultiViewDataModule`.
    """

    def __init__(
        self,
        data_dir: str = "data",
        image_size: int | None = None,
        manifest: str | None = None,
        classes: list[str] | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, image_size=image_size, **kwargs)
        self.manifest = manifest
        self.classes = _read_names(classes) if isinstance(classes, str) else classes
        if self.classes == []:
            raise ValueError(f"classes is {classes!r}, without a name: leave it out for all classes")
        self._listed: dict[str, list[Row]] = {}
        self._class_names: list[str] = []

    @override
    def dataset(self, split: Split) -> Dataset[Any] | None:
        if not self._listed:
            self._listed = self._list()
            self._class_names = class_names(self._listed, self.classes, self.manifest or str(self.data_dir))
        if split not in self._listed:
            return None
        files = ImageFiles(self._listed[split], self._class_names, self.image_size, self.window)
        self.image_size = self.hparams["image_size"] = files.image_size  # of all splits, and of a later probe
        return files

    def _list(self) -> dict[str, list[Row]]:
        if self.manifest is None:
            return list_folders(self.data_dir, self.classes)
        return read_manifest(self.manifest, self.data_dir, self.classes)


def _read_names(path: str) -> list[str]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"classes {path} is not a file")
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]
