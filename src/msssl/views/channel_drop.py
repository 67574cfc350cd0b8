"""`ChannelDrop`: random channels without their structure, for images of any number of channels."""

from typing import Any

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor
from typing_extensions import override

from msssl.errors import UserError
from msssl.views import hashed
from msssl.views.keyed import KeyedAugmentation, Probability, check_probability, happens


class ChannelDrop(KeyedAugmentation, IntensityAugmentationBase2D):
    """Replaces random channels by their mean over the image, by chance; at least one channel always stays.

    An encoder can then not rely on one channel alone. The mean, rather than black, is near 0 after the normalisation,
    so that the first convolution hardly responds to the channel. In Cell-DINO (Moutakanni et al. 2025), where each
    image is normalised by its own mean, a channel that is set to black becomes exactly this.

    Args:
        p_drop: probability that channels are dropped; a list gives view k its own.
        most: largest share of the channels that are dropped. Each number from 1 to `most` * C, rounded down, is equally
            likely. At least 1 can be dropped, and at most C - 1: images of one channel stay as they are.

    >>> drop = ChannelDrop(p_drop=1.0)
    >>> images = torch.rand(4, 5, 16, 16)
    >>> (drop(images) != images).all(dim=(2, 3)).sum(dim=1).max() <= 2
    tensor(True)
    """

    n_uniforms = 2 + hashed.N_UNIFORMS

    def __init__(
        self, p_drop: Probability = 0.5, most: float = 0.5, same_on_batch: bool = False, keepdim: bool = False
    ) -> None:
        super().__init__(p=1.0, same_on_batch=same_on_batch, keepdim=keepdim)
        if not 0 < most <= 1:
            raise UserError(f"most is {most}: expected a share of the channels, above 0 and at most 1")
        self.p_drop = check_probability("p_drop", p_drop)
        self.most = most

    @override
    def make_params(self, uniforms: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        return {
            "drop": happens(uniforms[..., 0], self.p_drop).flatten(),
            "number": uniforms[..., 1].flatten(),  # in [0, 1): it becomes one of channels where their number is known
            "seeds": hashed.seeds_from(uniforms[..., 2:]),
        }

    @override
    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        n_channels = input.shape[1]
        most = min(max(1, int(self.most * n_channels + 1e-9)), n_channels - 1)
        if most == 0:
            return input
        number = 1 + (params["number"] * most).long().clamp(max=most - 1)
        channels = torch.arange(n_channels, device=input.device)
        order = hashed.bits(params["seeds"], n_channels) * n_channels + channels  # no two are equal
        rank = (order[:, :, None] > order[:, None]).sum(dim=2)
        dropped = (rank < number[:, None]) & params["drop"][:, None]
        return torch.where(dropped[:, :, None, None], input.mean(dim=(2, 3), keepdim=True), input)
