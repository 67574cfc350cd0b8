"""A picture of what the encoder sees."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.utils import make_grid, save_image
from typing_extensions import override

from msssl.views import MultiView


class ViewGrid(Callback):
    """Draws images down and their views across at the first step, for TensorBoard and as `views.png`.

    The file is written to `trainer.default_root_dir`, which is the folder of the run.

    Args:
        n_images: rows at most.
    """

    def __init__(self, n_images: int = 8) -> None:
        self.n_images = n_images

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        views_of = getattr(getattr(trainer, "datamodule", None), "views", None)
        if trainer.global_step > 0 or batch_idx > 0 or not isinstance(views_of, MultiView):
            return
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        grid = draw_views(views_of.denormalize(batch["views"][:, : self.n_images]))
        folder.mkdir(parents=True, exist_ok=True)
        save_image(grid, folder / "views.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("views", grid, global_step=0)


def draw_views(views: Tensor, min_size: int = 64) -> Tensor:
    """Views (K, N, 3, H, W) in [0, 1] as one picture (3, h, w), a row per image; small ones are magnified."""
    views = views.float().cpu()
    factor = max(1, min_size // views.shape[-1])
    cells = views.transpose(0, 1).flatten(0, 1).repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    grid: Tensor = make_grid(cells.clamp(0, 1), nrow=views.shape[0], padding=2, pad_value=1.0)
    return grid
