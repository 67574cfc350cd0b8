"""Trains on small views first and on full ones later, to save time."""

import logging
from collections.abc import Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from msssl.errors import UserError
from msssl.views import MultiCrop, MultiView, RandomResizedCropFlip

log = logging.getLogger(__name__)


class ProgressiveResolution(Callback):
    """Trains on smaller views in the first part of a run, where steps cost less: their work grows with the area.

    Each of the sides is used for an equal share of the first part; then views have their full size. The side changes at
    the start of an epoch. Evaluation always uses whole images. A resumed run uses the same sides in the same epochs as
    a run without interruption, unless its length is changed, as they depend on the share of the run that is over.

    Args:
        sides: sides of the views in pixels, in order; the shorter side where views are not square.
        until: share of the run after which views have their full size.

    Raises:
        ValueError: `sides` is empty or has sides below 1; `until` is not in (0, 1]; the run has no end; or its views
            are not made by `MultiView` with a crop of `msssl.views`.

    Source: Bordes et al. 2023 (FFCV-SSL, arXiv:2303.01986) and Leclerc et al. 2023 (FFCV), for progressive resizing.
    """

    def __init__(self, sides: Sequence[int] = (24, 28), until: float = 0.75) -> None:
        if not sides or min(sides) < 1:
            raise UserError(f"sides is {list(sides)}: expected one or more, in pixels")
        if not 0 < until <= 1:
            raise UserError(f"until is {until}: expected a share of the run, above 0 and at most 1")
        self.sides = list(sides)
        self.until = until
        self._side: int | None = None  # of this epoch's views

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        views = getattr(getattr(trainer, "datamodule", None), "views", None)
        if not isinstance(views, MultiView) or isinstance(views, MultiCrop):
            raise UserError(f"ProgressiveResolution is for views of MultiView, not {type(views).__name__}")
        own: Any = views.augmentations
        if views.preset is None and not any(isinstance(step, RandomResizedCropFlip) for step in own):
            raise UserError("ProgressiveResolution needs a preset or msssl.views.RandomResizedCropFlip to resize")

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        before, self._side = self._side, self.side(_share_behind(trainer))
        if self._side != before:
            size = f"{self._side} px" if self._side else "full size"
            log.info("views: %s from epoch %d on", size, trainer.current_epoch)
        _resize_views(trainer, self._side)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _resize_views(trainer, self._side)  # a run that is resumed within an epoch does not begin this epoch again

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"side": self._side}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._side = state_dict["side"]

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _resize_views(trainer, None)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(getattr(getattr(trainer, "datamodule", None), "views", None), MultiView):
            _resize_views(trainer, None)

    def side(self, share: float) -> int | None:
        """Side of the views in an epoch that begins when this share of the run is over, in pixels; None is full size.

        >>> [ProgressiveResolution(sides=[24, 28], until=0.5).side(share / 8) for share in range(8)]
        [24, 24, 28, 28, None, None, None, None]
        """
        stage = int(share / self.until * len(self.sides) + 1e-9)
        return self.sides[stage] if stage < len(self.sides) else None


def _resize_views(trainer: Trainer, side: int | None) -> None:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    data.views = data.views.with_side(side)


def _share_behind(trainer: Trainer) -> float:
    """Share of the run that is over when an epoch begins, by `max_epochs` or `max_steps`, whichever ends it first."""
    limits = [(trainer.current_epoch, trainer.max_epochs or -1), (trainer.global_step, trainer.max_steps)]
    shares = [done / limit for done, limit in limits if limit != -1]
    if not shares:
        raise UserError("ProgressiveResolution needs an end: give trainer.max_epochs or trainer.max_steps")
    return max(shares)
