"""STL-10, downloaded by torchvision: one set to pretrain on, another to probe with."""

from typing import Any

from torch.utils.data import Dataset
from torchvision import datasets
from typing_extensions import override

from msssl.data.datamodule import MultiViewDataModule, Split
from msssl.data.sets.download import download


class STL10(MultiViewDataModule):
    """STL-10 (Coates et al. 2011): 100,000 images without labels, 5,000 + 8,000 labelled ones, 96x96 px, 10 classes.

    The unlabelled images are for pretraining; probes learn on the 5,000 and are tested on the 8,000. `data_dir` holds
    torchvision's `stl10_binary`; it is downloaded (2.6 GB) where it is missing.
    """

    @override
    def prepare_data(self) -> None:
        download(datasets.STL10, self.data_dir, split="unlabeled")

    @property
    @override
    def num_classes(self) -> int:
        return 10

    @override
    def dataset(self, split: Split) -> Dataset[Any] | None:
        if split == "val":
            return None
        images: Dataset[Any] = datasets.STL10(self.data_dir, split="unlabeled" if split == "train" else "test")
        return images

    @override
    def probe_dataset(self) -> Dataset[Any]:
        labelled: Dataset[Any] = datasets.STL10(self.data_dir, split="train")
        return labelled
