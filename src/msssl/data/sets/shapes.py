"""`Shapes`, a data module whose images of simple shapes are drawn from a seed, with nothing to download."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from typing_extensions import override

from msssl.data.datamodule import MultiViewDataModule, Split
from msssl.seeding import derive_seed

# B = images, S = side in pixels. A form is positive inside, about the distance to its edge in units of its radius.
FORMS = ("disc", "ring", "square", "frame", "triangle", "cross", "star", "crescent", "bar", "ell")


class Shapes(MultiViewDataModule):
    """Ten forms drawn procedurally: nothing to download, labelled, the same for the same `data_seed`.

    A class is a form; its colours, texture, place, size and tilt vary freely, and so does the background. Neither
    pixels nor an untrained encoder tell the forms apart well.

    Args:
        train_images: number of training images, spread evenly over the classes.
        test_images: number of test images.
        image_size: side in pixels.
        data_seed: of the drawing.
        **kwargs: those of `MultiViewDataModule`; `data_dir` is not used.
    """

    def __init__(
        self, train_images: int = 5000, test_images: int = 2000, image_size: int = 32, data_seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(image_size=image_size, **kwargs)
        self.counts = {"train": train_images, "test": test_images}
        self.side = image_size
        self.data_seed = data_seed

    @property
    @override
    def num_classes(self) -> int:
        return len(FORMS)

    @override
    def dataset(self, split: Split) -> Dataset[Any] | None:
        if split == "val":
            return None
        generator = torch.Generator().manual_seed(derive_seed(f"shapes/{split}", self.data_seed))
        labels = torch.arange(self.counts[split]) % len(FORMS)
        images = TensorDataset(draw(labels, self.side, generator), labels)
        images.classes = FORMS  # type: ignore[attr-defined]  # as torchvision's sets have their names
        return images


def draw(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Draw one image per label.

    Args:
        labels: positions in `FORMS`, shape (B,).
        size: side S in pixels.
        generator: of every free choice.

    Returns:
        Images, uint8, shape (B, 3, S, S).
    """
    n = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    radius = uniform(0.45, 0.75, 1, 1)
    place = uniform(-1, 1, 2, 1, 1) * (1 - radius[:, None])
    tilt = uniform(-0.35, 0.35, 1, 1)
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    u, v = _rotate((x - place[:, 0]) / radius, (y - place[:, 1]) / radius, tilt)
    inside = _forms(u, v, labels)
    mask = (0.5 + inside * radius * size / 2).clamp(0, 1)[:, None]  # edges one pixel wide

    ground, figure = uniform(0, 1, 3, 1, 1), uniform(0, 1, 3, 1, 1)
    figure = torch.where((figure - ground).abs().mean(1, keepdim=True) < 0.3, (ground + 0.5) % 1, figure)
    layers = [_texture(colour, x, y, uniform) for colour in (ground, figure)]
    image = layers[0] * (1 - mask) + layers[1] * mask
    noise = 0.04 * torch.randn(image.shape, generator=generator)
    return ((image + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def _texture(colour: Tensor, x: Tensor, y: Tensor, uniform: Callable[..., Tensor]) -> Tensor:
    """A colour (B, 3, 1, 1) with stripes of its own direction, period and strength, and a slope of brightness."""
    along, _ = _rotate(x, y, uniform(0, 2 * math.pi, 1, 1))
    stripes = torch.sin(along * uniform(4, 16, 1, 1) + uniform(0, 2 * math.pi, 1, 1))
    slope, _ = _rotate(x, y, uniform(0, 2 * math.pi, 1, 1))
    return colour + (stripes * uniform(0, 0.15, 1, 1) + slope * uniform(0, 0.15, 1, 1))[:, None]


def _rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()


def _forms(u: Tensor, v: Tensor, labels: Tensor) -> Tensor:
    """Each image's form, evaluated at its own coordinates u, v (B, S, S)."""
    r = torch.hypot(u, v)

    def box(width: float, height: float, at: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        return torch.minimum(width - (u - at[0]).abs(), height - (v - at[1]).abs())

    def polygon(sides: int, inner: float) -> Tensor:
        sector = 2 * math.pi / sides
        angle = torch.remainder(torch.atan2(u, -v) + sector / 2, sector) - sector / 2
        return inner - r * angle.cos()

    def star() -> Tensor:
        sector = 2 * math.pi / 5
        angle = (torch.remainder(torch.atan2(u, -v) + sector / 2, sector) - sector / 2).abs()
        # The edge from a tip (1, 0) to a notch at radius 0.42, half a sector on.
        notch_x, notch_y = 0.42 * math.cos(sector / 2), 0.42 * math.sin(sector / 2)
        length = math.hypot(1 - notch_x, notch_y)
        px, py = r * angle.cos(), r * angle.sin()
        return (notch_y * (1 - px) - (1 - notch_x) * py) / length

    disc = 0.85 - r
    forms = {
        "disc": disc,
        "ring": torch.minimum(0.95 - r, r - 0.55),
        "square": box(0.75, 0.75),
        "frame": torch.minimum(box(0.85, 0.85), -box(0.5, 0.5)),
        "triangle": polygon(3, 0.5),
        "cross": torch.maximum(box(0.95, 0.3), box(0.3, 0.95)),
        "star": star(),
        "crescent": torch.minimum(0.95 - r, torch.hypot(u - 0.45, v) - 0.75),
        "bar": box(1.0, 0.38),
        "ell": torch.maximum(box(0.3, 0.9, (-0.5, 0.0)), box(0.8, 0.3, (0.0, 0.6))),
    }
    stacked = torch.stack([forms[name] for name in FORMS])
    chosen: Tensor = stacked[labels, torch.arange(len(labels))]
    return chosen
