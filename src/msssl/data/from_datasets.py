"""Data sets of one's own."""

from typing import Any

from torch.utils.data import Dataset
from typing_extensions import override

from msssl.data.datamodule import MultiViewDataModule, Split


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
        super().__init__(image_size=image_size, **kwargs)
        self._given = {"train": train_dataset, "val": val_dataset, "test": test_dataset}

    @override
    def dataset(self, split: Split) -> Dataset[Any] | None:
        return self._given[split]
