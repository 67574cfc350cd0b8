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


class StopAfter(Callback):
    """Saves a checkpoint in the middle of a run, after so many batches, and stops it."""

    def __init__(self, batches, path):
        self.batches, self.path = batches, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches -= 1
        if self.batches == 0:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def run(tmp_path, *, schedule=None, ckpt_path=None, batch_size=4, fraction=1.0, stop=(), **kwargs):
    images = torch.randint(256, (24, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pairs = TensorDataset(images, torch.full((24,), -1))
    options = {"batch_size": batch_size, "fraction": fraction, "num_workers": 0, "val_fraction": 0.0}
    data = MultiViewDataModule.from_datasets(pairs, views=MultiView(2), **options)
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
    trainer = Trainer(accelerator="cpu", callbacks=[rates, *stop], default_root_dir=tmp_path, **quiet, **kwargs)
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


def resumed_after(tmp_path, batches, before, after):
    """Rates before a stop after so many batches, and after it, and the trainer of the rest."""
    path = tmp_path / f"{batches}.ckpt"
    first, _ = run(tmp_path, stop=[StopAfter(batches, path)], **before)
    rest, trainer = run(tmp_path, ckpt_path=path, **after)
    return first, rest, trainer


CHANGES = [  # each with the number of steps of a run that had it from the start
    ({"batch_size": 8}, 12),
    ({"batch_size": 2}, 48),
    ({"accumulate_grad_batches": 3}, 8),
    ({"fraction": 0.5}, 12),
    ({"limit_train_batches": 3}, 12),
]


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize(("change", "total"), CHANGES, ids=str)
def test_the_rates_fit_the_steps_that_are_left(tmp_path, change, total, epochs):
    """After whole epochs, the rates are those of a run that was so from the start."""
    first, rest, trainer = resumed_after(tmp_path, 6 * epochs, {"max_epochs": 4}, {"max_epochs": 4, **change})
    assert first == pytest.approx(by_hand(24)[: 6 * epochs])
    assert rest == pytest.approx(by_hand(total)[total * epochs // 4 :])
    assert trainer.global_step == 6 * epochs + total * (4 - epochs) // 4


@pytest.mark.parametrize("batches", [1, 5, 6, 9, 23])
@pytest.mark.parametrize(("change", "total"), CHANGES[:3], ids=str)
def test_the_rates_go_on_where_they_were_in_the_middle_of_an_epoch(tmp_path, change, total, batches):
    """The same share of the epoch is done, to a step, and every later step is there."""
    _, rest, trainer = resumed_after(tmp_path, batches, {"max_epochs": 4}, {"max_epochs": 4, **change})
    done = batches * total // 24
    assert rest == pytest.approx(by_hand(total)[done:])
    assert trainer.current_epoch == 4


@pytest.mark.parametrize(("sizes", "totals"), [((4, 8, 2), (24, 12, 48)), ((4, 4, 4), (24, 24, 24))], ids=str)
@pytest.mark.parametrize("batches", [2, 3])  # the second is the last of an epoch of 3
def test_a_run_that_was_stopped_twice_ends_as_it_should(tmp_path, sizes, totals, batches):
    path, again = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    run(tmp_path, max_epochs=4, batch_size=sizes[0], stop=[StopAfter(6, path)])
    stop = [StopAfter(batches, again)]
    second, _ = run(tmp_path, max_epochs=4, batch_size=sizes[1], ckpt_path=path, stop=stop)
    third, _ = run(tmp_path, max_epochs=4, batch_size=sizes[2], ckpt_path=again)
    begun = totals[1] // 4
    assert second == pytest.approx(by_hand(totals[1])[begun : begun + batches])
    assert third == pytest.approx(by_hand(totals[2])[(begun + batches) * totals[2] // totals[1] :])


def test_steps_that_end_a_run_are_counted_as_they_were_taken(tmp_path):
    before, after = {"max_steps": 10}, {"max_steps": 10, "batch_size": 8}
    first, rest, _ = resumed_after(tmp_path, 6, before, after)
    assert first + rest == pytest.approx(by_hand(10))
    _, rest, trainer = resumed_after(tmp_path, 6, {"max_epochs": 4}, {"max_epochs": 4, "max_steps": 9})
    assert rest == pytest.approx(by_hand(9)[6:])
    assert trainer.global_step == 9


def test_a_shorter_run_ends_at_its_final_rate(tmp_path):
    _, rest, _ = resumed_after(tmp_path, 6, {"max_epochs": 4}, {"max_epochs": 2})
    assert rest == pytest.approx(by_hand(12)[6:])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"batch_size": 8}, "the global batch is 8 images, and was 4: the loss compares another number of images"),
        ({"accumulate_grad_batches": 2}, None),  # the loss sees the same
        ({}, None),
    ],
    ids=str,
)
def test_another_global_batch_is_said_with_its_consequence(tmp_path, caplog, change, line):
    resumed_after(tmp_path, 6, {"max_epochs": 2}, {"max_epochs": 2, **change})
    said = [record.getMessage() for record in caplog.records if "global batch" in record.getMessage()]
    assert len(said) == (line is not None)
    if line:
        assert said[0].startswith(line)
        assert "0.5 times the learning rate" in said[0]
        assert "2 times --model.optimizer.lr" in said[0]


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
