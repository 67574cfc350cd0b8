"""LeJEPA and VISReg: directions that are drawn before each step, and targets where views have several sizes."""

import lightning as L
import pytest
import torch
from test_predictive import QUIET, data, small
from torch.testing import assert_close

from msssl import LeJEPA, VISReg

METHODS = pytest.mark.parametrize("method", [LeJEPA, VISReg])


class Recording(L.Callback):
    """The directions that each batch sees, with its optimizer step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen.append((trainer.global_step, module.directions.clone()))


def directions_of(method, tmp_path, seed=0, **options):
    L.seed_everything(seed)
    recording = Recording()
    options = {"max_epochs": 2, "enable_checkpointing": False, **options}
    trainer = L.Trainer(**QUIET, **options, callbacks=[recording], default_root_dir=tmp_path)
    trainer.fit(small(method, n_directions=7), data())
    return recording.seen


@METHODS
def test_directions_have_unit_length_and_are_new_at_each_step(method, tmp_path):
    seen = [directions for _, directions in directions_of(method, tmp_path)]
    assert len(seen) == 4
    for directions in seen:
        assert directions.shape == (5, 7)
        assert_close(directions.norm(dim=0), torch.ones(7))
    assert len({tuple(directions.flatten().tolist()) for directions in seen}) == 4


@METHODS
def test_directions_are_a_function_of_seed_and_step(method, tmp_path):
    first, again, other = (directions_of(method, tmp_path, seed) for seed in (0, 0, 1))
    assert_close([directions for _, directions in first], [directions for _, directions in again], rtol=0, atol=0)
    assert not torch.equal(first[0][1], other[0][1])


@METHODS
def test_accumulated_batches_share_their_directions(method, tmp_path):
    seen = [directions for _, directions in directions_of(method, tmp_path, accumulate_grad_batches=2)]
    assert_close(seen[0], seen[1], rtol=0, atol=0)
    assert_close(seen[2], seen[3], rtol=0, atol=0)
    assert not torch.equal(seen[0], seen[2])


@METHODS
def test_views_of_all_sizes_are_compared_with_the_mean_of_the_large_ones(method):
    module = small(method, lambda_=0.0).double()
    seen = []
    terms = module.terms
    module.terms = lambda z: seen.append(z.detach()) or terms(z)
    groups = [torch.rand(2, 4, 3, 16, 16).double(), torch.rand(3, 4, 3, 8, 8).double()]
    loss = module.training_step({"views": groups, "label": torch.zeros(4)}, 0)["loss"]
    (z,) = seen
    assert_close(loss.detach(), (z - z[:2].mean(dim=0)).square().mean())
    loss = module.training_step({"views": groups[1], "label": torch.zeros(4)}, 0)["loss"]
    assert_close(loss.detach(), (seen[1] - seen[1].mean(dim=0)).square().mean())


def test_a_number_of_directions_below_one_is_named():
    with pytest.raises(ValueError, match="n_directions is 0: expected at least 1"):
        small(VISReg, n_directions=0)
