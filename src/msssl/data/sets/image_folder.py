"""`ImageFolder`, the data module for a user's own images, in folders or listed in a CSV file."""

import functools
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset
from typing_extensions import override

from msssl.data.datamodule import MultiViewDataModule, Split
from msssl.data.sets.folders import list_folders
from msssl.data.sets.image_files import ImageFiles, class_names, default_size, log_classes
from msssl.data.sets.manifest import Row, composed, read_manifest
from msssl.errors import UserError


class ImageFolder(MultiViewDataModule):
    """Images in `data_dir/{train,val,test}/<class>/*`, or without labels in `data_dir/train/*`.

    `val` and `test` may be missing; where `train` is too, `data_dir` itself is it. The folders may also be called
    `training`, `valid`, `validation` and `testing`, in upper or lower case. Links are followed. Every image is turned
    upright, converted to RGB (transparent parts on white) and resized, its centre square to `image_size` pixels.

    Args:
        data_dir: the folder that holds `train`.
        image_size: side in pixels; by default the median short side of 100 training images, at most 64.
        manifest: a CSV file that lists the images instead of the folders, with columns `path` (below `data_dir`) and
            if wanted `label` (a name or number), `split` (`train`, `val`, `test`) and `group` (such as a patient, who
            is never in two splits).
        classes: names of the classes to read, or a file with one a line; by default all.
        labels: `auto`: folders are classes, or the column `label` of the manifest has them; `none` (or null): images
            have no labels, and `train` is read with all folders in it.
        group_level: which folder names the group of an image: 1 for the folders in `train`, 2 for the folders in
            these. The images of a group, such as a patient, are never in two splits. By default there are no groups.
        **kwargs: those of `MultiViewDataModule`.
    """

    def __init__(
        self,
        data_dir: str = "data",
        image_size: int | None = None,
        manifest: str | None = None,
        classes: list[str | int | float | bool | None] | str | None = None,
        labels: Literal["auto", "none"] | None = "auto",
        group_level: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, image_size=image_size, **kwargs)
        self.manifest = manifest
        self.classes = _read_classes(classes)
        self.labelled = labels not in ("none", None)
        self.group_level = group_level
        self._check_listing_arguments(labels)

    def _check_listing_arguments(self, labels: str | None) -> None:
        if labels not in ("auto", "none", None):
            raise UserError(f"labels is {labels!r}: expected auto or none")
        if self.classes is not None and not self.labelled:
            raise UserError("classes lists names, but labels is none: leave one of them out")
        if self.group_level is not None and self.group_level < 1:
            raise UserError(
                f"group_level is {self.group_level}: expected 1 for the folders in train, 2 for those in them"
            )
        if self.group_level is not None and self.manifest is not None:
            raise UserError("group_level is for folders: a manifest has groups in its column group")

    @override
    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.hparams["image_size"] = self.image_size  # so that a later run or probe takes the same

    @override
    def dataset(self, split: Split) -> Dataset[Any] | None:
        listed, names = self._listed
        if self.image_size is None:  # as in the run that they are prepared for, or by the training images
            self.image_size = self._size_of_run() or default_size([row.path for row in listed["train"]])
        return ImageFiles(listed[split], names, self.pixel_format) if split in listed else None

    @functools.cached_property
    def _listed(self) -> tuple[dict[str, list[Row]], list[str]]:
        """The images of each split, and the names of the classes."""
        listed = self._list()
        names = class_names(listed, self.classes, self.manifest or str(self.data_dir))
        log_classes(names, listed["train"], "column label" if self.manifest else "folder")
        return listed, names

    def _size_of_run(self) -> int | None:
        """Side of the images of the run that these are prepared for, which are read as they were."""
        height, width = (self._preprocess and self._preprocess.image_size) or (None, None)
        return height if height == width else None

    def _list(self) -> dict[str, list[Row]]:
        if self.manifest is None:
            return list_folders(self.data_dir, self.classes, labelled=self.labelled, group_level=self.group_level)
        listed = read_manifest(self.manifest, self.data_dir, self.classes)
        if not self.labelled:
            listed = {split: [row._replace(label="") for row in rows] for split, rows in listed.items()}
        return listed


def _read_classes(given: list[str | int | float | bool | None] | str | None) -> list[str] | None:
    """Names from a list, or from a file with one a line."""
    if given is None:
        return None
    names = _read_lines(given) if isinstance(given, str) else given
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise UserError(
                f"classes lists {name!r}, which YAML makes of a word such as no, null or 1.0: put the name into quotes"
            )
    if not names:
        raise UserError(f"classes is {given!r}, without a name: leave it out for all classes")
    return [composed(str(name)) for name in names]


def _read_lines(path: str) -> list[str]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"classes {path} is not a file")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"classes {path} is not a text in UTF-8: {error}") from error
    return [line.strip() for line in lines if line.strip()]
