import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kornia import augmentation as K
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from torchvision.transforms.v2.functional import pil_to_tensor

from msssl import BarlowTwins, MultiView, MultiViewDataModule, OnlineProbe
from msssl.callbacks import BestCheckpoint, FeaturesWriter, OnlineKNN, ViewGrid
from msssl.callbacks.view_grid import add_caption, contact_sheet, draw_views
from msssl.run import pace
from msssl.run.last_validation import LastValidation
from msssl.run.pace import Pace

COLOURS = torch.tensor([[200, 60, 60], [60, 200, 60], [60, 60, 200]], dtype=torch.uint8)


class MeanColour(nn.Module):
    """Features that carry the label of `coloured` images."""

    num_features = 3

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images):
        return images.mean(dim=(2, 3)) * self.scale


class Encoder(nn.Module):
    num_features = 6

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, images):
        return self.layers(images).mean(dim=(2, 3))


def coloured(n):
    """Images of three colours, each a class, with a little noise."""
    labels = torch.arange(n) % 3
    noise = torch.randint(40, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    return TensorDataset(COLOURS[labels].view(n, 3, 1, 1) + noise, labels)


def relabelled(dataset, labels):
    return TensorDataset(dataset.tensors[0], labels)


def data_of(train=None, val=None, test=None, **kwargs):
    options = {"batch_size": 12, "num_workers": 0, "views": MultiView(2, [K.RandomHorizontalFlip()]), **kwargs}
    return MultiViewDataModule.from_datasets(train or coloured(36), val or coloured(15), test, **options)


def module_of(backbone=MeanColour):
    torch.manual_seed(0)  # of the weights, and of the run that follows
    return BarlowTwins(backbone=backbone(), proj_dim=8)


def trainer_of(tmp_path, callbacks=(), **kwargs):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    checkpoints = any(isinstance(callback, BestCheckpoint) for callback in callbacks)
    options = {"logger": False, "enable_checkpointing": checkpoints, "default_root_dir": tmp_path, **quiet, **kwargs}
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **options)


def fit(tmp_path, callbacks=(), module=None, data=None, ckpt_path=None, **kwargs):
    trainer = trainer_of(tmp_path, callbacks, **kwargs)
    trainer.fit(module or module_of(), data or data_of(), ckpt_path=ckpt_path)
    return trainer


def bare_probe(n_classes=3, feature_dim=4):
    """A probe, the trainer and module that its hooks see, and what it logs."""
    logged = {}
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(num_classes=n_classes),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        log_every_n_steps=0,
    )
    module = SimpleNamespace(
        feature_dim=feature_dim, log=lambda name, value, **kwargs: logged.update({name: float(value)})
    )
    probe = OnlineProbe()
    probe.setup(trainer, module, "fit")
    return probe, trainer, module, logged


