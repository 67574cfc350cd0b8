"""`RandomD4`: a random symmetry of the square, for images that have no up and no left."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from msssl.views.keyed import KeyedGeometry


class RandomD4(KeyedGeometry):
    """Turns square images by 0, 90, 180 or 270 degrees, mirrored or not: one of 8 symmetries, each equally likely.

    Images that are not square keep their shape: they have 4 symmetries, without and with a flip in each axis. Pixels
    are moved, never interpolated.

    >>> d4 = RandomD4()
    >>> d4(torch.rand(4, 5, 16, 16)).shape
    torch.Size([4, 5, 16, 16])
    """

    n_uniforms = 1
    _compute_matrix_lazily = True

    def __init__(self, same_on_batch: bool = False, keepdim: bool = False) -> None:
        super().__init__(p=1.0, same_on_batch=same_on_batch, keepdim=keepdim)

    @override
    def make_params(self, uniforms: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        symmetry = (uniforms.flatten() * 8).long().clamp(max=7)
        square = size[0] == size[1]
        return {
            "flip_x": symmetry % 2 == 1,
            "flip_y": symmetry // 2 % 2 == 1,
            "transpose": (symmetry // 4 == 1) & square,  # after the flips
        }

    @override
    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        height, width = input.shape[-2:]
        flip_x, flip_y, transpose = (params[name][:, None, None] for name in ("flip_x", "flip_y", "transpose"))
        y, x = torch.arange(height, device=input.device)[:, None], torch.arange(width, device=input.device)
        if height == width:
            y, x = torch.where(transpose, x, y), torch.where(transpose, y, x)
        y, x = torch.where(flip_y, height - 1 - y, y), torch.where(flip_x, width - 1 - x, x)
        reads = (y * width + x).flatten(1)[:, None].expand(-1, input.shape[1], -1)  # for each output pixel
        return input.flatten(2).gather(2, reads).view_as(input)

    @override
    def compute_transformation(self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any]) -> Tensor:
        """Matrices (B, 3, 3) from pixel coordinates of the input to those of the output, for boxes and keypoints."""
        matrix = torch.eye(3, dtype=input.dtype, device=input.device).repeat(len(input), 1, 1)
        for axis, name in enumerate(("flip_x", "flip_y")):
            flip = params[name].to(input)
            matrix[:, axis, axis] = 1 - 2 * flip
            matrix[:, axis, 2] = flip * (input.shape[-1 - axis] - 1)
        transposed = params["transpose"].to(input.device)[:, None, None]
        return torch.where(transposed, matrix[:, [1, 0, 2]], matrix)
