"""Data sets of one's own."""

from typing import Any

from PIL import Image
from torch.utils.data import Dataset
from typing_extensions import override

from msssl.data.cache import fingerprint
from msssl.data.datamodule import MultiViewDataModule, Split
from msssl.data.files import square, to_rgb
from msssl.data.images import labels_of


class FromDatasets(MultiViewDataModule):
    """Data sets of one's own; made by `MultiViewDataModule.from_datasets`."""

    def __init__(
        self,
        train_dataset: Dataset[Any],
        val_dataset: Dataset[Any] | None = None,
        test_dataset: Dataset[Any] | None = None,
        image_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._given = {"train": train_dataset, "val": val_dataset, "test": test_dataset}
        self.image_size = image_size

    @override
    def dataset(self, split: Split) -> Dataset[Any] | None:
        dataset = self._given[split]
        return dataset if dataset is None or self.image_size is None else _Squares(dataset, self.image_size)


class _Squares(Dataset[Any]):
    """The centre squares of a data set's PIL images, resized."""

    def __init__(self, dataset: Dataset[Any], size: int) -> None:
        self.dataset, self.size = dataset, size
        self.targets = labels_of(dataset)
        self.groups, self.paths = getattr(dataset, "groups", None), getattr(dataset, "paths", None)

    @property
    def fingerprint(self) -> str | None:
        content = fingerprint(self.dataset)
        return content and f"{content} {self.size}"

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # a map-style data set has one

    def __getitem__(self, index: int) -> Any:
        image, label = self.dataset[index]
        if not isinstance(image, Image.Image):
            raise ValueError(f"image {index} is a {type(image).__name__}: image_size makes squares of PIL images")
        return square(to_rgb(image), self.size), label