def assert_equal_states(first, second):
    """Equal, bit for bit, at any depth."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal_states(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_equal_states(one, other)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


# The online probe.


def test_the_encoder_is_bit_identical_with_and_without_the_probe(tmp_path):
    # Dropout draws from the global random state: it would differ, too, if the probe drew from it.
    states = []
    for callbacks in ([], [OnlineProbe()]):
        module = module_of(Encoder)
        before = module.backbone.layers[0].weight.detach().clone()
        trainer = fit(tmp_path, callbacks, module, max_steps=3)
        assert not torch.equal(module.backbone.layers[0].weight, before)
        assert ("train/probe_loss" in trainer.callback_metrics) == bool(callbacks)
        states.append(dict(module.state_dict()))
    assert_equal_states(*states)


def test_the_probe_learns_what_the_features_carry(tmp_path):
    trainer = fit(tmp_path, [OnlineProbe(lr=0.1)], max_epochs=4)
    assert trainer.callback_metrics["val/probe_top1"] == 1.0


def test_the_probe_does_not_learn_labels_that_the_features_do_not_carry(tmp_path):
    halves = relabelled(coloured(300), torch.randint(2, (300,), generator=torch.Generator().manual_seed(0)))
    trainer = fit(tmp_path, [OnlineProbe(lr=0.1)], data=data_of(val=halves), max_epochs=4)
    assert trainer.callback_metrics["val/probe_top1"] < 0.6


def test_the_head_takes_one_step_on_all_views_of_the_labelled_images():
    probe, trainer, module, logged = bare_probe()
    weight, bias = (parameter.detach().clone().requires_grad_() for parameter in probe.head[1].parameters())
    features = torch.randn(2, 6, 4)
    label = torch.tensor([0, -1, 2, 1, -1, 2])
    probe.on_train_batch_end(trainer, module, {"features": features, "label": label}, {}, 0)

    # By hand: every row is in the batch statistics, only the labelled rows are in the loss.
    rows = features.flatten(0, 1)
    standardised = (rows - rows.mean(dim=0)) / (rows.var(dim=0, correction=0) + 1e-5).sqrt()
    labelled = torch.cat([label, label]) >= 0
    logits = (standardised @ weight.T + bias)[labelled]
    loss = F.cross_entropy(logits, torch.cat([label, label])[labelled])
    loss.backward()
    torch.testing.assert_close(probe.head[1].weight.grad, weight.grad)
    torch.testing.assert_close(probe.head[1].bias.grad, bias.grad)
    assert logged == {"train/probe_loss": pytest.approx(loss.item())}
    torch.optim.AdamW([weight, bias], lr=1e-3).step()
    torch.testing.assert_close(probe.head[1].weight, weight)
    assert len(list(probe.head.parameters())) == 2  # BatchNorm has none


def test_a_batch_without_labels_gives_a_zero_gradient():
    probe, trainer, module, logged = bare_probe()
    before = [parameter.detach().clone() for parameter in probe.head.parameters()]
    outputs = {"features": torch.randn(2, 6, 4), "label": torch.full((6,), -1)}
    probe.on_train_batch_end(trainer, module, outputs, {}, 0)
    assert logged == {"train/probe_loss": 0.0}
    for parameter, old in zip(probe.head.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
        torch.testing.assert_close(parameter, old * (1 - 1e-3 * 0.01))  # AdamW's decay, which needs no gradient


def test_no_gradient_reaches_the_features():
    probe, trainer, module, _ = bare_probe()
    features = torch.randn(2, 6, 4)
    module_outputs = {"features": features, "label": torch.tensor([0, 1, 2, 0, 1, 2])}
    probe.on_train_batch_end(trainer, module, module_outputs, {}, 0)
    assert features.grad is None
    assert not features.requires_grad


def test_validation_leaves_label_minus_one_out(tmp_path):
    probe, module = OnlineProbe(lr=0.1), module_of()
    fit(tmp_path, [probe], module, max_epochs=4)
    images = coloured(15)
    labels = images.tensors[1].clone()
    labels[:9] = -1
    labels[9:12] = (labels[9:12] + 1) % 3  # of the 6 labelled ones, 3 are wrong
    (metrics,) = trainer_of(tmp_path, [probe]).validate(
        module, datamodule=data_of(val=relabelled(images, labels)), verbose=False
    )
    assert metrics["val/probe_top1"] == 0.5


def test_test_reports_the_accuracy_of_the_test_images(tmp_path):
    probe, module = OnlineProbe(lr=0.1), module_of()
    fit(tmp_path, [probe], module, max_epochs=4)
    images = coloured(12)
    labels = images.tensors[1].clone()
    labels[[0, 3]] = 1  # 2 of 12 are wrong, unevenly over the classes
    (metrics,) = trainer_of(tmp_path, [probe]).test(
        module, datamodule=data_of(test=relabelled(images, labels)), verbose=False
    )
    assert metrics == {"test/probe_top1": pytest.approx(10 / 12)}


def test_evaluation_leaves_the_probe_as_it_was(tmp_path):
    probe, module = OnlineProbe(), module_of()
    fit(tmp_path, [probe], module, max_epochs=1)
    before = copy.deepcopy(probe.state_dict())
    trainer_of(tmp_path, [probe]).validate(module, datamodule=data_of(val=coloured(5)), verbose=False)
    trainer_of(tmp_path, [probe]).test(module, datamodule=data_of(test=coloured(5)), verbose=False)
    assert_equal_states(probe.state_dict(), before)


@pytest.fixture
def saved(tmp_path):
    """The probe and accuracy of a run of one epoch, and its checkpoint."""
    probe, module = OnlineProbe(lr=0.1), module_of()
    trainer = fit(tmp_path, [probe], module, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    return probe, trainer.callback_metrics["val/probe_top1"].item(), tmp_path / "saved.ckpt"


def test_the_state_of_the_probe_comes_back(tmp_path, saved):
    probe, _, path = saved
    resumed = OnlineProbe(lr=0.1)
    fit(tmp_path, [resumed], max_epochs=1, ckpt_path=path)  # ends at once
    assert_equal_states(resumed.state_dict(), probe.state_dict())
    assert resumed.state_dict()["optimizer"]["state"][0]["step"] == 3
    assert not torch.equal(bare_probe(feature_dim=3)[0].head[1].weight, resumed.head[1].weight)


def test_a_resumed_probe_goes_on_as_if_never_stopped(tmp_path, saved):
    _, _, path = saved
    resumed, whole = OnlineProbe(lr=0.1), OnlineProbe(lr=0.1)
    fit(tmp_path, [resumed], max_epochs=2, ckpt_path=path)
    fit(tmp_path, [whole], max_epochs=2)
    assert_equal_states(resumed.state_dict(), whole.state_dict())


def test_another_number_of_classes_than_the_checkpoints_is_named(tmp_path, saved):
    _, _, path = saved
    two = relabelled(coloured(36), torch.arange(36) % 2)
    with pytest.raises(ValueError, match="3 classes and 3 features, but the run has 2 and 3"):
        fit(tmp_path, [OnlineProbe()], data=data_of(two, two), max_epochs=2, ckpt_path=path)


def test_validation_of_a_checkpoint_reports_the_accuracy_at_save_time(tmp_path, saved):
    _, accuracy, path = saved
    (fresh,) = trainer_of(tmp_path, [OnlineProbe()]).validate(module_of(), datamodule=data_of(), verbose=False)
    (metrics,) = trainer_of(tmp_path, [OnlineProbe()]).validate(
        module_of(), datamodule=data_of(), ckpt_path=path, verbose=False
    )
    assert metrics["val/probe_top1"] == accuracy
    assert fresh["val/probe_top1"] != accuracy


def test_a_probe_that_is_off_keeps_the_state_of_the_checkpoint(tmp_path, saved):
    probe, _, path = saved
    off = OnlineProbe()
    unlabelled = relabelled(coloured(36), torch.full((36,), -1))
    fit(tmp_path, [off], data=data_of(unlabelled), max_epochs=1, ckpt_path=path)
    assert off.head is None
    assert_equal_states(off.state_dict(), probe.state_dict())


class TwoSets(MultiViewDataModule):
    """Images without labels to pretrain on; labelled ones of their own for the probe, or none."""

    def __init__(self, labelled, **kwargs):
        super().__init__(batch_size=12, num_workers=0, views=MultiView(2, [K.RandomHorizontalFlip()]), **kwargs)
        self.labelled = labelled

    def dataset(self, split):
        return {"train": relabelled(coloured(36), torch.full((36,), -1)), "val": coloured(15), "test": None}[split]

    def probe_dataset(self):
        return self.labelled


def test_the_probe_learns_on_a_labelled_set_of_its_own(tmp_path):
    probe = OnlineProbe(lr=0.1)
    trainer = trainer_of(tmp_path, [probe], max_epochs=30)
    trainer.fit(module_of(), TwoSets(coloured(18)))
    assert trainer.callback_metrics["val/probe_top1"] > 0.9


def test_the_labelled_set_leaves_no_trace_in_the_encoder(tmp_path):
    """Neither in its weights, nor in BatchNorm's statistics, nor in the draws of dropout; modes stay as they were."""
    states = []
    for labelled in (coloured(18), None):
        module = module_of(Encoder)
        module.backbone.layers[1].eval()  # frozen by its user
        trainer_of(tmp_path, [OnlineProbe()], max_epochs=2).fit(module, TwoSets(labelled))
        states.append(module.state_dict())
    assert_equal_states(*states)


