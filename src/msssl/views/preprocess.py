"""`Preprocess`: how images are resized and normalised for evaluation, as plain data in every checkpoint."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from msssl.errors import UserError
from msssl.views.apply import Normalize
from msssl.views.keyed import constant

DType = Literal["auto", "uint8"]
Window = tuple[float, float]
Windows = Window | tuple[Window, ...]


@dataclass(frozen=True)
class Preprocess:
    """How images become the input of a backbone in evaluation, and which views it was trained on.

    A run keeps it in its checkpoints under the key `preprocess`, so that features can be computed without its data.

    Attributes:
        mean: of each channel, in [0, 1].
        std: likewise.
        image_size: (H, W) in pixels of the images that the run saw; None where they are not known yet. Images of
            another size are resized to it.
        resize: short side to which they are resized next, where the preset has a size of its own.
        crop: side of the central square that is then taken.
        window: the values that become 0 and 1 in images of more than 8 bits: one pair, or one for each channel.
        dtype: `auto`: images of more than 8 bits are read as uint16 or float32, and the window is applied to them
            here; `uint8`: it was applied when they were read.
        n_views: K of the run.
        recipe: the augmentations of these views, a line each.

    >>> import torch
    >>> preprocess = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), image_size=(32, 32))
    >>> preprocess.evaluate(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).unique(), preprocess.input_size
    (tensor([-2.]), (32, 32))
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int] | None = None
    resize: int | None = None
    crop: int | None = None
    window: Windows | None = None
    dtype: DType = "uint8"  # as in checkpoints that do not say it
    n_views: int | None = None
    recipe: tuple[str, ...] = ()

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(H, W) of what the backbone sees, or None where the size of the images is not known."""
        return self.image_size if self.crop is None else (self.crop, self.crop)

    def evaluate(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), as they are read, as a backbone sees them: not augmented, float32, normalised."""
        if images.ndim != 4 or images.shape[1] != len(self.mean):
            raise UserError(f"images are {tuple(images.shape)}: expected (N, {len(self.mean)}, H, W)")
        pixels = self.resized(images)
        pixels = pixels / 255 if pixels.dtype == torch.uint8 else pixels
        if self.crop is not None:
            pixels = F.resize(pixels, [self.resize or self.crop], antialias=True)
            pixels = F.center_crop(pixels, [self.crop, self.crop])
        normalize = Normalize(self.mean, self.std)
        return normalize.apply_transform(pixels, normalize.constants(images.device), {})

    def resized(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) of the size of those that the run saw: uint8, or float32 in [0, 1] if not of 8 bits."""
        images = in_unit_range(images, self.window)
        if self.image_size is None or tuple(images.shape[-2:]) == self.image_size:
            return images
        resized: Tensor = F.resize(images, list(self.image_size), antialias=True)
        return resized

    def denormalize(self, views: Tensor) -> Tensor:
        """Normalised views or images (..., C, H, W) back in [0, 1], for pictures."""
        mean, std = (constant(values, views.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return views * std + mean

    def picture(self, images: Tensor) -> Tensor:
        """Images (..., C, H, W), as they are read, as RGB of 8 bits for a picture: see `as_rgb`."""
        flat = images.reshape(-1, *images.shape[-3:])
        values = in_unit_range(flat, self.window)
        values = values if values.dtype == torch.uint8 else (values * 255).round().to(torch.uint8)
        return as_rgb(values).reshape(*images.shape[:-3], 3, *images.shape[-2:])

    def as_dict(self) -> dict[str, Any]:
        """The attributes as plain data, from which `from_dict` makes the same again."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """What `as_dict` returned, also after a passage through JSON."""
        return cls(**{name: _with_tuples(value) for name, value in plain.items()})


def _with_tuples(value: Any) -> Any:
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


def in_unit_range(images: Tensor, window: Windows | None) -> Tensor:
    """Images of more than 8 bits in float32, with the values of the window as 0 and 1; those of uint8 as they are.

    Args:
        images: (N, C, H, W), of uint8, uint16 or float32.
        window: one pair of values, or one for each channel; None leaves float32 as it is, as in [0, 1] already.

    Raises:
        ValueError: uint16 without a window, or windows for another number of channels.

    >>> in_unit_range(torch.tensor([[[[100.0, 150.0, 900.0]]]]), (100, 200))
    tensor([[[[0.0000, 0.5000, 1.0000]]]])
    """
    if images.dtype == torch.uint8 or (window is None and images.dtype == torch.float32):
        return images
    if window is None:
        raise UserError(f"images are {images.dtype}: give window, the values that become black and white")
    pairs = as_pairs(window)
    if len(pairs) not in (1, images.shape[1]):
        raise UserError(f"window has {len(pairs)} pairs, and images have {images.shape[1]} channels: give one for each")
    low = constant(tuple(pair[0] for pair in pairs), images.device).view(-1, 1, 1)
    width = constant(tuple(pair[1] - pair[0] for pair in pairs), images.device).view(-1, 1, 1)
    return ((images.float() - low) / width).clamp_(0, 1)


def as_rgb(images: Tensor) -> Tensor:
    """Images (N, C, H, W) with three channels, for a picture: one is repeated, a third is 0, of more the first three.

    >>> as_rgb(torch.ones(1, 2, 1, 1)).flatten()
    tensor([1., 1., 0.])
    """
    if images.shape[1] == 1:
        return images.expand(-1, 3, -1, -1)
    if images.shape[1] == 2:
        return torch.cat([images, torch.zeros_like(images[:, :1])], dim=1)
    return images[:, :3]


def as_pairs(window: Windows) -> tuple[tuple[float, float], ...]:
    """The window of each channel, or the only one.

    >>> as_pairs((0, 4095)), as_pairs(((0, 1), (0, 2)))
    (((0, 4095),), ((0, 1), (0, 2)))
    """
    pairs: Any = window if isinstance(window[0], tuple | list) else (window,)
    return tuple(pairs)
