"""CIFAR-10, CIFAR-100 and STL-10, which torchvision downloads."""

from pathlib import Path
from typing import Any, ClassVar

from torch.utils.data import Dataset
from torchvision import datasets
from typing_extensions import override

from msssl.data.datamodule import MultiViewDataModule, Split


class CIFAR10(MultiViewDataModule):
    """CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32x32 px, 10 classes.

    `data_dir` holds torchvision's `cifar-10-batches-py`; it is downloaded (163 MB) where it is missing.
    """

    source: ClassVar[Any] = datasets.CIFAR10
    num_classes = 10

    @override
    def prepare_data(self) -> None:
        download(self.source, self.data_dir)

    @override
    def dataset(self, split: Split) -> Dataset[Any] | None:
        return None if split == "val" else self.source(self.data_dir, train=split == "train")


class CIFAR100(CIFAR10):
    """CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32x32 px, 100 classes.

    `data_dir` holds torchvision's `cifar-100-python`; it is downloaded (161 MB) where it is missing.
    """

    source = datasets.CIFAR100
    num_classes = 100


class STL10(MultiViewDataModule):
    """STL-10 (Coates et al. 2011): 100,000 images without labels, 5,000 + 8,000 labelled ones, 96x96 px, 10 classes.

    The unlabelled images are for pretraining; probes learn on the 5,000 and are tested on the 8,000. `data_dir` holds
    torchvision's `stl10_binary`; it is downloaded (2.6 GB) where it is missing.
    """

    num_classes = 10

    @override
    def prepare_data(self) -> None:
        download(datasets.STL10, self.data_dir, split="unlabeled")

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


def download(dataset: Any, data_dir: str, **kwargs: Any) -> None:
    """Fetch a data set of `torchvision.datasets` into a folder, unless it is there.

    Args:
        dataset: its class, with `url` and `filename`.
        data_dir: the folder.
        **kwargs: further arguments of the class.

    Raises:
        FileNotFoundError: what to fetch elsewhere, and where to put it.
    """
    folder = Path(data_dir)
    existed = folder.exists()
    try:
        dataset(data_dir, download=True, **kwargs)
    except (OSError, RuntimeError) as error:  # no network; a download that is not the archive
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise FileNotFoundError(
            f"{dataset.__name__} is not in {data_dir!r} and cannot be downloaded ({error}). "
            f"Fetch {dataset.url} elsewhere and put {dataset.filename} there: {data_dir}/{dataset.filename}"
        ) from error
