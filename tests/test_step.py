"""What a training step does beside its arithmetic: it waits for nothing between two logging steps."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import msssl
from msssl.callbacks import BestCheckpoint, LastCheckpoint
from msssl.cli.bar import Bar

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::unique_dim"}


class Waits(TorchDispatchMode):
    """Operations whose result Python has to see, for which a GPU's queue must be empty."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().partition(".")[0] in WAITS:
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


class Watch(L.Callback):
    """From the end of a logging step to the beginning of the next one."""

    def __init__(self):
        self.waits, self.steps = Waits(), 0

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == 1:
            self.waits.__enter__()
        if trainer.global_step == 9:
            self.waits.__exit__(None, None, None)
        self.steps += 1


class Waiting(msssl.BarlowTwins):
    def compute_loss(self, z):
        terms = super().compute_loss(z)
        float(terms["loss"])
        return terms


@pytest.mark.parametrize(("kind", "options"), [(msssl.BarlowTwins, {}), (msssl.VICReg, {"chunk_views": 1})])
def test_no_step_waits_for_the_device_between_logging_steps(kind, options, tmp_path):
    assert found_in(kind, tmp_path, **options) == []


def test_a_wait_would_be_found(tmp_path):
    assert found_in(Waiting, tmp_path) == ["aten::_local_scalar_dense"] * 8


def found_in(kind, folder, **options):
    watch = Watch()
    module = kind(
        backbone=nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8)),
        feature_dim=8,
        proj_dim=8,
        optimizer=lambda p: torch.optim.Adam(p, fused=True),
        lr_scheduler=msssl.WarmupCosine,
        **options,
    )
    callbacks = [watch, msssl.OnlineProbe(), msssl.RankMonitor(), LearningRateMonitor(), Bar(refresh_rate=10)]
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=12,
        log_every_n_steps=10,
        callbacks=[*callbacks, BestCheckpoint(dirpath=folder), LastCheckpoint(dirpath=folder)],
        default_root_dir=folder,
    )
    trainer.fit(module, msssl.Shapes(train_images=120, test_images=4, batch_size=8, num_workers=0))
    assert watch.steps == 12
    return watch.waits.found
