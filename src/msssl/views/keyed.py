"""`KeyedAugmentation`, the base class of augmentations whose parameters are computed from given random numbers."""

import functools
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from kornia.augmentation import GeometricAugmentationBase2D
from kornia.geometry.transform import warp_perspective
from torch import Tensor
from typing_extensions import override

from msssl.errors import UserError
from msssl.recorded import Recorded

Probability = float | Sequence[float]


class KeyedAugmentation(Recorded):
    """A Kornia augmentation whose parameters are a function of `n_uniforms` uniform random numbers for each row.

    `MultiView` draws these numbers for the whole global batch, and calls `make_params` and `apply_transform`. Called
    directly or in a Kornia container, the augmentation draws them from the global generator of the images' device. In
    both cases `augmentation(images, params=...)` repeats a call.
    """

    n_uniforms: int
    same_on_batch: bool
    device: torch.device
    flags: dict[str, Any]

    def __repr__(self) -> str:
        names = [name for name in signature(type(self)).parameters if name not in ("same_on_batch", "keepdim")]
        values = {name: self.flags[name] if name in self.flags else getattr(self, name) for name in names}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in values.items())})"

    def make_params(self, uniforms: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Parameters of the K * N rows, from uniforms (K, N, n_uniforms) and the images' (H, W)."""
        raise NotImplementedError

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Kornia's way to draw: for one view."""
        rows = 1 if self.same_on_batch else batch_shape[0]
        uniforms = torch.rand(1, rows, self.n_uniforms, device=self.device)
        return self.make_params(uniforms.expand(1, batch_shape[0], -1), (batch_shape[-2], batch_shape[-1]))

    def forward(self, input: Tensor, params: dict[str, Tensor] | None = None, **kwargs: Any) -> Tensor:
        """As in Kornia, but drawn where the images are."""
        self.set_rng_device_and_dtype(input.device, input.dtype)  # type: ignore[attr-defined]
        output: Tensor = super().forward(input, params=params, **kwargs)  # type: ignore[misc]
        return output


class KeyedGeometry(KeyedAugmentation, GeometricAugmentationBase2D):
    """A keyed augmentation that moves pixels, with the inverse that Kornia's containers ask for."""

    @override
    def inverse_transform(
        self, input: Tensor, flags: dict[str, Any], transform: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> Tensor:
        if transform is None or size is None:
            raise UserError("the inverse needs the transform and the size of the input")
        output: Tensor = warp_perspective(input, transform, size, align_corners=True)
        return output


def happens(uniforms: Tensor, p: Probability) -> Tensor:
    """Which of the rows (K, N) an operation of probability p acts on; a list gives view k the k-th, and starts again.

    >>> happens(torch.full((3, 2), 0.5), [1.0, 0.1])[:, 0]
    tensor([ True, False,  True])
    """
    if isinstance(p, float | int):
        return uniforms < p
    of_views = tuple(p[k % len(p)] for k in range(len(uniforms)))
    return uniforms < constant(of_views, uniforms.device)[:, None]


def check_probability(name: str, p: Probability) -> Probability:
    """Return p, or raise ValueError naming it."""
    values = (p,) if isinstance(p, float | int) else tuple(p)
    if not values or not all(0 <= value <= 1 for value in values):
        raise UserError(f"{name} is {p}: a probability is between 0 and 1, or a list of those of the views")
    return p


@functools.cache  # a copy to a GPU waits for it: once, not every step
def constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """A tensor of these values on this device."""
    with torch.inference_mode(False):  # no inference tensor: training may use one that an evaluation makes
        return torch.tensor(values, dtype=torch.float32, device=device)


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The map rows @ image @ columns^T of every channel: images (B, C, H, W), rows (B, h, H), columns (B, w, W)."""
    n, c, h, w = images.shape
    wide = torch.bmm(images.reshape(n, c * h, w), columns.mT).view(n, c, h, -1)
    return rows[:, None] @ wide
