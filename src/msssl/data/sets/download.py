"""Downloads by torchvision, and what to do where there is no network."""

from pathlib import Path
from typing import Any


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
