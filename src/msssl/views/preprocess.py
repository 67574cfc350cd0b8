"""`Preprocess`: how images are resized and normalised for evaluation, as plain data in every checkpoint."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from torch import Tensor
from torchvision.transforms.v2 import functional as F

from msssl.errors import UserError
from msssl.views.apply import Normalize
from msssl.views.keyed import constant


@dataclass(frozen=True)
class Preprocess:
    """How images become the input of a backbone in evaluation, and which views it was trained on.

    A run keeps it in its checkpoints under the key `preprocess`, so that features can be computed without its data.

    Attributes:
        mean: of the channels, in [0, 1].
        std: likewise.
        image_size: (H, W) in pixels of the images that the run saw; None where they are not known yet. Images of
            another size are resized to it.
        resize: short side to which they are resized next, where the preset has a size of its own.
        crop: side of the central square that is then taken.
        window: the values that became black and white in images of more than 8 bits, if one was given.
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
    window: tuple[float, float] | None = None
    n_views: int | None = None
    recipe: tuple[str, ...] = ()

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(H, W) of what the backbone sees, or None where the size of the images is not known."""
        return self.image_size if self.crop is None else (self.crop, self.crop)

    def evaluate(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), uint8, as a backbone sees them in evaluation: not augmented, float32, normalised."""
        if images.ndim != 4 or images.shape[1] != len(self.mean):
            raise UserError(f"images are {tuple(images.shape)}: expected (N, {len(self.mean)}, H, W)")
        pixels = self.resized(images).float() / 255
        if self.crop is not None:
            pixels = F.resize(pixels, [self.resize or self.crop], antialias=True)
            pixels = F.center_crop(pixels, [self.crop, self.crop])
        normalize = Normalize(self.mean, self.std)
        return normalize.apply_transform(pixels, normalize.constants(images.device), {})

    def resized(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), uint8, of the size of those that the run saw."""
        if self.image_size is None or tuple(images.shape[-2:]) == self.image_size:
            return images
        resized: Tensor = F.resize(images, list(self.image_size), antialias=True)
        return resized

    def denormalize(self, views: Tensor) -> Tensor:
        """Normalised views or images (..., C, H, W) back in [0, 1], for pictures."""
        mean, std = (constant(values, views.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return views * std + mean

    def as_dict(self) -> dict[str, Any]:
        """The attributes as plain data, from which `from_dict` makes the same again."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """What `as_dict` returned, also after a passage through JSON."""
        values: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
        return cls(**values)
