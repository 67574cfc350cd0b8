"""CIFAR-10 and CIFAR-100, downloaded by torchvision."""

from typing import Any

from torch.utils.data import Dataset
from torchvision import datasets
from typing_extensions import override

from msssl.data.datamodule import MultiViewDataModule, Split
from msssl.data.sets.download import download


class CIFAR10(MultiViewDataModule):
    """CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32x32 px, 10 classes.

    `data_dir` holds torchvision's `cifar-10-batches-py`; it is downloaded (163 MB) where it is missing.
    """

    @override
    def prepare_data(self) -> None:
        download(datasets.CIFAR10, self.data_dir)

    @property
    @override
    def num_classes(self) -> int:
        return 10

    @override
    def dataset(self, split: Split) -> Dataset[Any] | None:
        return None if split == "val" else datasets.CIFAR10(self.data_dir, train=split == "train")


class CIFAR100(MultiViewDataModule):
    """CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32x32 px, 100 classes.

    `data_dir` holds torchvision's `cifar-100-python`; it is downloaded (161 MB) where it is missing.
    """

    @override
    def prepare_data(self) -> None:
        download(datasets.CIFAR100, self.data_dir)

    @property
    @override
    def num_classes(self) -> int:
        return 100

    @override
    def dataset(self, split: Split) -> Dataset[Any] | None:
        return None if split == "val" else datasets.CIFAR100(self.data_dir, train=split == "train")
