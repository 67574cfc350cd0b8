"""Mean and standard deviation of the training images."""

import logging

import torch

from msssl.data.loaders import batches_of
from msssl.data.pixels.images import BatchRows, Images
from msssl.progress import with_bar

N_IMAGES = 5000  # that they are computed from, spread evenly over the set
DARK, FLAT = 0.05, 0.01  # of [0, 1]: a mean nearer than this to black or white, a standard deviation below this
log = logging.getLogger(__name__)


def mean_and_std(images: Images, num_workers: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel in [0, 1], pooled over the pixels of at most `N_IMAGES` images.

    Warns where the images are almost black, white or of one colour.
    """
    some = images.spread(N_IMAGES)
    batches = batches_of(some, BatchRows(torch.arange(len(some)).split(64)), num_workers)
    total, total_of_squares, n_pixels = torch.zeros(3).double(), torch.zeros(3).double(), 0
    for batch in with_bar(batches, "Mean and std", len(batches)):
        pixels = batch["image"].double() / 255
        total += pixels.sum(dim=(0, 2, 3)).cpu()
        total_of_squares += pixels.square().sum(dim=(0, 2, 3)).cpu()
        n_pixels += pixels[:, 0].numel()
    mean = total / n_pixels
    std = (total_of_squares / n_pixels - mean.square()).clamp(min=0).sqrt()
    _warn_of_extremes(float(mean.mean()), float(std.max()))
    return mean.tolist(), std.tolist()


def _warn_of_extremes(mean: float, std: float) -> None:
    """Warn where there is nearly nothing to see, as through a window that is much wider than the values."""
    look = "black" if mean < DARK else "white" if mean > 1 - DARK else "of one colour" if std < FLAT else ""
    if look:
        log.warning(
            "the training images are almost %s (mean %.3f, std %.3f of 0 to 1): see window, "
            "if they have more than 8 bits",
            look,
            mean,
            std,
        )
