"""Methods with a predictor: their loss, the target network of BYOL, and how both train."""

import lightning as L
import pytest
import torch
from test_losses import embeddings, pairs_of
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from msssl import BYOL, MultiView, MultiViewDataModule, SimSiam
from msssl.views import MultiCrop, RandomResizedCropFlip

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}


def small(method, **kwargs):
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6))
    return method(backbone=backbone, **{"proj_dim": 5, **kwargs})


def data(n_images=8, **kwargs):
    images = torch.randint(256, (n_images, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labelled = TensorDataset(images, torch.arange(n_images) % 2)
    kwargs = {"views": MultiView(3), "batch_size": 4, "num_workers": 0, "val_fraction": 0.0, **kwargs}
    return MultiViewDataModule.from_datasets(labelled, **kwargs)


def weights(module):
    return [p.detach().clone() for p in [*module.backbone.parameters(), *module.projector.parameters()]]


@pytest.mark.parametrize("K", [2, 3, 5])
@pytest.mark.parametrize("method", [SimSiam, BYOL])
def test_loss_is_the_distance_of_predictions_to_the_mean_target_of_the_other_views(method, K):
    module = small(method).double().eval()
    z = embeddings(K, 7, 5).requires_grad_()
    targets = z.detach()
    if method is BYOL:
        module._targets = targets = embeddings(K + 1, 7, 5)[:K]
    values = []
    for k in range(K):
        for n in range(7):
            prediction = module.predictor(z[k, n][None])[0]
            target = sum(targets[j, n] for i, j in pairs_of(K) if i == k) / (K - 1)
            values.append(((prediction / prediction.norm() - target / target.norm()) ** 2).sum())
    expected, terms = sum(values) / len(values), module.compute_loss(z)
    assert_close(terms["loss"], expected, rtol=1e-11, atol=0)
    assert_close(terms["similarity"], 1 - expected / 2, rtol=1e-11, atol=0)
    found, wanted = (torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in (terms["loss"], expected))
    assert_close(found, wanted, rtol=1e-9, atol=1e-14)  # none through the targets


@pytest.mark.parametrize("accumulate", [1, 2])
def test_target_follows_each_optimizer_step(accumulate, tmp_path):
    states = []

    class Recording(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            states.append((weights(module), [p.clone() for p in module.target.parameters()]))

    module = small(BYOL, momentum=0.9)
    start = [p.clone() for p in module.target.parameters()]
    options = {"max_epochs": 1, "accumulate_grad_batches": accumulate, "enable_checkpointing": False}
    trainer = L.Trainer(**QUIET, **options, callbacks=[Recording()], default_root_dir=tmp_path)
    trainer.fit(module, data())
    expected = start
    for online, found in states[accumulate - 1 :: accumulate]:
        expected = [0.9 * old + 0.1 * new for old, new in zip(expected, online, strict=True)]
        assert_close(found, expected)
    if accumulate == 2:
        assert_close(states[0][1], start, rtol=0, atol=0)
    assert all(p.grad is None for p in module.target.parameters())
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert not trained & {id(p) for p in module.target.parameters()}
    assert {id(p) for p in module.predictor.parameters()} <= trained


def targets_of(module, views):
    """What BYOL's target network makes of views, as its loss sees it."""
    seen = []
    module.compute_loss = lambda z: seen.append(module._targets) or z.sum()
    module.training_step({"views": views, "label": torch.zeros(4)}, 0)
    return seen[0]


@pytest.mark.parametrize("chunk_views", [None, 1, 2])
def test_targets_are_those_of_the_views_that_pass_together(chunk_views):
    module = small(BYOL, chunk_views=chunk_views).double()
    views = torch.rand(3, 4, 3, 8, 8).double()
    expected = [module.target(chunk.flatten(0, 1)).unflatten(0, (-1, 4)) for chunk in views.split(chunk_views or 3)]
    assert_close(targets_of(module, views), torch.cat(expected), rtol=1e-9, atol=1e-12)


def test_views_of_several_sizes_have_targets_too():
    module = small(BYOL).double()
    groups = [torch.rand(2, 4, 3, 16, 16).double(), torch.rand(3, 4, 3, 8, 8).double()]
    expected = [module.target(group.flatten(0, 1)).unflatten(0, (-1, 4)) for group in groups]
    assert_close(targets_of(module, groups), torch.cat(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [SimSiam, BYOL])
def test_views_of_several_sizes_train(method, tmp_path):
    crops = [MultiView(n, [RandomResizedCropFlip((side, side))]) for n, side in ((2, 8), (2, 4))]
    trainer = L.Trainer(**QUIET, max_steps=2, enable_checkpointing=False, default_root_dir=tmp_path)
    trainer.fit(small(method), data(views=MultiCrop(crops)))
    assert trainer.global_step == 2


def test_double_precision(tmp_path):
    trainer = L.Trainer(**QUIET, precision="64-true", fast_dev_run=1, default_root_dir=tmp_path)
    module = small(BYOL)
    trainer.fit(module, data())
    assert next(module.target.parameters()).dtype == torch.float64


def test_target_starts_from_given_weights(tmp_path):
    given = small(SimSiam).backbone
    torch.save(given.state_dict(), tmp_path / "given.pt")
    module = small(BYOL, weights=str(tmp_path / "given.pt"), momentum=1.0)
    trainer = L.Trainer(**QUIET, max_steps=1, enable_checkpointing=False, default_root_dir=tmp_path)
    trainer.fit(module, data())
    assert_close([*module.target[0].parameters()], [*given.parameters()], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("method", "kwargs", "message"),
    [
        (SimSiam, {"pred_hidden_dim": 0}, "pred_hidden_dim is 0: expected at least 1"),
        (BYOL, {"momentum": 1.1}, "momentum is 1.1"),
    ],
)
def test_wrong_arguments_are_named(method, kwargs, message):
    with pytest.raises(ValueError, match=message):
        small(method, **kwargs)


@pytest.mark.parametrize("method", [SimSiam, BYOL])
def test_a_single_view_is_named(method):
    with pytest.raises(ValueError, match=r"\(1, 7, 5\): expected \(K, N, D\) with K >= 2"):
        small(method).compute_loss(torch.zeros(1, 7, 5))


def test_weights_of_16_bits_train_a_predictor_and_are_refused_by_byol(tmp_path):
    """A target that follows by a hundredth of the difference would stand still in bf16."""
    options = {"precision": "bf16-true", "max_steps": 2, "enable_checkpointing": False, "default_root_dir": tmp_path}
    trainer = L.Trainer(**QUIET, **options)
    trainer.fit(small(SimSiam), data())
    assert trainer.global_step == 2
    with pytest.raises(ValueError, match=r"weights are torch.bfloat16: .* take precision bf16-mixed"):
        L.Trainer(**QUIET, **options).fit(small(BYOL), data())


def test_a_cosine_of_one_is_a_loss_of_zero():
    z = F.normalize(torch.randn(1, 6, 5), dim=-1).expand(3, -1, -1)
    module = small(SimSiam)
    module.predictor = nn.Identity()
    assert_close(module.compute_loss(z)["loss"], torch.zeros(()), rtol=0, atol=1e-6)
