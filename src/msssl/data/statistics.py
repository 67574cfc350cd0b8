"""Statistics of training images: mean and standard deviation of each channel, and the window of deeper images."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from msssl.data.loaders import batches_of
from msssl.data.pixels.images import BatchRows, Images
from msssl.progress import with_bar
from msssl.views.preprocess import Window, Windows, in_unit_range

N_IMAGES = 5000  # that statistics are computed from, spread evenly over the set
DARK, FLAT = 0.05, 0.01  # of [0, 1]: a mean nearer than this to black or white, a standard deviation below this
SHARES = (0.001, 0.999)  # of the values that are below the two of an automatic window
N_VALUES = 1 << 23  # of each channel, spread evenly over the images, that it is computed from
log = logging.getLogger(__name__)


def find_window(images: Images, num_workers: int) -> tuple[Window, ...]:
    """For each channel the values below which 0.1 % and 99.9 % of all values are, of at most `N_IMAGES` images."""
    some = images.spread(N_IMAGES)
    n_pixels = images.kind.shape[1] * images.kind.shape[2]
    step = -(-len(some) * n_pixels // N_VALUES)
    parts = [
        pixels.cpu().float().flatten(2)[..., ::step].transpose(0, 1).flatten(1)
        for pixels in _pixels_of(some, num_workers, "Window")
    ]
    windows = tuple(_window_of(values) for values in torch.cat(parts, dim=1))
    of_channels = windows[:1] if len({*windows}) == 1 else windows
    pairs = ", ".join(f"{low:g} to {high:g}" for low, high in of_channels)
    log.info("window: auto, %.1f and %.1f %% of the values: %s", 100 * SHARES[0], 100 * SHARES[1], pairs)
    return windows


def _pixels_of(images: Images, num_workers: int, what: str) -> Iterator[Tensor]:
    """The images in batches (N, C, H, W), as they are read, with a progress bar."""
    batches = batches_of(images, BatchRows(torch.arange(len(images)).split(64)), num_workers)
    for batch in with_bar(batches, what, len(batches)):
        yield batch["image"]


def _window_of(values: Tensor) -> Window:
    ordered = values.sort().values
    low, high = (float(ordered[round(share * (len(ordered) - 1))]) for share in SHARES)
    if low == high:  # such as a few bright points
        low, high = float(ordered[0]), float(ordered[-1])
    return low, high if high > low else low + 1


def mean_and_std(images: Images, num_workers: int, window: Windows | None = None) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel in [0, 1], pooled over the pixels of at most `N_IMAGES` images.

    Warns where the images are almost black, white or of one colour, as through a window much wider than the values.
    """
    total: Any = 0.0
    total_of_squares: Any = 0.0
    n_pixels = 0
    for as_read in _pixels_of(images.spread(N_IMAGES), num_workers, "Mean and std"):
        pixels = in_unit_range(as_read, window)
        pixels = pixels.double() / 255 if pixels.dtype == torch.uint8 else pixels.double()
        total += pixels.sum(dim=(0, 2, 3)).cpu()
        total_of_squares += pixels.square().sum(dim=(0, 2, 3)).cpu()
        n_pixels += pixels[:, 0].numel()
    mean = total / n_pixels
    std = (total_of_squares / n_pixels - mean.square()).clamp(min=0).sqrt()
    brightness, contrast = float(mean.mean()), float(std.max())
    look = "black" if brightness < DARK else "white" if brightness > 1 - DARK else "of one colour"
    if look != "of one colour" or contrast < FLAT:
        log.warning(
            "the training images are almost %s (mean %.3f, std %.3f of 0 to 1): see window, "
            "if they have more than 8 bits",
            *(look, brightness, contrast),
        )
    return mean.tolist(), std.tolist()
