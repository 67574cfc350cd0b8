"""`ImageFolder`, the data module for a user's own images, in folders or listed in a CSV file."""

import functools
import logging
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset
from typing_extensions import override

from msssl.data.datamodule import MultiViewDataModule, Split
from msssl.data.pixels.decode import usable_cores
from msssl.data.sets.folders import check_groups, list_folders
from msssl.data.sets.image_files import ImageFiles, class_names, default_size, log_classes
from msssl.data.sets.manifest import Row, composed, read_manifest
from msssl.data.sets.pieces import OWN_WINDOW, Piece, Reader, reader_of, slices_of
from msssl.data.sets.tiles import Tiles, tiles_of
from msssl.errors import UserError

log = logging.getLogger(__name__)


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
            these. The images of a group, such as a patient, are never in two splits. By default there are no groups,
            but for patients in DICOM, and slices and tiles of one file.
        axes: what the axes of stored arrays are, such as `CHW` or `ZHW`, where TIFF, npy or npz do not say it.
        tiles: side in pixels of the squares that large images are cut into, each of which is an image then. They
            reach all edges, and overlap where the sides of an image are no multiples.
        tile_contrast: tiles with less contrast than this are background and left out: those whose grey values have a
            standard deviation below this share of the range, which is 255 for 8 bits and that of the image otherwise.
            Each image keeps its tile of most contrast; 0 keeps all.
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
        axes: str | None = None,
        tiles: int | None = None,
        tile_contrast: float = 0.02,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, image_size=image_size, **kwargs)
        self.manifest = manifest
        self.classes = _read_classes(classes)
        self.labelled = labels not in ("none", None)
        self.group_level = group_level
        self.axes = axes
        self.tiles = tiles
        self.tile_contrast = tile_contrast
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
        if self.tiles is not None and self.tiles < 1:
            raise UserError(f"tiles is {self.tiles}: expected pixels")
        if not 0 <= self.tile_contrast < 1:
            raise UserError(f"tile_contrast is {self.tile_contrast}: expected a share in [0, 1)")
        if self.group_level is not None and self.manifest is not None:
            raise UserError("group_level is for folders: a manifest has groups in its column group")

    @override
    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.hparams["image_size"] = self.image_size  # so that a later run or probe takes the same

    @override
    def dataset(self, split: Split) -> Dataset[Any] | None:
        listed, names = self._listed
        if split not in listed:
            return None
        if self.image_size is None:  # as in the run that they are prepared for, or by the training images
            own = self.tiles or default_size([row.path for row in listed["train"]], self._reader)
            self.image_size = self._size_of_run() or own
        return ImageFiles(self._pieces[split], names, self.pixel_format, self._reader, self.tiles)

    @functools.cached_property
    def _listed(self) -> tuple[dict[str, list[Row]], list[str]]:
        """The images of each split, and the names of the classes."""
        listed = self._list()
        names = class_names(listed, self.classes, self.manifest or str(self.data_dir))
        log_classes(names, listed["train"], "column label" if self.manifest else "folder")
        return listed, names

    @functools.cached_property
    def _reader(self) -> Reader:
        """How the files are read."""
        rows = [row for of_split in self._listed[0].values() for row in of_split]
        default = self.window is None and self.hparams.get("window") != "auto"
        return reader_of(rows, self.axes, default or self.window == OWN_WINDOW, self.manifest or self.data_dir)

    @functools.cached_property
    def _pieces(self) -> dict[str, list[Piece]]:
        """What of the files is an image, for each split."""
        pieces: dict[str, list[Piece]] = {}
        for split, rows in self._listed[0].items():
            pieces[split] = [Piece(row) for row in rows]
            if self._reader.arrays:
                pieces[split], header = slices_of(rows, self._reader)
                if header is not None and header.window is not None and self.window is None:
                    self.window = header.window
                    log.info("window: that of each DICOM file; --data.window gives one for all of them, or auto")
            if self.tiles is not None:
                cut = Tiles(self.tiles, self.tile_contrast)
                cache_dir = Path(self.cache_dir or f"{self.data_dir}/.msssl")
                workers = usable_cores() if self.num_workers else 0
                pieces[split] = tiles_of(pieces[split], self._reader, cut, split, cache_dir, workers)
        if self._reader.arrays:  # whose groups are in the files; those of folders and manifests were checked
            check_groups({split: [piece.row for piece in of_split] for split, of_split in pieces.items()})
        return pieces

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
