"""`MultiCrop`, which makes views of several sizes, such as 2 large and 6 small crops of each image."""

from typing import Any, cast

from torch import Tensor, nn
from typing_extensions import override

from msssl.errors import UserError
from msssl.views.apply import Normalize
from msssl.views.multi_view import MultiView


class MultiCrop(MultiView):
    """Views of several sizes, such as 2 of 64 pixels and 6 of 32 that cover less of the image, as a list.

    Args:
        groups: the views of each size, largest first; the first one's statistics and evaluation serve all.

    Raises:
        ValueError: no groups.

    Source: Caron et al. 2020 (SwAV, arXiv:2006.09882), section 3.3; Ghosh et al. 2024 (NeurIPS), appendix E.2.

    >>> import torch
    >>> from msssl.views import RandomResizedCropFlip
    >>> large = MultiView(2, [RandomResizedCropFlip((64, 64), scale=(0.3, 1.0))])
    >>> small = MultiView(6, [RandomResizedCropFlip((32, 32), scale=(0.05, 0.3))])
    >>> views = MultiCrop([large, small])(torch.randint(256, (4, 3, 96, 96), dtype=torch.uint8))
    >>> [tuple(group.shape) for group in views]
    [(2, 4, 3, 64, 64), (6, 4, 3, 32, 32)]
    """

    def __init__(self, groups: list[MultiView]) -> None:
        if not groups:
            raise UserError("groups is empty: expected a MultiView for each size")
        super().__init__(sum(group.n_views for group in groups), [], groups[0].mean, groups[0].std)
        self.preset = groups[0].preset
        self.automatic, self.by_default = groups[0].automatic, groups[0].by_default
        self.groups = nn.ModuleList(groups)

    @override
    def recipe(self, size: tuple[int, int]) -> list[str]:
        groups: Any = self.groups
        return [f"{group.n_views} views: {line}" for group in groups for line in group.recipe(size)]

    @override
    def forward(  # type: ignore[override]
        self, images: Tensor, key: tuple[int, ...] | None = None, rank: int = 0, world_size: int = 1
    ) -> list[Tensor]:
        """Views (K_s, N, C, s, s) for each size s; arguments as in `MultiView`."""
        key, groups = self._next_key() if key is None else key, cast(list[MultiView], self.groups)
        normalize = Normalize(self.mean, self.std)
        return [group.make(images, (*key, i), rank, world_size, normalize) for i, group in enumerate(groups)]
