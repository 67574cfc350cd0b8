"""`MultiView`, which turns images (N, C, H, W) into augmented, normalised views (K, N, C, H, W)."""

import copy
import difflib
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from msssl.errors import UserError
from msssl.recorded import Recorded
from msssl.seeding import derive_seed
from msssl.views.apply import CompiledRun, Normalize, Repeat, run
from msssl.views.check_draws import check_draws, check_recipe
from msssl.views.crop import RandomResizedCropFlip
from msssl.views.keyed import KeyedAugmentation
from msssl.views.preprocess import DType, Preprocess, Windows
from msssl.views.presets import IMAGENET_MEAN, IMAGENET_STD, PRESETS, Preset
from msssl.wording import counted


class MultiView(Recorded, nn.Module):
    """K augmented, normalised views per image, all K*N of them as one batch, without gradient.

    The views depend only on the images and the key: for the same step, a new process makes the same views to the bit.
    Random parameters are drawn on the device for the whole global batch, and each rank uses the rows of its own images.
    So W ranks with N images each make the same views as one process with W*N images, up to rounding. Stock Kornia
    modules draw random numbers of their own, which also depend on the rank. The global random state does not change.

    Args:
        n_views: K; the losses need at least 2.
        augmentations: a preset's name (`cifar`, `stl10`, `imagenet`, `imagenet100`, `grayscale`, `simclr`, `barlow`,
            `vicreg`, `photograph`, `xray`, `microscopy`, `aerial`), or modules in order, of `msssl.views`, Kornia or
            your own; they see the float images in [0, 1] of all views as one batch (K * N, C, H, W), and draw for each
            row.
        mean: of each channel, in [0, 1]; by default the preset's, or ImageNet's for a list. With `auto`, the default of
            the last four presets and for images of another number of channels, the data module computes mean and
            standard deviation of the training images.
        std: likewise.
        compile: whether `torch.compile` fuses the augmentations of `msssl.views`, in training mode; `auto` is yes on
            CUDA.

    Raises:
        ValueError: n_views below 1, an unknown preset, or a module that draws once for a batch, which would make all
            views of an image equal. Some such modules are known by name; the first call detects the others.

    >>> images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    >>> views = MultiView(n_views=4)(images)
    >>> views.shape, views.dtype
    (torch.Size([4, 8, 3, 32, 32]), torch.float32)
    """

    def __init__(
        self,
        n_views: int = 4,
        augmentations: str | list[nn.Module] = "cifar",
        mean: Sequence[float] | Literal["auto"] | None = None,
        std: Sequence[float] | Literal["auto"] | None = None,
        compile: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        if n_views < 1:
            raise UserError(f"n_views is {n_views}: expected at least 1, and 2 for a multi-view loss")
        self.n_views = n_views
        self.preset: Preset | None = None
        if not isinstance(augmentations, str):
            check_recipe(augmentations)
            self.augmentations: str | nn.ModuleList = nn.ModuleList(augmentations)
        else:
            self.augmentations = augmentations
            if augmentations not in PRESETS:
                nearest = difflib.get_close_matches(augmentations, PRESETS, n=1, cutoff=0)[0]
                raise UserError(f"augmentations {augmentations!r} is not a preset; did you mean {nearest!r}?")
            self.preset = PRESETS[augmentations]
        self.by_default = mean is None and std is None  # whether nobody chose the statistics
        if self.preset is not None and self.preset.mean is None and self.by_default:
            mean = std = "auto"
        self.automatic = "auto" in (mean, std)  # whether statistics are still to come, of the training images
        if self.automatic and not all(given in ("auto", None) for given in (mean, std)):
            raise UserError(f"mean is {mean} and std {std}: auto is for both")
        known = (IMAGENET_MEAN, IMAGENET_STD)
        if self.preset is not None:
            known = (self.preset.mean or IMAGENET_MEAN, self.preset.std or IMAGENET_STD)
        given = [
            value if value and value != "auto" else default for value, default in zip((mean, std), known, strict=True)
        ]
        self.mean, self.std = _checked(*given)
        self.compile_views = compile
        self.side: int | None = None  # shorter side of the crops in pixels, where it is not their own
        self._resized: dict[nn.Module, nn.Module] = {}  # crops of that side, kept: compiled code is for the very module
        self._compiled = CompiledRun()
        self._calls = 0  # without a key
        self._draws_checked = False

    def with_statistics(self, mean: Sequence[float], std: Sequence[float]) -> Self:
        """The same recipe, normalised by mean and std of the channels, in [0, 1]; this one stays as it is."""
        mean, std = _checked(mean, std)
        return self._changed(mean=mean, std=std, automatic=False)

    def with_side(self, side: int | None) -> Self:
        """The same recipe, with crops of this shorter side in pixels (None: their own); this one stays as it is."""
        return self if side == self.side else self._changed(side=side, _resized={})

    def _changed(self, **attributes: Any) -> Self:
        changed = copy.copy(self)  # which shares the augmentations, and what has been compiled
        vars(changed).update(attributes)
        return changed

    def forward(self, images: Tensor, key: tuple[int, ...] | None = None, rank: int = 0, world_size: int = 1) -> Tensor:
        """Views (K, N, C, H, W) of images (N, C, H, W).

        Args:
            images: uint8, or float32 in [0, 1], on any device.
            key: integers that name the step, such as (seed, epoch, batch index); by default
                `torch.initial_seed()` and the count of such calls.
            rank: which N rows of the global batch the images are.
            world_size: W; the global batch is W*N images.
        """
        key = self._next_key() if key is None else key
        return self.make(images, key, rank, world_size, Normalize(self.mean, self.std))

    @torch.no_grad()
    def make(self, images: Tensor, key: tuple[int, ...], rank: int, world_size: int, normalize: Normalize) -> Tensor:
        """Views as `forward` returns them, with this normalisation as the last step.

        `MultiCrop` gives the same one to all of its groups.
        """
        self._check(images, len(normalize.mean))
        with torch.inference_mode(False):  # no inference tensors: training may use what an evaluation moved
            self.to(images.device)
        steps: list[Any] = [Repeat(self.n_views), *self.steps(_size(images)), normalize]
        uniforms = self._draw(steps, images, key, rank, world_size)
        views = images
        stock = not all(isinstance(step, KeyedAugmentation) for step in steps)
        if stock and not self._draws_checked:  # once: it waits for the device
            with torch.autocast(images.device.type, enabled=False):
                shape, device = images.shape[1:], images.device
                check_draws(steps[1:-1], self.n_views, shape, device, lambda seed: _seeded((seed,), device))
            self._draws_checked = True
        seeded = _seeded((*key, rank), images.device) if stock else nullcontext()
        with torch.autocast(images.device.type, enabled=False), seeded:
            groups = groupby(steps, key=lambda step: isinstance(step, KeyedAugmentation))
            for place, (keyed, group) in enumerate(groups):
                if keyed:
                    views = self._apply_drawn(list(group), views, uniforms, place)
                else:
                    views = functools.reduce(lambda images, module: module(images), group, views)
        return views.view(self.n_views, len(images), *views.shape[1:])

    def _next_key(self) -> tuple[int, ...]:
        """Of a call without a key."""
        self._calls += 1
        return torch.initial_seed(), self._calls - 1

    def _check(self, images: Tensor, n_statistics: int) -> None:
        """Raise ValueError, with what to do, for images that this recipe is not for."""
        if images.dtype not in (torch.uint8, torch.float32) or images.ndim != 4:
            raise UserError(
                f"images are {images.dtype} {tuple(images.shape)}: expected (N, C, H, W) of uint8, or float32 in [0, 1]"
            )
        self._check_channels(images.shape[1], n_statistics)
        size, least = _size(images), self.preset.size if self.preset else None
        if least is not None and min(size) < least:
            raise UserError(
                f"images are {size[0]} x {size[1]}, but the preset {self.augmentations} makes views of {least}: "
                "give it larger images, or take a preset that keeps their size, such as cifar or simclr"
            )

    def _check_channels(self, n_channels: int, n_statistics: int) -> None:
        """Raise ValueError, with what to do, for images of another number of channels than recipe or statistics."""
        repeat = "repeat the channel: images.expand(-1, 3, -1, -1)"
        channels = self.preset.channels if self.preset else None
        if channels is not None and n_channels not in channels:
            takes = "the 3 of RGB" if channels == (3,) else " or ".join(map(str, channels))
            any_number = "take the preset microscopy or aerial, or give a list of augmentations"
            other = f"take the preset grayscale or xray, or {repeat}" if n_channels == 1 else any_number
            have = counted(n_channels, "channel")
            raise UserError(f"images have {have}, and the preset {self.augmentations} takes {takes}: {other}")
        if n_channels != n_statistics:
            other = f", or {repeat}" if n_channels == 1 else ""
            raise UserError(
                f"images have {counted(n_channels, 'channel')}, and mean and std are of {n_statistics}: "
                f"give mean and std with a number for each of the {n_channels}{other}"
            )

    def steps(self, size: tuple[int, int]) -> list[nn.Module]:
        """The augmentations of images of a size (H, W)."""
        steps = self._full_steps(size)
        if self.side is None:
            return steps
        for step in steps:
            if isinstance(step, RandomResizedCropFlip) and step not in self._resized:
                self._resized[step] = step.with_side(self.side)
        return [self._resized.get(step, step) for step in steps]

    def _full_steps(self, size: tuple[int, int]) -> list[nn.Module]:
        """Those with crops of their own size."""
        steps: Any = self.augmentations
        if self.preset is not None:
            side = self.preset.size
            steps = _preset(self.preset, (side, side) if side else size)
        return list(steps)

    def preprocess(
        self, image_size: tuple[int, int] | None = None, window: Windows | None = None, dtype: DType = "auto"
    ) -> Preprocess:
        """What evaluation does to images of this size (H, W) in pixels; see `Preprocess` for `window` and `dtype`."""
        size = self.preset.size if self.preset else None
        return Preprocess(
            mean=self.mean,
            std=self.std,
            image_size=image_size,
            resize=self.preset.resize or size if self.preset else None,
            crop=size,
            window=window,
            dtype=dtype,
            n_views=self.n_views,
            recipe=() if image_size is None else tuple(self.recipe(image_size)),
        )

    def recipe(self, size: tuple[int, int]) -> list[str]:
        """The augmentations of images of a size (H, W) as text, a line each."""
        return [" ".join(repr(step).split()) for step in self._full_steps(size)]

    def evaluate(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) as a backbone sees them in evaluation: not augmented, float32, normalised.

        A preset with a size of its own resizes and takes the central square.
        """
        self._check_channels(images.shape[1], len(self.mean))
        return self.preprocess().evaluate(images)

    def denormalize(self, views: Tensor) -> Tensor:
        """Normalised views or images (..., C, H, W) back in [0, 1], for pictures."""
        return self.preprocess().denormalize(views)

    def _draw(
        self, steps: list[Any], images: Tensor, key: tuple[int, ...], rank: int, world_size: int
    ) -> Iterator[Tensor]:
        """Uniforms (K, N, n) for each drawn step: rows rank*N to (rank+1)*N of those of the global batch."""
        widths = [step.n_uniforms for step in steps if isinstance(step, KeyedAugmentation)]
        generator = torch.Generator(images.device).manual_seed(derive_seed("views", *key))
        n = len(images)
        uniforms = torch.rand(self.n_views, world_size * n, sum(widths), generator=generator, device=images.device)
        return iter(uniforms[:, rank * n : (rank + 1) * n].split(widths, dim=-1))

    def _apply_drawn(self, steps: list[Any], views: Tensor, uniforms: Iterator[Tensor], place: int) -> Tensor:
        size, params = _size(views), []
        for step in steps:  # eagerly: a compiled draw could round a crop to another pixel
            params.append(step.make_params(next(uniforms), size))
            size = step.flags.get("size", size)
        compiles = self.compile_views is True or (self.compile_views == "auto" and views.is_cuda)
        if compiles and self.training:  # evaluation has sizes of its own, and few steps
            return self._compiled((views.shape, views.dtype, self.side, place), views, steps, params)
        return run(views, steps, params)


def _checked(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Statistics of the channels; ValueError unless there are as many, std above 0."""
    if len(mean) != len(std) or min(std) <= 0:
        raise UserError(f"mean is {mean} and std {std}: expected one of each a channel, std above 0")
    return tuple(mean), tuple(std)


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


@functools.cache
def _preset(preset: Preset, size: tuple[int, int]) -> list[nn.Module]:
    return preset.augmentations(size)


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
