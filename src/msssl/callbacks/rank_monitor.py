"""How many directions the embeddings use, and a warning when they collapse."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from msssl.callbacks.pictures import log_picture, picture_of, takes_pictures
from msssl.distributed import gather_rows
from msssl.drawing import draw_neighbours, draw_spectrum
from msssl.metrics import alpha_of, alpha_req, eigenspectrum, neighbours, rankme
from msssl.run.steps import run_length

MIN_RANK, MIN_SPREAD = 2.0, 0.1  # below either the embeddings are called collapsed
MAX_ROWS, MAX_WORK = 10_000, 4e10  # images looked at, and multiplications of a Gram matrix: a second or two
MAX_DIMS = 512  # of the correlations drawn
N_IMAGES, N_NEIGHBOURS = 6, 6
PICTURES_EVERY = 10  # validations
log = logging.getLogger(__name__)


class RankMonitor(Callback):
    """Logs `val/rankme` (of z), `val/alpha` (of features) and `val/spread` at each validation; warns of a collapse.

    The spread is the standard deviation of each dimension of z / ||z||, averaged, times sqrt(D): about 1 where z fills
    the sphere, 0 where all images have one embedding. It sees clean validation images in evaluation mode, of all ranks,
    each once: 10,000 at most, fewer where D is above 2,000, evenly spread.

    The first rank measures, and the others get its numbers. At the first validation, at every tenth and at the last
    one of a run, TensorBoard, and W&B where it is used, get pictures too: the correlations of z (of 512 dimensions at
    most; red is 1, blue -1), the eigenspectrum of features and the nearest neighbours of a few validation images among
    the others.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[Tensor, ...]] = []  # index, features, z
        self._validations = 0

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking:
            return
        dim: Any = pl_module.proj_dim
        kept = outputs["index"] % _stride(_n_images(trainer), dim) == 0
        features = outputs["features"][kept].to(pl_module.dtype)
        z = pl_module.projector(features)  # type: ignore[operator]
        self._rows.append((outputs["index"][kept].cpu(), features.cpu(), z.cpu()))

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        rows_of_all = gather_rows(rows, on_first_rank_only=True)
        self._validations += 1
        measured = {}
        if trainer.is_global_zero:
            index, *embeddings = rows_of_all
            if pl_module.device.type == "cuda":  # other devices may have no float64
                embeddings = [each.to(pl_module.device) for each in embeddings]
            measured = self._measure(trainer, index, *embeddings)
        for name, value in trainer.strategy.broadcast(measured).items():  # all ranks choose checkpoints by them
            pl_module.log(f"val/{name}", value, rank_zero_only=True)

    def _measure(self, trainer: Trainer, index: Tensor, features: Tensor, z: Tensor) -> dict[str, float]:
        """What is logged; nothing of embeddings that are not finite, where `NonFiniteGuard` stops the run."""
        if not len(z) or not z.isfinite().all():
            return {}
        draws = takes_pictures(trainer) and self._has_pictures_now(trainer)
        variances = eigenspectrum(features) if draws else None
        alpha = float(alpha_req(features) if variances is None else alpha_of(variances))
        rank = float(rankme(z))
        spread = float((z / z.norm(dim=1, keepdim=True).clamp(min=1e-12)).std(dim=0).mean() * math.sqrt(z.shape[1]))
        if rank < MIN_RANK or spread < MIN_SPREAD:
            log.warning(
                "collapse at step %d: RankMe of z is %.2f of %d, its spread %.3f; "
                "lower the learning rate, or raise the weight of the redundancy or variance term",
                trainer.global_step,
                rank,
                min(z.shape),
                spread,
            )
        if variances is not None:
            _draw(trainer, variances, index, features, z)
        measured = {"rankme": rank, "alpha": alpha, "spread": spread}
        return {name: value for name, value in measured.items() if math.isfinite(value)}

    def _has_pictures_now(self, trainer: Trainer) -> bool:
        steps, all_steps = run_length(trainer)
        return self._validations == 1 or self._validations % PICTURES_EVERY == 0 or steps >= all_steps


def _n_images(trainer: Trainer) -> int:
    """Of the validation split; 0 where a loader of the user's own does not tell."""
    images = getattr(trainer.val_dataloaders, "images", None)
    return 0 if images is None else len(images)


def _stride(n_images: int, dim: int) -> int:
    """Every so many of the images are looked at, so that the Gram matrix of their z takes no more than `MAX_WORK`."""
    n = MAX_WORK / dim**2
    at_most = min(MAX_ROWS, n if n >= dim else math.sqrt(MAX_WORK / dim))
    return max(1, math.ceil(n_images / at_most))


def _draw(trainer: Trainer, variances: Tensor, index: Tensor, features: Tensor, z: Tensor) -> None:
    dims = torch.linspace(0, z.shape[1] - 1, min(MAX_DIMS, z.shape[1])).long()
    correlation = torch.corrcoef(z[:, dims].T).nan_to_num()
    colours = torch.stack([1 + correlation, 1 - correlation.abs(), 1 - correlation]).clamp(0, 1)
    log_picture(trainer, "correlation of z", colours, trainer.global_step)
    if len(features) > 1:
        _log_figure(trainer, "eigenspectrum", lambda axes: draw_spectrum(axes, {"": variances}))
    loader: Any = trainer.val_dataloaders
    if not hasattr(loader, "pixels") or len(features) <= N_IMAGES:
        return
    shown = torch.linspace(0, len(features) - 1, N_IMAGES).long()
    others = torch.ones(len(features), dtype=torch.bool)
    others[shown] = False
    similarity, nearest = neighbours(features[shown], features[others], min(N_NEIGHBOURS, int(others.sum())))
    similarity, nearest = similarity.cpu(), nearest.cpu()
    rows = torch.searchsorted(loader.images.indices, index)  # both are sorted
    pixels = loader.pixels(rows[others][nearest.flatten()]).unflatten(0, nearest.shape)
    queries = loader.pixels(rows[shown])
    _log_figure(trainer, "neighbours", lambda axes: draw_neighbours(axes, queries, pixels, similarity))


def _log_figure(trainer: Trainer, name: str, draw: Callable[[Any], None]) -> None:
    from matplotlib.figure import Figure  # half a second, for this only

    figure = Figure(figsize=(6, 5), dpi=100)  # a constrained layout would take three times as long
    draw(figure.subplots())
    log_picture(trainer, name, picture_of(figure), trainer.global_step)
