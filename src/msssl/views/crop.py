"""`RandomResizedCropFlip`: random resized crop and horizontal flip as one augmentation, by two matrix products."""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from msssl.errors import UserError
from msssl.views.keyed import KeyedGeometry, Probability, check_probability, happens, separable

_TRIES = 10  # torchvision's


class RandomResizedCropFlip(KeyedGeometry):
    """Crops a random box, resizes it and flips it by chance, as two batched matrix products.

    Boxes are distributed as torchvision's `RandomResizedCrop`; pixels are those of its `resized_crop` with
    `antialias=True`, then `hflip`.

    Args:
        size: (height, width) of the output, in pixels.
        scale: smallest and largest area of the box, as a fraction of the image's.
        ratio: smallest and largest width / height of the box.
        p_flip: probability of the flip; a list gives view k its own.

    >>> crop = RandomResizedCropFlip((8, 8), p_flip=0.0)
    >>> crop
    RandomResizedCropFlip(size=(8, 8), scale=(0.08, 1.0), ratio=(0.75, 1.3333333333333333), p_flip=0.0)
    >>> crop(torch.rand(4, 3, 16, 16)).shape
    torch.Size([4, 3, 8, 8])
    """

    n_uniforms = 2 * _TRIES + 3
    _compute_matrix_lazily = True

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        p_flip: Probability = 0.5,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p=1.0, same_on_batch=same_on_batch, keepdim=keepdim)
        if isinstance(size, int) or len(size) != 2 or min(size) < 1:
            raise UserError(f"size is {size}: expected (height, width) in pixels")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(f"scale is {tuple(scale)}: expected 0 < smallest <= largest <= 1, fractions of the area")
        if not 0 < ratio[0] <= ratio[1]:
            raise UserError(f"ratio is {tuple(ratio)}: expected 0 < smallest <= largest, of width / height")
        self.scale = scale
        self.ratio = ratio
        self.p_flip = check_probability("p_flip", p_flip)
        self.flags = {"size": tuple(size)}

    @override
    def make_params(self, uniforms: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        height, width = size
        if height < self.flags["size"][0] or width < self.flags["size"][1]:
            wanted = " x ".join(map(str, self.flags["size"]))
            raise UserError(
                f"images are {height} x {width}, smaller than the crops' size of {wanted}: take a smaller size, or "
                "larger images (data.image_size, or kornia.augmentation.Resize before the crop)"
            )
        areas, ratios, rest = uniforms.split([_TRIES, _TRIES, 3], dim=-1)
        area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * areas)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        aspect = (low + (high - low) * ratios).exp()
        widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        first = fits.to(torch.uint8).argmax(dim=-1, keepdim=True)  # 0 where none does
        fitted = fits.any(dim=-1)
        whole_height, whole_width = self._fallback(size)
        h = torch.where(fitted, heights.gather(-1, first)[..., 0], whole_height)
        w = torch.where(fitted, widths.gather(-1, first)[..., 0], whole_width)
        top = torch.where(fitted, (rest[..., 0] * (height - h + 1)).floor().clamp(max=height - h), (height - h) // 2)
        left = torch.where(fitted, (rest[..., 1] * (width - w + 1)).floor().clamp(max=width - w), (width - w) // 2)
        flip = happens(rest[..., 2], self.p_flip)
        box = {"top": top, "left": left, "height": h, "width": w, "flip": flip}
        return {name: value.flatten() for name, value in box.items()}

    def with_side(self, side: int) -> "RandomResizedCropFlip":
        """The same crop to a smaller size of the same shape, of this shorter side; ValueError if it is not smaller.

        >>> RandomResizedCropFlip((32, 48)).with_side(24).flags["size"]
        (24, 36)
        """
        height, width = self.flags["size"]
        short = min(height, width)
        if side > short:
            raise UserError(
                f"views of {side} pixels are not smaller than those of {height} x {width} that they stand for"
            )
        resized = copy.copy(self)
        resized.flags = {"size": (round(height * side / short), round(width * side / short))}
        return resized

    def _fallback(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the central box that is taken where ten tries do not fit."""
        height, width = size
        if width / height < self.ratio[0]:
            return round(width / self.ratio[0]), width
        if width / height > self.ratio[1]:
            return height, round(height * self.ratio[1])
        return height, width

    @override
    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        height, width = flags["size"]
        straight = torch.zeros_like(params["flip"])
        rows = _weights(params["top"], params["height"], straight, input.shape[-2], height)
        columns = _weights(params["left"], params["width"], params["flip"], input.shape[-1], width)
        return separable(input, rows.to(input.dtype), columns.to(input.dtype))

    @override
    def compute_transformation(self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any]) -> Tensor:
        """Matrices (B, 3, 3) from pixel coordinates of the input to those of the output, for boxes and keypoints."""
        height, width = flags["size"]
        matrix = torch.eye(3, dtype=input.dtype, device=input.device).repeat(len(input), 1, 1)
        sides = ((0, "left", "width", width), (1, "top", "height", height))
        for axis, start, length, out in sides:
            scale = out / params[length].to(input)
            matrix[:, axis, axis] = scale
            matrix[:, axis, 2] = (0.5 - params[start].to(input)) * scale - 0.5
        mirror = torch.tensor([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).to(matrix)
        return torch.where(params["flip"].to(input.device)[:, None, None], mirror @ matrix, matrix)


def _weights(start: Tensor, length: Tensor, flip: Tensor, n_in: int, n_out: int) -> Tensor:
    """(B, n_out, n_in): each output pixel's weights on the input, a hat of the width of a pixel of the larger grid."""
    scale = (length / n_out)[:, None]
    out = torch.arange(n_out, dtype=length.dtype, device=length.device) + 0.5
    out = torch.where(flip[:, None], n_out - out, out)
    pixel = torch.arange(n_in, dtype=length.dtype, device=length.device) + 0.5 - start[:, None]  # within the box
    inside = (pixel > 0) & (pixel < length[:, None])
    distance = (pixel[:, None] - (out * scale)[:, :, None]).abs()
    weights = (1 - distance / scale.clamp(min=1)[:, :, None]).relu() * inside[:, None]
    return weights / weights.sum(dim=-1, keepdim=True)
