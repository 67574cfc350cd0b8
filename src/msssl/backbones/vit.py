"""`ViT`, the vision transformer of timm with sizes for small images."""

from torch import Tensor, nn

from msssl.errors import MissingPackageError, UserError
from msssl.recorded import Recorded


class ViT(Recorded, nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021): images (N, C, H, W) to features (N, num_features).

    The features are those of the class token. The network is timm's (`pip install 'msssl[timm]'`); the defaults are
    ViT-Ti with patches of 4 x 4 pixels for images of 32 px. `timm:<name>` are its networks of published sizes.

    Args:
        patch_size: side of the patches in pixels; images whose side is no multiple of it are padded with zeros. An
            image has H W / patch_size^2 patches, by which the computation grows.
        width: `num_features`, the width of the tokens.
        depth: number of blocks.
        heads: attention heads of a block.
        image_size: side of the images that the position embeddings are made for; they are interpolated for others.
        in_channels: C, the number of channels of the images; 3 for RGB.

    Raises:
        ImportError: timm is not installed.
        ValueError: an argument is below 1, or `width` is no multiple of `heads`.

    >>> import torch
    >>> ViT(width=24, depth=2)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 24])
    """

    def __init__(
        self,
        patch_size: int = 4,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        image_size: int = 32,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        try:
            from timm.models.vision_transformer import VisionTransformer
        except ImportError as error:
            raise MissingPackageError("backbone ViT needs timm: pip install 'msssl[timm]'") from error
        sizes = {"patch_size": patch_size, "depth": depth, "heads": heads, "image_size": image_size}
        for name, size in (sizes | {"in_channels": in_channels}).items():
            if size < 1:
                raise UserError(f"{name} is {size}: expected at least 1")
        if width < 1 or width % heads:
            raise UserError(f"width is {width}: expected a multiple of the number of heads, {heads}")
        self.num_features, self.in_channels = width, in_channels
        self.network = VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            in_chans=in_channels,
            num_classes=0,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            dynamic_img_size=True,
            dynamic_img_pad=True,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, num_features) of images (N, C, H, W)."""
        features: Tensor = self.network(images)
        return features