def test_without_labels_the_probe_is_off(tmp_path, caplog):
    probe = OnlineProbe()
    unlabelled = relabelled(coloured(36), torch.full((36,), -1))
    with caplog.at_level("INFO", logger="msssl"):
        trainer = fit(tmp_path, [probe], data=data_of(unlabelled, unlabelled), max_epochs=1)
    assert probe.head is None
    assert not [name for name in trainer.callback_metrics if "probe" in name]
    assert [record.getMessage() for record in caplog.records if "online probe" in record.getMessage()] == [
        "online probe: off, the data has no labels (or its data set no `targets` to count the classes by)"
    ]


def partly_labelled(n, labelled):
    """Images of which the first so many have a label."""
    images = coloured(n)
    return relabelled(images, torch.where(torch.arange(n) < labelled, images.tensors[1], -1))


def said_about(caplog, callback):
    return [record.getMessage() for record in caplog.records if callback in record.getMessage()]


@pytest.mark.parametrize("epochs", [1, 3])
def test_without_labelled_validation_images_there_is_no_accuracy(tmp_path, caplog, epochs):
    best = BestCheckpoint(dirpath=tmp_path)
    probe = OnlineProbe()
    with caplog.at_level("INFO", logger="msssl"):
        data = data_of(coloured(36), partly_labelled(15, 0))
        trainer = fit(tmp_path, [probe, OnlineKNN(), best], data=data, max_epochs=epochs, num_sanity_val_steps=2)
    assert not [name for name in trainer.callback_metrics if name.startswith("val/")]
    assert "train/probe_loss" in trainer.callback_metrics
    assert not best.best_model_path
    assert said_about(caplog, "online probe") == [
        "online probe: no validation image has a label, so there is no val/probe_top1"
    ]
    assert said_about(caplog, "online kNN") == ["online kNN: off, no validation image has a label"]


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        (partly_labelled(36, 0), "the data has no labels"),
        (relabelled(coloured(36), torch.zeros(36, dtype=torch.long)), "all labelled training images are of one class"),
        (relabelled(coloured(36), torch.full((36,), 4)), "all labelled training images are of one class"),
    ],
    ids=["none", "one class", "one class, not the first"],
)
def test_what_teaches_nothing_turns_classifiers_off(tmp_path, caplog, train, reason):
    val = relabelled(coloured(15), train.tensors[1][:15])
    with caplog.at_level("INFO", logger="msssl"):
        trainer = fit(tmp_path, [OnlineProbe(), OnlineKNN()], data=data_of(train, val), max_epochs=2)
    assert not [name for name in trainer.callback_metrics if "top1" in name or "probe" in name]
    for name in ("online probe", "online kNN"):
        (line,) = said_about(caplog, name)
        assert line.startswith(f"{name}: off, {reason}")


