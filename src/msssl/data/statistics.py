"""Mean and standard deviation of the training images."""

import torch

from msssl.data.images import Images

N_IMAGES = 5000  # that they are computed from, spread evenly over the set


def mean_and_std(images: Images) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel in [0, 1], pooled over the pixels of at most `N_IMAGES` images."""
    rows = torch.linspace(0, len(images) - 1, min(N_IMAGES, len(images))).long()
    total, total_of_squares, n_pixels = torch.zeros(3).double(), torch.zeros(3).double(), 0
    for batch in rows.split(256):
        pixels = images[batch.tolist()]["image"].double() / 255
        total += pixels.sum(dim=(0, 2, 3)).cpu()
        total_of_squares += pixels.square().sum(dim=(0, 2, 3)).cpu()
        n_pixels += pixels[:, 0].numel()
    mean = total / n_pixels
    return mean.tolist(), (total_of_squares / n_pixels - mean.square()).clamp(min=0).sqrt().tolist()
