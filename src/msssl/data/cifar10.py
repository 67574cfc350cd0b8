"""CIFAR-10, downloaded by torchvision."""

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchvision import datasets
from typing_extensions import override

from msssl.data.datamodule import MultiViewDataModule, Split


class CIFAR10(MultiViewDataModule):
    """CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32x32 px, 10 classes.

    `data_dir` holds torchvision's `cifar-10-batches-py`; it is downloaded (163 MB) where it is missing.
    """

    @override
    def prepare_data(self) -> None:
        folder = Path(self.data_dir)
        existed = folder.exists()
        try:
            datasets.CIFAR10(self.data_dir, download=True)
        except (OSError, RuntimeError) as error:  # no network; a download that is not the archive
            if not existed and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
            raise FileNotFoundError(
                f"CIFAR-10 is not in {self.data_dir!r} and cannot be downloaded ({error}). "
                f"Fetch {datasets.CIFAR10.url} elsewhere and put {datasets.CIFAR10.filename} there: "
                f"{self.data_dir}/{datasets.CIFAR10.filename}"
            ) from error

    @property
    @override
    def num_classes(self) -> int:
        return 10

    @override
    def dataset(self, split: Split) -> Dataset[Any] | None:
        return None if split == "val" else datasets.CIFAR10(self.data_dir, train=split == "train")