def test_labels_outside_the_fraction_teach_the_neighbours_alone(tmp_path, caplog):
    """The probe learns on the images of the run, the neighbours are all labelled ones."""
    data = data_of(partly_labelled(36, 3), coloured(15), fraction=1.0)
    data.setup()
    data.splits["train"].indices = torch.arange(3, 36)
    with caplog.at_level("INFO", logger="msssl"):
        trainer = fit(tmp_path, [OnlineProbe(), OnlineKNN()], data=data, max_epochs=1)
    assert "val/probe_top1" not in trainer.callback_metrics
    assert said_about(caplog, "online probe") == ["online probe: off, no training image has a label"]
    assert "val/knn_top1" in trainer.callback_metrics


def test_an_accuracy_that_no_image_was_measured_for_is_not_logged(tmp_path):
    """As where `limit_val_batches` leaves out those with a label."""
    val = relabelled(coloured(24), torch.cat([torch.full((12,), -1), torch.arange(12) % 3]))
    callbacks = [OnlineProbe(), OnlineKNN()]
    trainer = fit(tmp_path, callbacks, data=data_of(val=val), max_epochs=1, limit_val_batches=1)
    assert not [name for name in trainer.callback_metrics if "top1" in name]


# The picture of the views.


class FirstBatch(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0:
            self.views = batch["views"]


def png(path):
    return pil_to_tensor(Image.open(path))


def test_the_views_of_the_first_step_are_drawn_once(tmp_path):
    first, data = FirstBatch(), data_of(views=MultiView(3))
    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(tmp_path, [ViewGrid(n_images=5), first], data=data, logger=logger, max_epochs=2, log_every_n_steps=1)
    logger.experiment.flush()

    expected = draw_views([data.views.denormalize(first.views[:, :5])])
    drawn = png(tmp_path / "views.png")
    height, width = expected.shape[1:]
    # A caption of the operations stands below; a narrow grid has white to its right.
    assert (drawn[:, :height, :width] - (expected * 255).byte()).abs().max() == 0
    assert (drawn[:, :height, width:] == 255).all()
    assert (drawn[:, height:] < 128).any()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    (event,) = events.Images("views")
    assert event.step == 0
    assert (event.height, event.width) == drawn.shape[1:]


def test_the_views_are_drawn_without_a_logger_too(tmp_path):
    fit(tmp_path, [ViewGrid()], data=data_of(views=MultiView(4)), max_steps=1)
    assert png(tmp_path / "views.png").shape[1] > 8 * 66 + 2


def test_a_run_that_goes_on_draws_no_other_views(tmp_path, saved):
    fit(tmp_path, [ViewGrid()], max_epochs=2, ckpt_path=saved[2])
    assert not (tmp_path / "views.png").exists()


def test_the_caption_names_every_operation():
    views, images = MultiView(2, "barlow"), torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8)
    plain = draw_views([views.denormalize(views(images, (0,)))])
    drawn = contact_sheet(views, views(images, (0,)), 2)
    lines = ["2 views of 96 x 96:", *(f"  {step}" for step in views.steps((96, 96)))]
    assert torch.equal(drawn, add_caption(plain, lines))
    assert "p_blur=[1.0, 0.1], p_solarize=[0.0, 0.2]" in lines[-1]
    assert not torch.equal(drawn, add_caption(plain, lines[:-1]))


