"""A user's own images, in folders."""

import logging
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import functional as F
from typing_extensions import override

from msssl.data.datamodule import MultiViewDataModule, Split
from msssl.data.images import to_rgb

log = logging.getLogger(__name__)
MAX_DEFAULT_SIZE = 64


class ImageFolder(MultiViewDataModule):
    """Images in `data_dir/{train,val,test}/<class>/*`, or without labels in `data_dir/train/*`.

    `val` and `test` may be missing. Every image is converted to RGB, resized so that its short side is `image_size`
    and cropped to the centre square.

    Args:
        data_dir: the folder that holds `train`.
        image_size: side in pixels; by default the short side of the first training image, at most 64.
        **kwargs: those of `MultiViewDataModule`.
    """

    def __init__(self, data_dir: str = "data", image_size: int | None = None, **kwargs: Any) -> None:
        super().__init__(data_dir=data_dir, **kwargs)
        self.image_size = image_size
        self._classes: list[str] = []

    @property
    @override
    def num_classes(self) -> int | None:
        return len(self._classes) or None

    @override
    def dataset(self, split: Split) -> Dataset[Any] | None:
        root = Path(self.data_dir, split)
        if split != "train" and not root.is_dir():
            return None
        folder = _Folder(root, self.image_size)
        if split == "train":
            self._classes = folder.classes
            if self.image_size is None:
                self.image_size = min(*folder.open(0).size, MAX_DEFAULT_SIZE)
                log.info("image_size: %d px, from %s", self.image_size, folder.paths[0])
            folder.image_size = self.image_size
        elif self._classes and folder.classes != self._classes:
            differ = sorted(set(folder.classes) ^ set(self._classes))
            raise ValueError(f"{root} and its sibling train differ in their classes: {', '.join(differ)}")
        return folder


class _Folder(Dataset[tuple[Image.Image, int]]):
    def __init__(self, root: Path, image_size: int | None) -> None:
        if not root.is_dir():
            raise FileNotFoundError(
                f"{root} is not a folder: ImageFolder reads DATA_DIR/train/<class>/* or DATA_DIR/train/*"
            )
        self.image_size = image_size
        self.classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != ".")
        if len(self.classes) == 1:
            raise ValueError(
                f"{root} holds one class folder, {self.classes[0]!r}: labels need two; "
                f"to pretrain without labels put the images into {root} itself"
            )
        self.paths: list[Path] = []
        self.targets: list[int] = []
        for label, name in enumerate(self.classes) if self.classes else [(-1, "")]:
            found = sorted(path for path in (root / name).rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
            self.paths += found
            self.targets += [label] * len(found)
        if not self.paths:
            raise ValueError(f"{root} holds no images ({', '.join(IMG_EXTENSIONS)})")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image = F.resize(self.open(index), [self.image_size])
        return F.center_crop(image, [self.image_size]), self.targets[index]

    def open(self, index: int) -> Image.Image:
        path = self.paths[index]
        try:
            return to_rgb(Image.open(path))
        except Exception as error:  # Pillow's formats raise many kinds
            raise ValueError(f"{path} cannot be read as an image: {error}") from error
