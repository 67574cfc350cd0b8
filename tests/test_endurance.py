"""Saves, stops and resumes, again and again in one process: nothing grows, nothing is lost."""

import gc
import os
import signal
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn
from torch.testing import assert_close

import msssl
from msssl.callbacks import LastCheckpoint
from msssl.run.loggers import run_loggers

SECONDS = 300


class StopAfter(L.Callback):
    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_start(self, trainer, *args):
        self.steps -= 1
        if self.steps == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def fit(folder, steps=None, max_steps=-1, going_on=True):
    """A run of so many steps, stopped by a signal; or to its end."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Dropout(0.1))
    module = msssl.BarlowTwins(backbone=backbone, feature_dim=8, proj_dim=8)
    last = folder / "last.ckpt"
    stop = [StopAfter(steps)] if steps else []
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        max_steps=max_steps,
        log_every_n_steps=1,
        callbacks=[*stop, msssl.OnlineProbe(), LastCheckpoint(dirpath=folder, every_n_train_steps=2)],
        logger=run_loggers(folder, torch.load(last, weights_only=True)["global_step"] if last.exists() else None),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    data = msssl.Shapes(train_images=60, test_images=4, batch_size=8, num_workers=0)
    ckpt_path = last if going_on and last.exists() else None
    if steps is None:
        trainer.fit(module, data, ckpt_path=ckpt_path)
    else:
        with pytest.raises(SIGTERMException):
            trainer.fit(module, data, ckpt_path=ckpt_path)
    return torch.load(last, weights_only=True)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads Linux's /proc")
def test_memory_and_open_files_stay_flat(tmp_path):
    (tmp_path / "stopped").mkdir()
    generator = torch.Generator().manual_seed(0)
    started, sizes, files, expected = time.monotonic(), [], [], 0
    while time.monotonic() - started < SECONDS:
        steps = int(torch.randint(1, 12, (), generator=generator))
        expected += steps
        found = fit(tmp_path / "stopped", steps)
        assert found["global_step"] == expected
        gc.collect()  # what waits to be collected is no leak
        sizes.append(resident())
        files.append(len(list(Path("/proc/self/fd").iterdir())))
    assert len(sizes) > 20
    third = len(sizes) // 3
    assert max(files[third:]) <= max(files[:third])
    assert max(sizes[2 * third :]) <= 1.05 * max(sizes[third : 2 * third])
    (tmp_path / "undisturbed").mkdir()
    undisturbed = fit(tmp_path / "undisturbed", max_steps=expected)
    for name in ("state_dict", "optimizer_states"):
        assert_close(found[name], undisturbed[name], rtol=0, atol=0)
    metrics = [(tmp_path / name / "metrics.csv").read_text() for name in ("stopped", "undisturbed")]
    assert metrics[0] == metrics[1]
