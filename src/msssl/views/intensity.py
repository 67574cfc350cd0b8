"""`IntensityJitter`: random brightness, contrast, gamma and noise, for images of any number of channels."""

import math
from typing import Any

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor
from typing_extensions import override

from msssl.errors import UserError
from msssl.views import hashed
from msssl.views.keyed import KeyedAugmentation, Probability, check_probability, happens


class IntensityJitter(KeyedAugmentation, IntensityAugmentationBase2D):
    """Changes brightness and contrast, then gamma, then adds noise, by chance, for any number of channels.

    A pixel x of a channel with the mean m over the image becomes b (m + c (x - m)), then its power g, then gains a
    random number of the normal distribution with the standard deviation s. After each of the three steps values are
    clamped to [0, 1]. Brightness is a factor, as in torchvision's `ColorJitter` and in the recipes of Cell-DINO
    (Moutakanni et al. 2025) and SSL4EO-S12 (Wang et al. 2023): black stays black, which a summand would change.
    Contrast is about the mean of each channel, since only RGB has a gray that stands for all channels.

    The noise of a pixel is a function of its row's random numbers and of its place in the image. So it is the same for
    any number of processes, and compiled or not.

    Args:
        brightness: factors b come from [max(0, 1 - brightness), 1 + brightness].
        contrast: factors c come from the same interval of `contrast`.
        gamma: exponents g come from [1 / (1 + gamma), 1 + gamma], uniformly in their logarithm, so that g and 1 / g are
            equally likely.
        noise: standard deviations s come from [0, noise], in units of the range [0, 1].
        per_channel: whether each channel has its own b, c, g, s and noise. Otherwise all channels of a view share them,
            the noise included: an image whose channels are equal keeps equal channels.
        p_jitter: probability of all of this; a list gives view k its own.

    >>> jitter = IntensityJitter(0.4, 0.4, gamma=0.2, noise=0.02, per_channel=True)
    >>> jitter(torch.rand(4, 5, 16, 16)).shape
    torch.Size([4, 5, 16, 16])
    """

    n_uniforms = 1 + hashed.N_UNIFORMS

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        gamma: float = 0.0,
        noise: float = 0.0,
        per_channel: bool = False,
        p_jitter: Probability = 1.0,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p=1.0, same_on_batch=same_on_batch, keepdim=keepdim)
        if not all(0 <= strength < math.inf for strength in (brightness, contrast, gamma, noise)):
            raise UserError(
                f"brightness, contrast, gamma, noise are {brightness}, {contrast}, {gamma}, {noise}: expected numbers "
                "of at least 0"
            )
        self.brightness = brightness
        self.contrast = contrast
        self.gamma = gamma
        self.noise = noise
        self.per_channel = per_channel
        self.p_jitter = check_probability("p_jitter", p_jitter)

    @override
    def make_params(self, uniforms: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        return {
            "jitter": happens(uniforms[..., 0], self.p_jitter).flatten(),
            "seeds": hashed.seeds_from(uniforms[..., 1:]),
        }

    @override
    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        images, seeds = input, params["seeds"]
        n_channels = images.shape[1] if self.per_channel else 1
        factors = self._factors(params, n_channels).to(images.dtype)
        brightness, contrast, gamma, deviation = factors[..., None, None].unbind(1)  # each (B, C or 1, 1, 1)
        if self.brightness or self.contrast:
            mean = images.mean(dim=(2, 3), keepdim=True)
            images = torch.addcmul(brightness * (1 - contrast) * mean, images, brightness * contrast).clamp_(0, 1)
        if self.gamma:
            images = images.pow(gamma)
        if self.noise:
            shape = (len(images), n_channels, *images.shape[2:])
            noise = hashed.normal(seeds, math.prod(shape[1:]), start=4 * n_channels).view(shape)
            images = torch.addcmul(images, noise.to(images.dtype), deviation).clamp_(0, 1)
        return images

    def _factors(self, params: dict[str, Tensor], n_channels: int) -> Tensor:
        """b, c, g and s of each row, (B, 4, n_channels); 1, 1, 1 and 0 for a row that stays as it is."""
        uniforms = hashed.uniform(params["seeds"], 4 * n_channels).view(-1, 4, n_channels)
        factors = []
        for uniform, strength in zip(uniforms[:, :2].unbind(1), (self.brightness, self.contrast), strict=True):
            low = max(0.0, 1 - strength)
            factors.append(low + (1 + strength - low) * uniform)
        factors.append(torch.exp(math.log1p(self.gamma) * (2 * uniforms[:, 2] - 1)))
        jitters = params["jitter"][:, None]
        unchanged = [torch.where(jitters, factor, 1.0) for factor in factors]
        return torch.stack([*unchanged, torch.where(jitters, self.noise * uniforms[:, 3], 0.0)], dim=1)
