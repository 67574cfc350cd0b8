"""`ColorJitterGrayscale`: random colour jitter and grayscale as one augmentation."""

import math
from itertools import permutations
from typing import Any

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor
from typing_extensions import override

from msssl.errors import UserError
from msssl.views.keyed import KeyedAugmentation, Probability, check_probability, constant, happens

_ORDERS = tuple(permutations((0.0, 1.0, 2.0)))  # of brightness, contrast, saturation


class ColorJitterGrayscale(KeyedAugmentation, IntensityAugmentationBase2D):
    """Jitters brightness, contrast and saturation, then hue, then takes the colour away, each by chance.

    The operations and the factors' distributions are those of torchvision's `ColorJitter` and `rgb_to_grayscale`.
    As in torchvision, the order of brightness, contrast and saturation is random, here for each row. Unlike there, hue
    always comes last; its place among the four makes a tenth of the difference that the jitter itself makes. Images of
    one channel can be jittered in brightness and contrast.

    Args:
        brightness: factors come from [max(0, 1 - brightness), 1 + brightness].
        contrast: likewise.
        saturation: likewise.
        hue: shifts come from [-hue, hue], in turns, at most 0.5.
        p_jitter: probability of the jitter; a list gives view k its own.
        p_grayscale: likewise, of grayscale.

    >>> jitter = ColorJitterGrayscale(0.4, 0.4, 0.4, 0.1, p_jitter=0.8)
    >>> jitter(torch.rand(4, 3, 16, 16)).shape
    torch.Size([4, 3, 16, 16])
    """

    n_uniforms = 7

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        p_jitter: Probability = 1.0,
        p_grayscale: Probability = 0.0,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p=1.0, same_on_batch=same_on_batch, keepdim=keepdim)
        if not all(0 <= strength < math.inf for strength in (brightness, contrast, saturation)) or not 0 <= hue <= 0.5:
            raise UserError(
                f"brightness, contrast, saturation, hue are {brightness}, {contrast}, {saturation}, {hue}: "
                "expected numbers of at least 0, and hue of at most 0.5"
            )
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.p_jitter = check_probability("p_jitter", p_jitter)
        self.p_grayscale = check_probability("p_grayscale", p_grayscale)

    @override
    def make_params(self, uniforms: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        jitters = happens(uniforms[..., 5], self.p_jitter)
        strengths = constant((self.brightness, self.contrast, self.saturation), uniforms.device)
        low = (1 - strengths).clamp(min=0)
        factors = low + (1 + strengths - low) * uniforms[..., :3]
        order = constant(_ORDERS, uniforms.device)[(uniforms[..., 4] * len(_ORDERS)).long().clamp(max=5)]
        return {
            "order": order.flatten(0, 1).long(),  # (B, 3)
            "factors": torch.where(jitters[..., None], factors, 1.0).flatten(0, 1),  # (B, 3)
            "hue": torch.where(jitters, self.hue * (2 * uniforms[..., 3] - 1), 0.0).flatten(),
            "grayscale": happens(uniforms[..., 6], self.p_grayscale).flatten(),
        }

    @override
    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        n_channels = input.shape[1]
        if n_channels != 3 and (n_channels != 1 or self.saturation or self.hue or self.p_grayscale):
            other = "for one channel, give brightness and contrast alone" if n_channels == 1 else "leave it out"
            raise UserError(f"images have {n_channels} channels: colour jitter needs the 3 of RGB; {other}")
        images = input
        if self.brightness or self.contrast or self.saturation:
            for slot in range(3):
                images = _blend(images, params["order"][:, slot], params["factors"])
        if self.hue:
            images = _shift_hue(images, params["hue"])
        if self.p_grayscale:
            images = torch.lerp(images, _gray(images), _per_row(params["grayscale"], images))  # weights 0 and 1: exact
        return images


def _per_row(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.dtype).view(-1, 1, 1, 1)


def _gray(images: Tensor) -> Tensor:
    """Luma (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    gray: Tensor = (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return gray


def _blend(images: Tensor, operation: Tensor, factors: Tensor) -> Tensor:
    """Away from black (operation 0: brightness), the mean gray (1: contrast) or the pixel's gray (2: saturation)."""
    gray = _gray(images)
    factor = factors.gather(1, operation[:, None])[:, 0]
    pixel = _per_row((1 - factor) * (operation == 2), images)
    mean = _per_row((1 - factor) * (operation == 1), images) * gray.mean(dim=(2, 3), keepdim=True)
    return torch.addcmul(torch.addcmul(mean, gray, pixel), images, _per_row(factor, images)).clamp_(0, 1)


def _shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue, without a detour through HSV: value and chroma stay.

    With the hue h in [0, 6), in sixths of a turn, channel i is value - chroma * clamp(2 - ||h - 2 i| - 3|, 0, 1).
    """
    red, green, blue = images.split(1, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    is_red, is_green = (value == red).to(images.dtype), (value == green).to(images.dtype)
    # lerp with weights 0 and 1 chooses exactly, and much faster than `where` on a CPU
    sector = torch.lerp(torch.lerp(red - green, blue - red, is_green), green - blue, is_red)
    start = (4 - 2 * is_green) * (1 - is_red)
    hue = (sector / chroma.clamp(min=1e-9) + start).add_(6 * _per_row(turns, images))
    hue = hue.sub_((hue / 6).floor_().mul_(6))  # modulo 6; `remainder` is several times slower on a CPU
    channels = hue - 2 * torch.arange(3, device=images.device, dtype=images.dtype)[:, None, None]
    shifted: Tensor = value - channels.abs_().sub_(3).abs_().neg_().add_(2).clamp_(0, 1).mul_(chroma)
    return shifted
