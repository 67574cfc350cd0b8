"""DIET: classify each image as itself, with neither a projector nor pairs of views, as a baseline for few images.

Put this file into the folder that you run from, and say how many training images there are (msssl inspect does):

    msssl fit --config cifar.yaml --model diet.DIET --model.n_images 50000
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msssl import MultiViewModule
from msssl.distributed import gather
from msssl.errors import UserError


class DIET(MultiViewModule):
    """A linear head on the features says which image a view is of: cross-entropy over the indices of all images.

    Source: Balestriero 2023 (arXiv:2302.10260), section 3; Ibrahim et al. 2024 (arXiv:2406.10743). Differs: the mean
    over K views of an image.

    Args:
        n_images: number of images in the training set, before any are held out; the head has a row for each.
        label_smoothing: 0.8 is the authors' value.
        **kwargs: those of `MultiViewModule`; there is no projector.
    """

    def __init__(self, n_images: int, label_smoothing: float = 0.8, **kwargs: Any) -> None:
        super().__init__(proj_layers=0, **kwargs)
        if n_images < 1:
            raise UserError(f"n_images is {n_images}: expected the number of training images")
        self.label_smoothing = label_smoothing
        self.head = nn.Linear(self.feature_dim, n_images)
        self._index = torch.empty(0)

    def on_fit_start(self) -> None:
        """Refuse more images than the head has rows: on a GPU such an index ends in an error that names nothing."""
        super().on_fit_start()
        images = getattr(self.trainer.datamodule, "datasets", {}).get("train", ())
        if len(images) > self.head.out_features:
            raise UserError(f"n_images is {self.head.out_features}, and the training set has {len(images)}")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """As in the base class, with the images' indices kept for `compute_loss`."""
        self._index = gather(batch["index"][None, :, None]).flatten()
        return super().training_step(batch, batch_idx)

    def compute_loss(self, z: Tensor) -> dict[str, Tensor]:
        """Loss of the features z (K, N, F)."""
        logits = self.head(z.flatten(0, 1).to(self.dtype)).to(z.dtype)
        targets = self._index.repeat(len(z))
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        return {"loss": loss, "accuracy": (logits.argmax(dim=1) == targets).float().mean()}
