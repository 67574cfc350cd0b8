"""From images to views: uint8 (N, C, H, W) to float32 (K, N, C, H, W)."""

import difflib
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from msssl.seeding import derive_seed
from msssl.views.presets import IMAGENET_MEAN, IMAGENET_STD, PRESETS


class MultiView(nn.Module):
    """K augmented, normalised views per image, all K*N of them as one batch, without gradient.

    The views are a function of the images, the key and the rank alone: a fresh process that is asked for the same
    step makes the same bits. The global random state is left as it was.

    Args:
        n_views: K, at least 2.
        augmentations: a preset's name (`cifar`), or Kornia modules in order; they see float images in [0, 1].
        mean: of the channels, in [0, 1]; the preset's, or ImageNet's for a list.
        std: likewise.

    Raises:
        ValueError: n_views below 2, or an unknown preset.

    >>> images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    >>> views = MultiView(n_views=4)(images)
    >>> views.shape, views.dtype
    (torch.Size([4, 8, 3, 32, 32]), torch.float32)
    """

    def __init__(
        self,
        n_views: int = 4,
        augmentations: str | list[nn.Module] = "cifar",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if n_views < 2:
            raise ValueError(f"n_views is {n_views}: a multi-view loss needs at least 2")
        self.n_views = n_views
        self.augmentations = augmentations if isinstance(augmentations, str) else nn.ModuleList(augmentations)
        default_mean, default_std = IMAGENET_MEAN, IMAGENET_STD
        if isinstance(augmentations, str):
            if augmentations not in PRESETS:
                nearest = difflib.get_close_matches(augmentations, PRESETS, n=1, cutoff=0)[0]
                raise ValueError(f"augmentations {augmentations!r} is not a preset; did you mean {nearest!r}?")
            default_mean, default_std = PRESETS[augmentations].mean, PRESETS[augmentations].std
        self.mean = tuple(mean or default_mean)
        self.std = tuple(std or default_std)
        self._calls = 0

    @torch.no_grad()
    def forward(self, images: Tensor, key: tuple[int, ...] | None = None, rank: int = 0) -> Tensor:
        """Views (K, N, C, H, W) of images (N, C, H, W).

        Args:
            images: uint8, on any device.
            key: integers that name the step, such as (seed, epoch, batch index); by default
                `torch.initial_seed()` and the count of such calls.
            rank: part of the key: Kornia draws for the images that it sees, so each rank must draw its own.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}: expected uint8 (N, C, H, W)")
        if key is None:
            key = (torch.initial_seed(), self._calls)
            self._calls += 1
        with torch.autocast(images.device.type, enabled=False), _seeded((*key, rank), images.device):
            views = (images.float() / 255).repeat(self.n_views, 1, 1, 1)
            for augmentation in self._augmentations((images.shape[-2], images.shape[-1])):
                views = augmentation(views)
            return self._standardise(views).view(self.n_views, len(images), *views.shape[1:])

    def normalize(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), uint8, as a backbone sees them in evaluation: normalised, float32, not augmented."""
        return self._standardise(images.float() / 255)

    def denormalize(self, views: Tensor) -> Tensor:
        """Normalised views or images (..., C, H, W) back in [0, 1], for pictures."""
        return views * _per_channel(self.std, views.device) + _per_channel(self.mean, views.device)

    def _standardise(self, images: Tensor) -> Tensor:
        return (images - _per_channel(self.mean, images.device)) / _per_channel(self.std, images.device)

    def _augmentations(self, size: tuple[int, int]) -> Sequence[nn.Module] | nn.ModuleList:
        if isinstance(self.augmentations, str):
            return _preset(self.augmentations, size)
        return self.augmentations


@functools.cache
def _preset(name: str, size: tuple[int, int]) -> list[nn.Module]:
    return PRESETS[name].augmentations(size)


@functools.cache  # a copy to a GPU waits for it: once, not every step
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it outlives an evaluation that asks first
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


@contextmanager
def _seeded(key: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """The global generators of the CPU and of this device, seeded by the key and put back afterwards."""
    seed = derive_seed("views", *key)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
