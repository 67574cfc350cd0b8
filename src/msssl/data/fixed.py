"""Whether a data set gives the same pixels each time: only then may they be decoded once and kept."""

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from msssl.data.pixels.images import UnreadableImageError, read
from msssl.data.sets.listing import ImageFiles

N_COMPARED = 8  # images that are read twice


def why_not_fixed(dataset: Dataset[Any], name: str) -> str | None:
    """Why the pixels of a data set may be others each time they are read, or None where they are the same.

    Some images are read twice. A random transform shows by drawing from the random numbers of torch, NumPy or Python,
    also where an image stays as it is by chance; one with random numbers of its own by other pixels. The state of the
    random numbers is left as it was. A data set that seeds them by the image is fixed.

    Args:
        dataset: of (image, label).
        name: how messages call it.
    """
    if isinstance(dataset, ImageFiles):  # which is our own
        return None
    n_images = len(dataset)  # type: ignore[arg-type]  # a map-style data set has one
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        for index in dict.fromkeys(np.linspace(0, n_images - 1, N_COMPARED).round().astype(int).tolist()):
            before = _random_state()
            first = _pixels(dataset, index, name)
            between = _random_state()
            second = _pixels(dataset, index, name)
            if before != between != _random_state():
                return f"image {index} of {name} is read with random numbers, as random transforms draw them"
            if first is not None and second is not None and not torch.equal(first, second):
                return f"image {index} of {name} had other pixels when it was read again, as random transforms make"
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
    return None


def _pixels(dataset: Dataset[Any], index: int, name: str) -> torch.Tensor | None:
    try:
        return read(dataset, index, name)[0]
    except UnreadableImageError:  # which is reported where all images are read
        return None


def _random_state() -> tuple[bytes, bytes, int, int]:
    """That of torch, NumPy and Python in this process, to be compared."""
    _, key, position, *_ = np.random.get_state(legacy=True)  # noqa: NPY002
    return torch.get_rng_state().numpy().tobytes(), np.asarray(key).tobytes(), int(position), hash(random.getstate())