def test_a_row_is_an_image_and_a_column_a_view():
    views = torch.rand(3, 2, 3, 1, 1).expand(-1, -1, -1, 4, 4)  # a colour for each view of each image
    grid = draw_views([views], min_size=8)
    expected = torch.ones(3, 2 * 10 + 2, 3 * 10 + 2)
    for n in range(2):
        for k in range(3):
            cell = (slice(None), slice(2 + 10 * n, 10 + 10 * n), slice(2 + 10 * k, 10 + 10 * k))
            expected[cell] = views[k, n, :, :1, :1]
    torch.testing.assert_close(grid, expected)


def test_pixels_become_squares():
    views = torch.rand(2, 1, 3, 2, 2)
    cell = draw_views([views], min_size=6)[:, 2:8, 10:16]  # the second view
    assert torch.equal(cell, views[1, 0].repeat_interleave(3, 1).repeat_interleave(3, 2))


@pytest.mark.parametrize(("size", "drawn"), [(8, 64), (20, 60), (64, 64), (100, 100)])
def test_small_images_are_magnified(size, drawn):
    assert draw_views([torch.zeros(2, 1, 3, size, size)]).shape == (3, drawn + 4, 2 * (drawn + 2) + 2)


def test_colours_out_of_range_are_clamped():
    grid = draw_views([torch.tensor([-1.0, 2.0]).view(2, 1, 1, 1, 1).expand(2, 1, 3, 64, 64)])
    assert (grid.min(), grid.max()) == (0, 1)


# The best checkpoint.


class Scores(Callback):
    """Logs a given score in each epoch."""

    def __init__(self, scores):
        self.scores = scores
        self.epochs = []

    def on_validation_epoch_end(self, trainer, pl_module):
        self.epochs.append(trainer.current_epoch)
        pl_module.log("val/score", self.scores[trainer.current_epoch])


@pytest.mark.parametrize(("mode", "epoch"), [("max", 2), ("min", 1)])
def test_the_best_epoch_is_kept(tmp_path, mode, epoch):
    best = BestCheckpoint(monitor="val/score", mode=mode, dirpath=tmp_path / "best")
    fit(tmp_path, [Scores([0.5, 0.1, 0.9, 0.3]), best], max_epochs=4)
    (path,) = (tmp_path / "best").iterdir()
    assert path.name == "best.ckpt"
    assert torch.load(path, weights_only=True)["epoch"] == epoch


@pytest.mark.parametrize("val_fraction", [0.0, 0.25], ids=["no validation", "validation without the metric"])
@pytest.mark.parametrize("schedule", [{}, {"check_val_every_n_epoch": 2}, {"val_check_interval": 0.4}])
def test_without_the_metric_nothing_is_saved_and_nothing_fails(tmp_path, val_fraction, schedule):
    data = MultiViewDataModule.from_datasets(coloured(36), batch_size=12, num_workers=0, val_fraction=val_fraction)
    best = BestCheckpoint(dirpath=tmp_path / "best")
    trainer = fit(tmp_path, [best], data=data, max_epochs=2, **schedule)
    assert trainer.current_epoch == 2
    assert not list(tmp_path.rglob("*.ckpt"))
    assert best.best_model_path == ""


