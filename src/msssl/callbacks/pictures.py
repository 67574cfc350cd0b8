"""Gives pictures to those loggers of a run that accept them, such as TensorBoard and W&B."""

from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.transforms.functional import to_pil_image


def takes_pictures(trainer: Trainer) -> bool:
    """Whether this process has a logger that accepts pictures."""
    return trainer.is_global_zero and any(map(_takes_pictures, trainer.loggers))


def log_picture(trainer: Trainer, name: str, picture: Tensor, step: int) -> None:
    """Give a picture (3, h, w) in [0, 1] to TensorBoard and to each logger with a method `log_image`, such as W&B's."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, step)
        elif _takes_pictures(logger):
            logger.log_image(key=name, images=[to_pil_image(picture)], step=step)  # type: ignore[attr-defined]


def picture_of(figure: Any) -> Tensor:
    """A figure of matplotlib as a picture (3, h, w) in [0, 1]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, for this only

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return pixels.permute(2, 0, 1) / 255


def _takes_pictures(logger: Any) -> bool:
    return isinstance(logger, TensorBoardLogger) or callable(getattr(logger, "log_image", None))
