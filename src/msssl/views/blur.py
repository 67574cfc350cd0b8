"""`BlurSolarize`: random Gaussian blur and solarization as one augmentation."""

from typing import Any

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor
from typing_extensions import override

from msssl.errors import UserError
from msssl.views.keyed import KeyedAugmentation, Probability, check_probability, happens, separable


class BlurSolarize(KeyedAugmentation, IntensityAugmentationBase2D):
    """Blurs by a Gaussian, then inverts the pixels above a threshold, each by chance.

    The operations are those of torchvision's `gaussian_blur` (edges reflected) and `solarize`. The blur is two
    batched matrix products with banded matrices, one standard deviation a row.

    Args:
        kernel_size: odd, in pixels; a tenth of the image's side in SimCLR.
        sigma: smallest and largest standard deviation, in pixels.
        p_blur: probability of the blur; a list gives view k its own.
        p_solarize: likewise, of solarization.
        threshold: in [0, 1]; pixels at or above it are inverted.

    >>> blur = BlurSolarize(3, p_blur=[1.0, 0.1], p_solarize=[0.0, 0.2])
    >>> blur(torch.rand(4, 3, 16, 16)).shape
    torch.Size([4, 3, 16, 16])
    """

    n_uniforms = 3

    def __init__(
        self,
        kernel_size: int = 23,
        sigma: tuple[float, float] = (0.1, 2.0),
        p_blur: Probability = 0.5,
        p_solarize: Probability = 0.0,
        threshold: float = 0.5,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p=1.0, same_on_batch=same_on_batch, keepdim=keepdim)
        if kernel_size % 2 == 0 or kernel_size < 1:
            raise UserError(f"kernel_size is {kernel_size}: expected an odd number of pixels")
        if not 0 < sigma[0] <= sigma[1]:
            raise UserError(f"sigma is {tuple(sigma)}: expected 0 < smallest <= largest, in pixels")
        self.kernel_size = kernel_size
        self.sigma = sigma
        self.p_blur = check_probability("p_blur", p_blur)
        self.p_solarize = check_probability("p_solarize", p_solarize)
        self.threshold = threshold

    @override
    def make_params(self, uniforms: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        if self.p_blur and min(size) <= self.kernel_size // 2:
            raise UserError(f"kernel_size is {self.kernel_size}: too large for images of {size[0]} x {size[1]}")
        sigma = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * uniforms[..., 0]
        return {
            "sigma": sigma.flatten(),
            "blur": happens(uniforms[..., 1], self.p_blur).flatten(),
            "solarize": happens(uniforms[..., 2], self.p_solarize).flatten(),
        }

    @override
    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        images = input
        if self.p_blur:
            offsets = torch.arange(self.kernel_size, device=input.device) - self.kernel_size // 2
            kernel = torch.exp(-0.5 * (offsets / params["sigma"][:, None]).square())
            kernel = torch.where(params["blur"][:, None], kernel / kernel.sum(dim=1, keepdim=True), offsets == 0)
            rows, columns = (_banded(kernel.to(input.dtype), side) for side in input.shape[-2:])
            images = separable(images, rows, columns)
        if self.p_solarize:
            inverted = params["solarize"][:, None, None, None] & (images >= self.threshold)
            images = torch.where(inverted, 1 - images, images)
        return images


def _banded(kernel: Tensor, side: int) -> Tensor:
    """(B, side, side): the kernel (B, taps) around the diagonal, the image reflected about its edge pixels."""
    taps, pixel = kernel.shape[1], torch.arange(side, device=kernel.device)
    reads = pixel + torch.arange(taps, device=kernel.device)[:, None] - taps // 2  # (taps, side)
    reflected = (side - 1) - ((side - 1) - reads.abs()).abs()
    chosen = (reflected[:, :, None] == pixel).to(kernel.dtype)  # (taps, side, side)
    return (kernel @ chosen.flatten(1)).view(-1, side, side)