def test_the_best_validation_within_an_epoch_is_kept(tmp_path):
    best = BestCheckpoint(monitor="val/score", dirpath=tmp_path / "best")
    fit(tmp_path, [Scores([0.1, 0.9, 0.5]), best], max_epochs=3, val_check_interval=0.4)  # every step
    assert torch.load(tmp_path / "best" / "best.ckpt", weights_only=True)["global_step"] == 3 + 1


@pytest.mark.parametrize(
    ("length", "validated"),
    [
        ({"max_epochs": 1}, [0]),
        ({"max_epochs": 3}, [1, 2]),
        ({"max_epochs": 4}, [1, 3]),
        ({"max_epochs": -1, "max_steps": 9}, [1, 2]),
        ({"max_epochs": 7, "max_steps": 9}, [1, 2]),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, [1, 2]),
    ],
)
def test_the_last_epoch_is_validated_where_only_some_are(tmp_path, length, validated):
    scores = Scores([0.1, 0.2, 0.3, 0.9])
    best = BestCheckpoint(monitor="val/score", dirpath=tmp_path / "best")
    trainer = fit(tmp_path, [scores, best, LastValidation()], check_val_every_n_epoch=2, **length)
    assert scores.epochs == validated
    assert torch.load(tmp_path / "best" / "best.ckpt", weights_only=True)["epoch"] == validated[-1]
    assert trainer.check_val_every_n_epoch == 2


def test_a_run_that_goes_on_in_its_last_epoch_validates_it(tmp_path):
    kept = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    fit(tmp_path, [kept, LastValidation()], max_epochs=3, check_val_every_n_epoch=2, enable_checkpointing=True)
    scores = Scores([0.1, 0.2, 0.3])
    options = {"max_epochs": 3, "check_val_every_n_epoch": 2, "ckpt_path": tmp_path / "step=8.ckpt"}
    fit(tmp_path, [scores, LastValidation()], **options)
    assert scores.epochs == [2]


def test_the_default_metric_is_the_accuracy_of_the_probe(tmp_path):
    best = BestCheckpoint(dirpath=tmp_path / "best")
    trainer = fit(tmp_path, [OnlineProbe(lr=0.1), best], max_epochs=2)
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["best.ckpt"]
    assert best.best_model_score == max(best.best_model_score, trainer.callback_metrics["val/probe_top1"])


class Measured(Scores):
    """Logs a RankMe, and an accuracy if there is one, in each epoch."""

    def __init__(self, ranks, accuracies=None):
        self.ranks, self.accuracies = ranks, accuracies

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/rankme", self.ranks[trainer.current_epoch])
        if self.accuracies and not trainer.sanity_checking:
            pl_module.log("val/probe_top1", self.accuracies[trainer.current_epoch])


@pytest.mark.parametrize(
    ("accuracies", "epoch", "said"),
    [
        (None, 1, ["best checkpoint: that of the highest val/rankme, as there is no accuracy to choose by"]),
        ([0.1, 0.2, 0.9], 2, []),
    ],
    ids=["without labels", "with labels"],
)
def test_the_best_checkpoint_is_chosen_by_what_there_is(tmp_path, caplog, accuracies, epoch, said):
    best = BestCheckpoint(dirpath=tmp_path)
    with caplog.at_level("INFO", logger="msssl"):
        callbacks = [Measured([3.0, 5.0, 4.0], accuracies), best]
        fit(tmp_path, callbacks, max_epochs=3, num_sanity_val_steps=1)
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == epoch
    assert said_about(caplog, "best checkpoint") == said


def test_the_log_says_that_training_on_does_not_help(tmp_path, caplog):
    accuracies = [0.1, 0.5, 0.4, 0.4, 0.6, 0.6, 0.5, 0.4, 0.3, 0.3]
    with caplog.at_level("INFO", logger="msssl"):
        fit(tmp_path, [Measured([3.0] * 10, accuracies), BestCheckpoint(dirpath=tmp_path)], max_epochs=10)
    line = "val/probe_top1 has not improved for 20 % of the run: training on is not visibly helping"
    assert said_about(caplog, "improved") == [line] * 3  # after epochs 4, 7 and 9


