"""Draws images with their augmented views at the first step, so that a user sees what the encoder sees."""

import textwrap
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import to_pil_image, to_tensor
from torchvision.utils import make_grid, save_image
from typing_extensions import override

from msssl.callbacks.pictures import log_picture
from msssl.run.files import atomic_write
from msssl.views import MultiCrop, MultiView
from msssl.views.preprocess import as_rgb


class ViewGrid(Callback):
    """Draws a grid of views at the first step, a row for each image: as `views.png`, and for TensorBoard and W&B.

    The file is written to `trainer.default_root_dir`, which is the folder of the run.

    Args:
        n_images: number of rows at most.
    """

    def __init__(self, n_images: int = 8) -> None:
        self.n_images = n_images

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        views_of = getattr(getattr(trainer, "datamodule", None), "views", None)
        if trainer.global_step > 0 or batch_idx > 0 or not isinstance(views_of, MultiView):
            return
        if not trainer.is_global_zero:
            return
        grid = contact_sheet(views_of, batch["views"], self.n_images)
        with atomic_write(Path(trainer.default_root_dir, "views.png")) as temporary:
            save_image(grid, temporary, format="png")
        log_picture(trainer, "views", grid, step=0)


def contact_sheet(views_of: MultiView, views: Tensor | list[Tensor], n_images: int) -> Tensor:
    """A picture of views with a caption that names the operations that made them.

    Args:
        views_of: made the views.
        views: normalised views (K, N, C, H, W), or a list of such tensors, one for each size.
        n_images: number of images to draw at most.
    """
    groups = views if isinstance(views, list) else [views]
    makers: list[Any] = list(views_of.groups) if isinstance(views_of, MultiCrop) else [views_of]
    lines = []
    for maker, group in zip(makers, groups, strict=True):
        lines.append(f"{len(group)} views of {group.shape[-2]} x {group.shape[-1]}:")
        lines += [f"  {step}" for step in maker.steps((group.shape[-2], group.shape[-1]))]
    if (channels := groups[0].shape[2]) > 3:
        lines.append(f"red, green and blue are the first 3 of {channels} channels")
    return add_caption(draw_views([views_of.denormalize(group[:, :n_images]) for group in groups]), lines)


def add_caption(picture: Tensor, lines: list[str]) -> Tensor:
    """A picture (3, h, w) in [0, 1] with lines of text below it, wrapped at its width."""
    width = max(picture.shape[-1], 480)
    folded = [part for line in lines for part in textwrap.wrap(line, width // 6, subsequent_indent="    ")]
    canvas = Image.new("RGB", (width, picture.shape[-2] + 14 * len(folded) + 10), "white")
    canvas.paste(to_pil_image(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, line in enumerate(folded):
        draw.text((4, picture.shape[-2] + 4 + 14 * i), line, fill="black")
    drawn: Tensor = to_tensor(canvas)
    return drawn


def draw_views(groups: list[Tensor], min_size: int = 64) -> Tensor:
    """Draw views as one picture (3, h, w), a row for each image.

    Args:
        groups: views (K, N, C, H, W) in [0, 1], one tensor for each size.
        min_size: width in pixels below which views are magnified.
    """
    height, width = groups[0].shape[-2:]
    factor = max(1, min_size // width)
    size = (height * factor, width * factor)
    cells = [
        F.interpolate(as_rgb(group.float().cpu().flatten(0, 1)), size).unflatten(0, group.shape[:2]) for group in groups
    ]
    views = torch.cat(cells)
    grid: Tensor = make_grid(views.transpose(0, 1).flatten(0, 1).clamp(0, 1), nrow=len(views), padding=2, pad_value=1.0)
    return grid
