"""Small views first."""

import logging
from collections.abc import Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from msssl.views import MultiCrop, MultiView, RandomResizedCropFlip

log = logging.getLogger(__name__)


class ProgressiveResolution(Callback):
    """Trains on smaller views in the first epochs, for cheaper steps: work goes with the area.

    The sides share the first epochs equally; then views are whole. Evaluation always sees whole images. A run that goes
    on has the sides that it would have had, unless it becomes longer: they are a share of all epochs.

    Args:
        sides: of the views in pixels, in order; where views are not square, of their shorter side.
        until: share of the epochs after which views are whole.

    Raises:
        ValueError: `sides` is empty or has sides below 1; `until` is not in (0, 1]; the run has no number of epochs;
            its views are not made by `MultiView`, or by no crop of `msssl.views`.

    Source: Bordes et al. 2023 (FFCV-SSL, arXiv:2303.01986) and Leclerc et al. 2023 (FFCV), for progressive resizing.
    """

    def __init__(self, sides: Sequence[int] = (24, 28), until: float = 0.75) -> None:
        if not sides or min(sides) < 1:
            raise ValueError(f"sides is {list(sides)}: expected one or more, in pixels")
        if not 0 < until <= 1:
            raise ValueError(f"until is {until}: expected a share of the epochs, above 0 and at most 1")
        self.sides = list(sides)
        self.until = until
        self._views: Any = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._views = getattr(getattr(trainer, "datamodule", None), "views", None)
        if not isinstance(self._views, MultiView) or isinstance(self._views, MultiCrop):
            raise ValueError(f"ProgressiveResolution is for views of MultiView, not {type(self._views).__name__}")
        own: Any = self._views.augmentations
        if self._views.preset is None and not any(isinstance(step, RandomResizedCropFlip) for step in own):
            raise ValueError("ProgressiveResolution needs a preset or msssl.views.RandomResizedCropFlip to resize")
        if (trainer.max_epochs or 0) < 1:
            raise ValueError("ProgressiveResolution takes a share of the epochs: give trainer.max_epochs")

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        side = self.side(trainer.current_epoch, trainer.max_epochs or 1)
        if side != self._views.side:
            log.info("views: %s from epoch %d on", f"{side} px" if side else "whole", trainer.current_epoch)
            self._views.side = side

    on_train_start = on_train_epoch_start  # Lightning leaves out the other where a run goes on within an epoch

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._views.side = None

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(self._views, MultiView):
            self._views.side = None

    def side(self, epoch: int, epochs: int) -> int | None:
        """Of the views in an epoch of so many, in pixels; None: whole.

        >>> [ProgressiveResolution(sides=[24, 28], until=0.5).side(epoch, 8) for epoch in range(8)]
        [24, 24, 28, 28, None, None, None, None]
        """
        stage = int(epoch * len(self.sides) / (self.until * epochs) + 1e-9)
        return self.sides[stage] if stage < len(self.sides) else None