@pytest.mark.parametrize("accuracies", [None, [0.9, 0.2, 0.1]], ids=["without labels", "with labels"])
def test_what_was_best_stays_so_after_a_resume(tmp_path, accuracies):
    """Also where the checkpoint is of a run that named the metric, as the default once was."""
    ranks = [9.0, 1.0, 2.0]
    monitors = {"monitor": "val/probe_top1"} if accuracies else {}
    trainer = fit(tmp_path, [Measured(ranks, accuracies), BestCheckpoint(dirpath=tmp_path, **monitors)], max_epochs=1)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    resumed = BestCheckpoint(dirpath=tmp_path)
    fit(tmp_path, [Measured(ranks, accuracies), resumed], max_epochs=3, ckpt_path=tmp_path / "saved.ckpt")
    assert resumed.best_model_score == pytest.approx(0.9 if accuracies else 9.0)
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 0


def test_the_least_of_auto_is_refused():
    with pytest.raises(ValueError, match="mode is min: monitor auto needs max"):
        BestCheckpoint(mode="min")


# The features.


def test_features_are_written_in_order_of_their_index(tmp_path):
    predictions = [
        {
            "features": torch.tensor([[3.0, 3.5], [1.0, 1.5]]),
            "label": torch.tensor([30, 10]),
            "index": torch.tensor([3, 1]),
        },
        {
            "features": torch.tensor([[0.0, 0.5], [2.0, 2.5]]),
            "label": torch.tensor([0, 20]),
            "index": torch.tensor([0, 2]),
        },
    ]
    trainer = SimpleNamespace(is_global_zero=True, predict_dataloaders=None)
    FeaturesWriter(tmp_path / "features.npz").write_on_epoch_end(trainer, None, predictions, [])
    written = np.load(tmp_path / "features.npz")
    assert written["features"].tolist() == [[0.0, 0.5], [1.0, 1.5], [2.0, 2.5], [3.0, 3.5]]
    assert written["label"].tolist() == [0, 10, 20, 30]
    assert written["index"].tolist() == [0, 1, 2, 3]


def test_rank_0_alone_writes_the_features_of_all_ranks(tmp_path, monkeypatch):
    gathered = (torch.tensor([3, 5]), torch.tensor([0, 1]), torch.tensor([[3.0, 3.0], [5.0, 5.0]]))
    names = ("index", "label", "features")
    for rank in (1, 0):
        assert list(tmp_path.iterdir()) == []
        rows = () if rank else gathered
        monkeypatch.setattr("msssl.callbacks.features_writer.gather_rows", lambda *args, rows=rows, **kwargs: rows)
        trainer = SimpleNamespace(is_global_zero=rank == 0, predict_dataloaders=None)
        own = dict(zip(names, (column[1 - rank :][:1] for column in gathered), strict=True))
        FeaturesWriter(tmp_path / "features.npz").write_on_epoch_end(trainer, None, [own], [])
    written = np.load(tmp_path / "features.npz")
    for name, column in zip(names, gathered, strict=True):
        assert written[name].tolist() == column.tolist()


def test_predict_writes_the_features_of_every_image(tmp_path):
    module, images = module_of(), coloured(15)
    data = data_of(test=images)
    trainer_of(tmp_path, [FeaturesWriter(tmp_path / "new" / "features.npz")]).predict(module, datamodule=data)
    written = np.load(tmp_path / "new" / "features.npz")
    assert set(written) == {"features", "label", "path", "dataset", "index"}
    assert written["index"].tolist() == list(range(15))
    assert written["path"][3] == "image 3 of test"
    assert torch.equal(torch.from_numpy(written["label"]), images.tensors[1])
    torch.testing.assert_close(
        torch.from_numpy(written["features"]), module.eval()(data.views.evaluate(images.tensors[0]))
    )


# Probes of other shapes and places.


def probes(**kwargs):
    return {"linear": OnlineProbe(), "mlp": OnlineProbe(hidden_dims=[16, 8], name="mlp"), **kwargs}


def fit_probes(callbacks, **kwargs):
    torch.manual_seed(0)
    module = BarlowTwins(backbone=Encoder(), proj_dim=5, proj_hidden_dim=7)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=2, callbacks=list(callbacks), enable_model_summary=False, **options, **kwargs)
    trainer.fit(module, data_of())
    return module, trainer


