"""Mean and standard deviation of the training images."""

import torch

from msssl.data.images import Images, Rows
from msssl.data.loaders import batches_of
from msssl.progress import with_bar

N_IMAGES = 5000  # that they are computed from, spread evenly over the set


def mean_and_std(images: Images, num_workers: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel in [0, 1], pooled over the pixels of at most `N_IMAGES` images."""
    some = images.spread(N_IMAGES)
    batches = batches_of(some, Rows(torch.arange(len(some)).split(64)), num_workers)
    total, total_of_squares, n_pixels = torch.zeros(3).double(), torch.zeros(3).double(), 0
    for batch in with_bar(batches, "Mean and std", len(batches)):
        pixels = batch["image"].double() / 255
        total += pixels.sum(dim=(0, 2, 3)).cpu()
        total_of_squares += pixels.square().sum(dim=(0, 2, 3)).cpu()
        n_pixels += pixels[:, 0].numel()
    mean = total / n_pixels
    return mean.tolist(), (total_of_squares / n_pixels - mean.square()).clamp(min=0).sqrt().tolist()
