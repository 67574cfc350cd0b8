"""The schedule against its definition, in a trainer and across a resume."""

import math

import pytest
import torch
from lightning import Callback, Trainer
from torch import nn
from torch.utils.data import TensorDataset

from msssl import BarlowTwins, MultiView, MultiViewDataModule, WarmupCosine


class Mean(nn.Module):
    num_features = 3

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images):
        return images.mean(dim=(2, 3)) * self.scale


class Rates(Callback):
    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


def run(tmp_path, *, schedule=None, ckpt_path=None, **kwargs):
    images = torch.randint(256, (24, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pairs = TensorDataset(images, torch.full((24,), -1))
    data = MultiViewDataModule.from_datasets(pairs, batch_size=4, num_workers=0, views=MultiView(2), val_fraction=0.0)
    torch.manual_seed(0)
    module = BarlowTwins(
        backbone=Mean(),
        proj_dim=4,
        optimizer=lambda p: torch.optim.SGD(p, lr=2.0),
        lr_scheduler=schedule or (lambda optimizer: WarmupCosine(optimizer, warmup=0.25, final=0.1)),
    )
    rates = Rates()
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
    }
    trainer = Trainer(accelerator="cpu", callbacks=[rates], default_root_dir=tmp_path, **quiet, **kwargs)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return rates.seen, trainer


def by_hand(total, warmup=0.25, final=0.1, lr=2.0):
    rising = round(warmup * total)
    rates = []
    for step in range(total):
        if step < rising:
            rates.append(lr * (step + 1) / rising)
        else:
            cosine = math.cos(math.pi * (step - rising) / (total - rising))
            rates.append(lr * (final + (1 - final) * (1 + cosine) / 2))
    return rates


@pytest.mark.parametrize(
    ("kwargs", "total"),
    [
        ({"max_epochs": 2}, 12),
        ({"max_steps": 7}, 7),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, 4),
        ({"max_epochs": 2, "max_steps": 8}, 8),
    ],
)
def test_the_rates_of_a_run_are_those_of_the_formula(tmp_path, kwargs, total):
    seen, _ = run(tmp_path, **kwargs)
    assert seen == pytest.approx(by_hand(total))


def test_a_resumed_run_goes_on_with_the_rates(tmp_path):
    whole, _ = run(tmp_path, max_epochs=4)
    first, trainer = run(tmp_path, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    rest, _ = run(tmp_path, max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert rest == pytest.approx(whole[12:])  # of 4 epochs, as the trainer says now
    assert first == pytest.approx(by_hand(12))


def test_a_run_without_an_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"trainer\.max_epochs or trainer\.max_steps"):
        run(tmp_path, max_epochs=-1)


@pytest.mark.parametrize("given", [{"warmup": 1.0}, {"warmup": -0.1}, {"final": 1.5}])
def test_shares_outside_their_range_are_refused(given):
    with pytest.raises(ValueError, match="expected shares"):
        WarmupCosine(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), **given)


def test_other_schedules_step_once_an_epoch(tmp_path):
    seen, _ = run(tmp_path, schedule=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5), max_epochs=2)
    assert seen == [2.0] * 6 + [1.0] * 6