def test_probes_run_together_under_their_own_names():
    callbacks = probes(first=OnlineProbe(on="projector.0", name="first"), z=OnlineProbe(on="projector.3", name="z"))
    _, trainer = fit_probes(callbacks.values())
    assert {f"val/{name}_top1" for name in ("probe", "mlp", "first", "z")} <= set(trainer.callback_metrics)
    assert [type(layer).__name__ for layer in callbacks["mlp"].head] == [
        "BatchNorm1d",
        "Linear",
        "ReLU",
        "Linear",
        "ReLU",
        "Linear",
    ]
    widths = {name: probe.head[0].num_features for name, probe in callbacks.items()}
    assert widths == {"linear": 6, "mlp": 6, "first": 7, "z": 5}
    assert len({probe.state_key for probe in callbacks.values()}) == 4


def test_a_probe_of_the_projector_sees_its_layer_in_evaluation_mode():
    probe = OnlineProbe(on="projector.2", name="hidden")
    module, _ = fit_probes([probe])
    features = torch.randn(3, 4, 6)
    module.train()
    before = copy.deepcopy(module.state_dict())
    found = probe._layer(module, features)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(layer.training for layer in module.projector)
    module.eval()
    with torch.no_grad():
        assert torch.equal(found, module.projector[:3](features.flatten(0, 1)).unflatten(0, (3, 4)))


def test_probes_leave_no_trace_in_the_encoder():
    states = [
        fit_probes(callbacks)[0].state_dict()
        for callbacks in ([], [*probes().values(), OnlineProbe(on="projector.3", name="z")])
    ]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize(
    ("on", "message"), [("head", "'head'"), ("projector", "'projector'"), ("projector.9", "4 layers")]
)
def test_a_place_that_is_not_there_is_named(on, message):
    with pytest.raises(ValueError, match=message):
        fit_probes([OnlineProbe(on=on)])


class Clock:
    """A step takes two seconds, a slow one a minute more, a validation and a checkpoint five."""

    def __init__(self, slow=()):
        self.now, self.slow, self.steps = 0.0, slow, 0

    def __call__(self):
        return self.now

    def step(self, accumulated):
        self.now += 2.0 / accumulated
        self.steps += 1
        self.now += 60.0 * (self.steps in self.slow)


class Ticks(Callback):
    def __init__(self, clock):
        self.clock = clock

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.clock.step(trainer.accumulate_grad_batches)

    def on_validation_epoch_start(self, trainer, pl_module):
        self.clock.now += 0 if trainer.sanity_checking else 5


class Guesses(Callback):
    """Whether what is left at the end of an epoch was known, to a step."""

    def __init__(self, pace):
        self.pace, self.left = pace, []

    def on_train_epoch_end(self, trainer, pl_module):
        self.left.append(self.pace.seconds_left(trainer))


@pytest.mark.parametrize(
    ("options", "slow", "line"),
    [
        ({"log_every_n_steps": 4}, (), "pace: 12 views/s, 2e+03 ms a step; 0:01:25 to go: until"),
        ({"log_every_n_steps": 4, "accumulate_grad_batches": 2}, (), "pace: 24 views/s, 2e+03 ms a step; "),
        ({"log_every_n_steps": 1}, (1, 3), "pace: 12 views/s, 2e+03 ms a step; 0:01:16 to go, validations not counted"),
    ],
    ids=["few steps an epoch", "accumulated", "slow moments"],
)
def test_pace_says_what_the_clock_says(options, slow, line, tmp_path, monkeypatch, caplog):
    """Batches of 3 views of 8 images, 6 an epoch, 7 epochs: 42 steps of 2 seconds and 7 validations of 5."""
    clock = Clock(slow)
    monkeypatch.setattr(pace, "monotonic", clock)
    data, measured = data_of(coloured(48), batch_size=8, views=MultiView(n_views=3)), Pace()
    guesses = Guesses(measured)
    with caplog.at_level("INFO", logger="msssl"):
        fit(tmp_path, [Ticks(clock), measured, guesses], data=data, max_epochs=7, **options)
    (said,) = said_about(caplog, "pace")
    assert said.startswith(line)
    if not slow and "accumulate_grad_batches" not in options:
        assert guesses.left == [pytest.approx(17.0 * epochs_left) for epochs_left in range(6, -1, -1)]
