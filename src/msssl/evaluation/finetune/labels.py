"""How many labelled images a fine-tuning uses, and which."""

from dataclasses import dataclass

from torch import Tensor

from msssl.evaluation.probe.few_labels import draw, draw_share


@dataclass(frozen=True)
class Labels:
    """How many of the labelled training images are used: so many of each class, or a share of each class."""

    per_class: int | None = None
    share: float | None = None

    def __str__(self) -> str:
        return f"{self.per_class}/class" if self.share is None else f"{100 * self.share:g} %"

    def rows(self, labels: Tensor, seed: int) -> Tensor:
        """Rows of the images, sorted; those of a smaller number are among those of a larger one with the same seed."""
        if self.share is None:
            assert self.per_class is not None
            return draw(labels, self.per_class, seed)
        return draw_share(labels, self.share, seed)
