import pytest
import torch
from kornia import augmentation as K
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Timer
from torch import nn

from msssl import BarlowTwins, MultiView, Shapes
from msssl.callbacks import ProgressiveResolution, ViewGrid
from msssl.views import ColorJitterGrayscale, MultiCrop, RandomResizedCropFlip


class Sizes(Callback):
    """Sizes of the views of each epoch and of the images that are evaluated, and what the backbone saw."""

    def __init__(self):
        self.views, self.images = {}, set()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.views.setdefault(trainer.current_epoch, set()).add(tuple(batch["views"].shape[-2:]))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.images.add(tuple(batch["image"].shape[-2:]))


def fitted(views, callback, epochs=5, callbacks=(), **kwargs):
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    data = Shapes(train_images=100, test_images=4, batch_size=8, num_workers=0, views=views)
    sizes = Sizes()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, **kwargs}
    trainer = Trainer(accelerator="cpu", max_epochs=epochs, callbacks=[callback, sizes, *callbacks], **options)
    trainer.fit(BarlowTwins(backbone=backbone, feature_dim=12, proj_dim=4), data)
    return sizes, data


def recipe(size):
    """That of the preset `cifar`."""
    return [RandomResizedCropFlip(size), ColorJitterGrayscale(0.4, 0.4, 0.4, p_jitter=0.8, p_grayscale=0.2)]


@pytest.mark.parametrize("augmentations", ["cifar", recipe((32, 32))])
def test_views_grow_by_epoch_and_evaluation_is_whole(augmentations):
    sizes, data = fitted(MultiView(2, augmentations), ProgressiveResolution([16, 24], until=0.8))
    assert sizes.views == {0: {(16, 16)}, 1: {(16, 16)}, 2: {(24, 24)}, 3: {(24, 24)}, 4: {(32, 32)}}
    assert sizes.images == {(32, 32)}
    assert data.views.side is None


@pytest.mark.parametrize("epochs", [-1, 9])
def test_views_grow_by_steps_where_these_end_the_run(epochs):
    views, ends = MultiView(2), {"epochs": epochs, "max_steps": 55}  # 11 steps an epoch
    sizes, _ = fitted(views, ProgressiveResolution([16, 24], until=0.8), **ends)
    assert sizes.views == {0: {(16, 16)}, 1: {(16, 16)}, 2: {(24, 24)}, 3: {(24, 24)}, 4: {(32, 32)}}


def test_a_preset_with_a_size_of_its_own_grows_and_is_drawn(tmp_path):
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    data = Shapes(
        train_images=20, test_images=4, image_size=64, batch_size=8, num_workers=0, views=MultiView(2, "stl10")
    )
    sizes = Sizes()
    callbacks = [ProgressiveResolution([24], until=0.5), sizes, ViewGrid()]
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_epochs=2, callbacks=callbacks, default_root_dir=tmp_path, **options)
    trainer.fit(BarlowTwins(backbone=backbone, feature_dim=12, proj_dim=4), data)
    assert sizes.views == {0: {(24, 24)}, 1: {(64, 64)}}
    assert (tmp_path / "views.png").is_file()


def test_larger_views_than_whole_ones_are_refused():
    views = MultiView(2).with_side(40)
    with pytest.raises(ValueError, match="views of 40 pixels are not smaller than those of 32 x 32"):
        views(torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8))


def test_a_failed_fit_leaves_whole_views():
    class Fails(Callback):
        def on_train_batch_end(self, trainer, *args):
            self.data = trainer.datamodule
            assert self.data.views.side == 16
            raise RuntimeError("stop")

    fails = Fails()
    with pytest.raises(RuntimeError, match="stop"):
        fitted(MultiView(2), ProgressiveResolution([16]), callbacks=[fails])
    assert fails.data.views.side is None


@pytest.mark.parametrize(("epochs", "sides"), [(1, [24]), (2, [24, 28]), (3, [24, 24, 28]), (4, [24, 24, 28, None])])
def test_sides_of_short_runs(epochs, sides):
    callback = ProgressiveResolution()
    assert [callback.side(epoch / epochs) for epoch in range(epochs)] == sides


@pytest.mark.parametrize("augmentations", ["cifar", recipe((32, 32))])
def test_small_views_are_those_of_a_smaller_crop(augmentations):
    images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
    cifar = MultiView(3, "cifar")
    views = MultiView(3, augmentations, cifar.mean, cifar.std)
    expected = MultiView(3, recipe((24, 24)), cifar.mean, cifar.std)(images, (5,))
    whole = views(images, (5,))
    small = views.with_side(24)
    assert torch.equal(small(images, (5,)), expected)
    assert torch.equal(small.with_side(None)(images, (5,)), whole)
    assert torch.equal(views(images, (5,)), whole)


def test_views_that_are_not_square_keep_their_shape():
    views = MultiView(2).with_side(8)
    assert views(torch.randint(256, (2, 3, 16, 32), dtype=torch.uint8)).shape[-2:] == (8, 16)


@pytest.mark.parametrize(
    ("views", "options", "message"),
    [
        (MultiView(2, [K.RandomResizedCrop((32, 32))]), {}, "RandomResizedCropFlip to resize"),
        (MultiCrop([MultiView(2)]), {}, "not MultiCrop"),
        (MultiView(2), {"epochs": -1, "callbacks": [Timer("00:00:01:00")]}, "trainer.max_epochs or trainer.max_steps"),
    ],
)
def test_what_cannot_grow_is_named(views, options, message):
    with pytest.raises(ValueError, match=message):
        fitted(views, ProgressiveResolution(), **options)


@pytest.mark.parametrize(("arguments", "message"), [(([],), "sides"), (([0],), "sides"), (([24], 0.0), "until")])
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ProgressiveResolution(*arguments)
