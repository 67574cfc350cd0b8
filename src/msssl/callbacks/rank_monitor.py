"""Measures the rank of the embeddings at each validation, which needs no labels, and warns when they collapse."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from msssl.batch import EvaluationOutput
from msssl.callbacks.pictures import log_picture, picture_of, takes_pictures
from msssl.distributed import gather_rows
from msssl.drawing import draw_neighbours, draw_spectrum
from msssl.metrics import alpha_of, alpha_req, eigenspectrum, neighbours, rankme
from msssl.run.steps import run_length

MIN_RANK, MIN_SPREAD = 2.0, 0.1  # below either of them there is a warning of a collapse
MAX_ROWS, MAX_WORK = 10_000, 4e10  # images measured, and multiplications of a Gram matrix: a second or two
MAX_DIMS = 512  # dimensions whose correlations are drawn
N_IMAGES, N_NEIGHBOURS = 6, 6
PICTURES_EVERY = 10  # validations
log = logging.getLogger(__name__)


class RankMonitor(Callback):
    """Logs `val/rankme` (of z), `val/alpha` (of features) and `val/spread` at each validation; warns of a collapse.

    The spread is the mean standard deviation of the dimensions of z / ||z||, times sqrt(D): about 1 where z fills the
    sphere, 0 where all images have the same embedding. Measurements use the clean validation images of all ranks, in
    evaluation mode: 10,000 images at most, evenly spread, and fewer where D is above 2,000.

    The first rank measures, and all ranks log its numbers. At the first, at every tenth and at the last validation of a
    run, TensorBoard, and W&B where it is used, also get pictures: the correlations between dimensions of z (512 of them
    at most; red is 1, blue -1), the eigenspectrum of the features, and the nearest neighbours of a few validation
    images.
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
        output: EvaluationOutput = outputs
        kept = output["index"] % _stride(_n_images(trainer), dim) == 0
        features = output["features"][kept].to(pl_module.dtype)
        z = pl_module.projector(features)  # type: ignore[operator]
        self._rows.append((output["index"][kept].cpu(), features.cpu(), z.cpu()))

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        rows_of_all = gather_rows(rows, on_first_rank_only=True)
        self._validations += 1
        measured = {}
        if trainer.is_global_zero:
            index, features, z = rows_of_all
            if pl_module.device.type == "cuda":  # other devices may have no float64
                features, z = features.to(pl_module.device), z.to(pl_module.device)
            measured = self._measure(trainer, index, features, z)
        for name, value in trainer.strategy.broadcast(measured).items():  # all ranks choose checkpoints by them
            pl_module.log(f"val/{name}", value, rank_zero_only=True)

    def _measure(self, trainer: Trainer, index: Tensor, features: Tensor, z: Tensor) -> dict[str, float]:
        """The measurements to log; none if embeddings are not finite, for which `NonFiniteGuard` stops the run."""
        if not len(z) or not z.isfinite().all():
            return {}
        draws = takes_pictures(trainer) and self._is_time_for_pictures(trainer)
        variances = eigenspectrum(features) if draws else None
        alpha = float(alpha_req(features) if variances is None else alpha_of(variances))
        rank = float(rankme(z))
        spread = float((z / z.norm(dim=1, keepdim=True).clamp(min=1e-12)).std(dim=0).mean() * math.sqrt(z.shape[1]))
        if rank < MIN_RANK or spread < MIN_SPREAD:
            log.warning(
                "collapse at step %d: RankMe of z is %.2f of %d, its spread %.3f; "
                "lower the learning rate, or raise the weight of the term that spreads the embeddings",
                trainer.global_step,
                rank,
                min(z.shape),
                spread,
            )
        if variances is not None:
            _draw(trainer, variances, index, features, z)
        measured = {"rankme": rank, "alpha": alpha, "spread": spread}
        return {name: value for name, value in measured.items() if math.isfinite(value)}

    def _is_time_for_pictures(self, trainer: Trainer) -> bool:
        steps, all_steps = run_length(trainer)
        return self._validations == 1 or self._validations % PICTURES_EVERY == 0 or steps >= all_steps


def _n_images(trainer: Trainer) -> int:
    """Number of validation images; 0 where a loader of the user's own does not say."""
    images = getattr(trainer.val_dataloaders, "images", None)
    return 0 if images is None else len(images)


def _stride(n_images: int, dim: int) -> int:
    """Only each image whose index is a multiple of this is measured, so that the Gram matrix of z stays affordable."""
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
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if data is None or not hasattr(loader, "pixels") or len(features) <= N_IMAGES:
        return
    shown = torch.linspace(0, len(features) - 1, N_IMAGES).long()
    bank = torch.ones(len(features), dtype=torch.bool)  # which images may be neighbours
    bank[shown] = False
    similarity, nearest = neighbours(features[shown], features[bank], min(N_NEIGHBOURS, int(bank.sum())))
    similarity, nearest = similarity.cpu(), nearest.cpu()
    rows = torch.searchsorted(loader.images.indices, index)  # both are sorted
    picture = data.preprocess.picture
    pixels = picture(loader.pixels(rows[bank][nearest.flatten()])).unflatten(0, nearest.shape)
    queries = picture(loader.pixels(rows[shown]))
    _log_figure(trainer, "neighbours", lambda axes: draw_neighbours(axes, queries, pixels, similarity))


def _log_figure(trainer: Trainer, name: str, draw: Callable[[Any], None]) -> None:
    from matplotlib.figure import Figure  # half a second, for this only

    figure = Figure(figsize=(6, 5), dpi=100)  # a constrained layout would take three times as long
    draw(figure.subplots())
    log_picture(trainer, name, picture_of(figure), trainer.global_step)
