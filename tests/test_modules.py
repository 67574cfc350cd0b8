import copy
import io
import json
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from msssl import BarlowTwins, MultiView, MultiViewDataModule, MultiViewModule, ResNet, Shapes, VICReg, WarmupCosine
from msssl.losses import barlow_twins_loss, vicreg_loss
from msssl.run.non_finite_guard import NonFiniteGuard


class Small(nn.Module):
    """A backbone of 6 features."""

    def __init__(self, **attributes):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        vars(self).update(attributes)

    def forward(self, images):
        return self.norm(self.conv(images)).relu().mean(dim=(2, 3))


class Feature4D(nn.Module):
    def forward(self, images):
        return images[:, :, ::2, ::2]


class MeanSquare(MultiViewModule):
    """A loss of one's own, as a tensor."""

    def compute_loss(self, z):
        return z.square().mean()


class Terms(MultiViewModule):
    """A loss of one's own, as a dict."""

    def compute_loss(self, z):
        return {"loss": z.square().mean(), "size": z.abs().mean()}


class NoLoss(MultiViewModule):
    def compute_loss(self, z):
        return {"energy": z.square().mean(), "size": z.abs().mean()}


def batch_of(n_views=3, n_images=4, size=8):
    return {
        "views": torch.randn(n_views, n_images, 3, size, size, generator=torch.Generator().manual_seed(0)),
        "label": torch.arange(n_images) - 1,
        "index": torch.arange(n_images),
    }


def fit(module, tmp_path, n=8, **kwargs):
    """Training on n random images in batches of 4, for one step unless told otherwise."""
    images = torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = MultiViewDataModule.from_datasets(
        TensorDataset(images, torch.arange(n) % 2), batch_size=4, num_workers=0, val_fraction=0.0, views=MultiView(2)
    )
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"max_steps": 1, "logger": False, "default_root_dir": tmp_path, **quiet, **kwargs}
    trainer = Trainer(accelerator="cpu", **options)
    trainer.fit(module, data)
    return trainer


def layers(projector):
    """(in, out, has a bias) of a Linear, the width of a BatchNorm1d, "relu"."""
    described = []
    for layer in projector:
        if type(layer) is nn.Linear:
            described.append((layer.in_features, layer.out_features, layer.bias is not None))
        elif type(layer) is nn.BatchNorm1d:
            described.append(layer.num_features)
        elif type(layer) is nn.ReLU:
            described.append("relu")
        else:
            described.append(type(layer))
    return described


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, [(6, 256, False), 256, "relu", (256, 256, True)]),  # the paper's: h = D
        ({"proj_dim": 16}, [(6, 16, False), 16, "relu", (16, 16, True)]),
        ({"proj_dim": 16, "proj_hidden_dim": 32}, [(6, 32, False), 32, "relu", (32, 16, True)]),
        ({"proj_dim": 16, "proj_layers": 1}, [(6, 16, True)]),
        (
            {"proj_dim": 16, "proj_hidden_dim": 32, "proj_layers": 3},
            [(6, 32, False), 32, "relu", (32, 32, False), 32, "relu", (32, 16, True)],
        ),
    ],
)
def test_projector(kwargs, expected):
    assert layers(MeanSquare(backbone=Small(), **kwargs).projector) == expected


def test_without_a_projector_the_loss_sees_the_features():
    module = MeanSquare(backbone=Small(), proj_layers=0, proj_dim=16)
    features = torch.randn(4, module.feature_dim)
    assert module.projector(features) is features
    assert module.proj_dim == module.feature_dim == 6
    with pytest.raises(ValueError, match="proj_layers is -1: expected at least 0"):
        MeanSquare(backbone=Small(), proj_layers=-1)


def test_backbones():
    resnet = ResNet(18, width=8, low_resolution=False)
    assert MeanSquare(backbone=resnet).backbone is resnet
    assert MeanSquare(backbone=resnet).feature_dim == 64
    named = MeanSquare().backbone
    assert isinstance(named, ResNet)
    assert named.num_features == 512
    assert (named.conv1.kernel_size, named.conv1.stride) == ((3, 3), (1, 1))
    with pytest.raises(ValueError, match=r"'resnet19'.*resnet18"):
        MeanSquare(backbone="resnet19")


def test_module_returns_backbone_features():
    module = MeanSquare(backbone=ResNet(18, width=8, low_resolution=False)).eval()
    images = torch.randn(2, 3, 32, 32)
    assert module(images).shape == (2, 64)
    assert torch.equal(module(images), module.backbone(images))


@pytest.mark.parametrize(
    ("attributes", "kwargs", "expected"),
    [
        ({}, {}, 6),  # found by a dry run
        ({"num_features": 7}, {}, 7),
        ({"feature_dim": 8}, {}, 8),
        ({"num_features": 7}, {"feature_dim": 9}, 9),
    ],
)
def test_feature_dim(attributes, kwargs, expected):
    module = MeanSquare(backbone=Small(**attributes), **kwargs)
    assert module.feature_dim == expected
    assert module.projector[0].in_features == expected


def test_the_dry_run_leaves_the_backbone_as_it_was():
    backbone = Small()
    MeanSquare(backbone=backbone)
    assert backbone.training
    assert backbone.norm.num_batches_tracked == 0
    assert torch.equal(backbone.norm.running_mean, torch.zeros(6))


def test_features_that_are_not_2d_are_an_error_with_their_shape():
    with pytest.raises(ValueError, match=r"Feature4D returned \(1, 3, 16, 16\)"):
        MeanSquare(backbone=Feature4D())
    module = MeanSquare(backbone=Feature4D(), feature_dim=3)
    with pytest.raises(ValueError, match=r"Feature4D returned \(12, 3, 4, 4\)"):
        module.training_step(batch_of(), 0)


def test_the_class_is_abstract():
    with pytest.raises(TypeError, match="compute_loss"):
        MultiViewModule(backbone=Small())


@pytest.mark.parametrize(
    ("kwargs", "beta"),
    [({}, 5 / 256), ({"proj_dim": 64}, 5 / 64), ({"proj_dim": 64, "beta": "auto"}, 5 / 64), ({"beta": 0.25}, 0.25)],
)
def test_beta(kwargs, beta):
    module = BarlowTwins(backbone=Small(), **kwargs)
    assert module.beta == beta
    z = torch.randn(3, 8, module.proj_dim)
    assert torch.equal(module.compute_loss(z)["loss"], barlow_twins_loss(z, beta=beta)["loss"])


class FixedBeta(BarlowTwins):
    """Its own arguments have no beta."""

    def __init__(self, **kwargs):
        super().__init__(beta="auto", **kwargs)


@pytest.mark.parametrize(("kind", "kwargs"), [(BarlowTwins, {}), (BarlowTwins, {"beta": 0.25}), (FixedBeta, {})])
def test_beta_is_in_the_checkpoint(kind, kwargs, tmp_path):
    module = kind(backbone=Small(), proj_dim=16, **kwargs)
    trainer = fit(module, tmp_path)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)["hyper_parameters"]
    assert saved.get("beta", module.beta) == module.beta == kwargs.get("beta", 5 / 16)
    loaded = MultiViewModule.load_from_checkpoint(tmp_path / "saved.ckpt", backbone=Small())
    assert loaded.beta == module.beta


def test_vicreg_weights():
    z = torch.randn(3, 8, 16)
    default, other = VICReg(backbone=Small()), VICReg(backbone=Small(), sim_coeff=2.0, std_coeff=3.0, cov_coeff=4.0)
    expected = vicreg_loss(z, sim_coeff=25.0, std_coeff=25.0, cov_coeff=1.0)["loss"]
    assert torch.equal(default.compute_loss(z)["loss"], expected)
    expected = vicreg_loss(z, sim_coeff=2.0, std_coeff=3.0, cov_coeff=4.0)["loss"]
    assert torch.equal(other.compute_loss(z)["loss"], expected)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_training_step_is_one_pass_over_all_views():
    module = BarlowTwins(backbone=Small(), proj_dim=16)
    batch = batch_of(n_views=3, n_images=4)
    out = module.training_step(batch, 0)

    # By hand, in train mode: BatchNorm pools the views.
    features = module.backbone(torch.cat([batch["views"][k] for k in range(3)]))
    z = torch.stack(module.projector(features).split(4))
    torch.testing.assert_close(out["loss"], barlow_twins_loss(z, beta=5 / 16)["loss"])
    torch.testing.assert_close(out["features"], torch.stack(features.split(4)))
    assert not out["features"].requires_grad
    assert out["loss"].requires_grad
    assert torch.equal(out["label"], batch["label"])


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_views_of_several_sizes_reach_the_loss_together():
    module = BarlowTwins(backbone=Small(), proj_dim=16)
    groups = [batch_of(n_views=2, size=8)["views"], batch_of(n_views=3, size=4)["views"]]
    out = module.training_step({**batch_of(), "views": groups}, 0)
    features = torch.cat([module.backbone(group.flatten(0, 1)) for group in groups])
    z = module.projector(features).view(5, 4, 16)
    torch.testing.assert_close(out["loss"], barlow_twins_loss(z, beta=5 / 16)["loss"])
    assert out["features"].shape == (5, 4, 6)


@pytest.mark.parametrize("step", ["validation_step", "test_step", "predict_step"])
def test_evaluation_steps_return_features(step):
    module = MeanSquare(backbone=Small()).eval()
    batch = {"image": torch.randn(4, 3, 8, 8), "label": torch.arange(4), "index": torch.arange(4) + 7}
    out = getattr(module, step)(batch, 0)
    assert set(out) == {"features", "label", "index"}
    assert torch.equal(out["features"], module(batch["image"]))
    assert torch.equal(out["label"], batch["label"])
    assert torch.equal(out["index"], batch["index"])


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (BarlowTwins, {"loss", "invariance", "redundancy"}),
        (VICReg, {"loss", "invariance", "variance", "covariance"}),
        (MeanSquare, {"loss"}),
        (Terms, {"loss", "size"}),
    ],
)
def test_every_term_is_logged(kind, names, tmp_path):
    module = kind(backbone=Small(), proj_dim=16)
    before = [parameter.clone() for parameter in module.parameters()]
    metrics = fit(module, tmp_path).callback_metrics
    assert set(metrics) == {f"train/{name}" for name in names}
    assert all(value.isfinite() for value in metrics.values())
    after = list(module.parameters())
    assert not torch.equal(after[0], before[0])  # the backbone too
    assert not torch.equal(after[-1], before[-1])


def test_the_logged_terms_are_those_of_the_loss(tmp_path):
    class Fixed(MeanSquare):
        def compute_loss(self, z):
            return {"loss": z.sum() * 0 + 3.0, "other": z.sum().detach() * 0 + 4.0}

    metrics = fit(Fixed(backbone=Small(), proj_dim=16), tmp_path).callback_metrics
    assert {name: value.item() for name, value in metrics.items()} == {"train/loss": 3.0, "train/other": 4.0}


class NaNAt(MeanSquare):
    """The loss is not a number at one step of the run."""

    at = 2

    def compute_loss(self, z):
        bad = float("nan") if self.global_step == self.at else 0.0
        return {"loss": z.square().mean() + bad, "size": z.abs().mean() * 0 + 4}


@pytest.mark.parametrize("every", [1, 3, 50])
def test_a_loss_that_is_not_finite_stops_the_run(every, tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"step 3 \(batch 0 of epoch 1\): loss nan, size 4; .*non_finite\.json"
    ):
        fit(NaNAt(backbone=Small()), tmp_path, max_steps=-1, max_epochs=9, log_every_n_steps=every)
    found = json.loads((tmp_path / "non_finite.json").read_text())
    assert (found["step"], found["epoch"], found["batch"]) == (3, 1, 0)
    assert found["terms"] == {"loss": "nan", "size": "4.0"}
    assert len(set(found["index"])) == 4


def test_the_images_of_a_loss_that_is_not_finite(tmp_path):
    seen = []

    class Recording(NaNAt):
        def training_step(self, batch, batch_idx):
            seen.append(batch["index"].tolist())
            return super().training_step(batch, batch_idx)

    with pytest.raises(FloatingPointError):
        fit(Recording(backbone=Small()), tmp_path, max_steps=-1, max_epochs=9)
    assert json.loads((tmp_path / "non_finite.json").read_text())["index"] == seen[2]


def test_no_checkpoint_after_a_loss_that_is_not_finite(tmp_path):
    checkpoints = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    with pytest.raises(FloatingPointError):
        fit(
            NaNAt(backbone=Small()),
            tmp_path,
            n=40,
            max_steps=9,
            log_every_n_steps=50,
            enable_checkpointing=True,
            callbacks=[checkpoints],
        )
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=1.ckpt", "step=2.ckpt"]


def test_losses_are_read_at_logging_steps_only(tmp_path, monkeypatch):
    reads = []
    read = NonFiniteGuard._read

    def count(self, trainer):
        if self._steps:
            reads.append(trainer.global_step)
        read(self, trainer)

    monkeypatch.setattr(NonFiniteGuard, "_read", count)
    fit(MeanSquare(backbone=Small()), tmp_path, n=40, max_steps=10, log_every_n_steps=4)
    assert reads == [4, 8, 10]
    reads.clear()
    fit(MeanSquare(backbone=Small()), tmp_path, n=12, max_steps=10, log_every_n_steps=4)
    assert reads == [3, 4, 6, 8, 9, 10]  # and at the ends of epochs of 3 steps
    reads.clear()
    fit(MeanSquare(backbone=Small()), tmp_path, n=96, max_steps=10, log_every_n_steps=4, accumulate_grad_batches=2)
    assert reads == [4, 8, 10]


def test_terms_without_a_loss_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"NoLoss.*energy, size.*'loss'"):
        fit(NoLoss(backbone=Small()), tmp_path)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (None, "compute_loss returned a NoneType: expected a tensor or a dict"),
        ((torch.zeros(()), torch.zeros(())), "returned a tuple: expected a tensor"),
        (torch.zeros(4), r"returned loss of shape \(4,\): expected one number"),
        ({"loss": torch.zeros(()), "spread": torch.zeros(4, 2)}, r"returned spread of shape \(4, 2\)"),
    ],
)
def test_what_is_no_loss_is_an_error_that_says_so(terms, message):
    class Wrong(MultiViewModule):
        def compute_loss(self, z):
            return terms

    with pytest.raises(ValueError, match=message):
        Wrong(backbone=Small()).terms(torch.randn(2, 4, 8))


class Drawing(MultiViewModule):
    """Notes what it draws for a step, twice."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drawn = []

    def compute_loss(self, z):
        self.drawn.append((self.global_step, torch.rand(2, generator=self.step_generator()).tolist()))
        return z.square().mean()


def test_random_numbers_of_a_step_depend_on_seed_and_step_alone(tmp_path):
    def drawn(seed, max_steps, options=None, **kwargs):
        torch.manual_seed(seed)
        module = Drawing(backbone=Small(), proj_dim=4)
        torch.rand(max_steps)  # the global state has no say
        trainer = Trainer(
            accelerator="cpu",
            max_steps=max_steps,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            **kwargs,
        )
        trainer.fit(module, DataLoader([batch_of()] * 8, batch_size=None), **(options or {}))
        trainer.save_checkpoint(tmp_path / "drawing.ckpt")
        return module.drawn

    whole = drawn(1, 4)
    assert len({tuple(numbers) for _, numbers in whole}) == 4
    assert drawn(1, 2) == whole[:2]
    checkpoint = {"ckpt_path": tmp_path / "drawing.ckpt", "weights_only": True}
    assert drawn(9, 4, checkpoint) == whole[2:]  # it goes on as it began
    assert all(numbers not in whole for numbers in drawn(2, 4))
    accumulated = drawn(1, 2, accumulate_grad_batches=2)
    assert accumulated == [whole[0], whole[0], whole[1], whole[1]]  # one draw for an optimizer step


def test_random_numbers_of_a_step_leave_the_global_state_alone():
    module = Drawing(backbone=Small())
    state = torch.get_rng_state()
    one, other = (torch.rand(4, generator=module.step_generator()) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_default_optimizer_is_the_papers():
    module = MeanSquare(backbone=Small())
    optimizer = module.configure_optimizers()
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-3, 1e-6)
    assert {id(p) for p in group["params"]} == {id(p) for p in module.parameters()}


@pytest.mark.parametrize("decay_bias_and_norm", [True, False])
def test_the_backbone_may_have_a_rate_of_its_own(decay_bias_and_norm):
    module = MeanSquare(backbone=Small(), decay_bias_and_norm=decay_bias_and_norm, backbone_lr_scale=0.1)
    optimizer = module.configure_optimizers()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in module.named_parameters():
        assert rates[id(p)] == pytest.approx(1e-4 if name.startswith("backbone.") else 1e-3), name
        assert decays[id(p)] == (1e-6 if decay_bias_and_norm or p.ndim > 1 else 0.0), name
    schedule = WarmupCosine(optimizer, warmup=0.0, total_steps=4)
    assert sorted(set(schedule.base_lrs)) == pytest.approx([1e-4, 1e-3])


def test_a_rate_of_the_backbone_is_above_zero():
    with pytest.raises(ValueError, match=r"backbone_lr_scale is 0\.0: expected a number above 0"):
        MeanSquare(backbone=Small(), backbone_lr_scale=0.0)


def test_bias_and_norm_may_go_without_decay():
    module = MeanSquare(backbone=Small(), decay_bias_and_norm=False)
    module.backbone.conv.bias.requires_grad_(False)
    optimizer = module.configure_optimizers()
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: decay.get(id(p)) for name, p in module.named_parameters()}
    assert names == {
        "backbone.conv.weight": 1e-6,
        "backbone.conv.bias": None,  # frozen
        "backbone.norm.weight": 0.0,
        "backbone.norm.bias": 0.0,
        "projector.0.weight": 1e-6,
        "projector.1.weight": 0.0,
        "projector.1.bias": 0.0,
        "projector.3.weight": 1e-6,
        "projector.3.bias": 0.0,
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 8


def test_an_optimizer_of_ones_own():
    module = MeanSquare(backbone=Small(), optimizer=lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9))
    optimizer = module.configure_optimizers()
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_schedule_steps_once_an_epoch(tmp_path):
    module = MeanSquare(
        backbone=Small(),
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5),
    )
    trainer = fit(module, tmp_path, max_steps=-1, max_epochs=3)
    assert trainer.global_step == 6
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.5**3


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_gradients_of_a_fused_optimizer_can_be_clipped(tmp_path, precision):
    """Lightning refuses that under bf16, as if there were a scaler."""
    backbone = nn.Sequential(nn.AvgPool2d(16), nn.Flatten())
    optimizer = partial(torch.optim.Adam, fused=True, lr=1e-3)
    module = BarlowTwins(backbone=backbone, feature_dim=12, proj_dim=4, optimizer=optimizer)
    seen = []

    class Norms(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            grads = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
            seen.append(float(torch.stack(grads).norm()) if grads else None)

    trainer = Trainer(
        accelerator="cpu",
        precision=precision,
        gradient_clip_val=1e-3,
        max_steps=2,
        logger=False,
        callbacks=[Norms()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        limit_val_batches=0,
    )
    trainer.fit(module, Shapes(train_images=20, test_images=4, batch_size=8, num_workers=0))
    norms = [norm for norm in seen if norm is not None]
    assert norms
    assert max(norms) <= 1.001e-3


# Copies: `torch.save(module)`, `copy.deepcopy`, and what `ddp_spawn` sends to its processes.

CONFIGURED = {
    "_instantiator": "lightning.pytorch.cli.instantiate_module",
    "_class_path": "msssl.VICReg",
    "backbone": {"class_path": "msssl.ResNet", "init_args": {"width": 8}},
    "proj_dim": 8,
    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.2}},
    "lr_scheduler": {"class_path": "msssl.WarmupCosine"},
}
COPIES = {
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "deepcopy": copy.deepcopy,
    "torch.save": lambda module: through_a_file(module),
}


def through_a_file(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def compiled():
    module = BarlowTwins(backbone=Small(), proj_dim=4, compile=True)
    module.configure_model()
    return module


def trained():
    module = BarlowTwins(backbone=Small(), proj_dim=4, lr_scheduler=WarmupCosine)
    data = Shapes(train_images=20, test_images=4, batch_size=8, num_workers=0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, enable_model_summary=False, **quiet)
    trainer.fit(module, datamodule=data)
    return module


MADE = {
    "defaults": lambda: BarlowTwins(backbone=Small(), proj_dim=4),
    "partial": lambda: VICReg(backbone=Small(), proj_dim=4, optimizer=partial(torch.optim.SGD, lr=0.2)),
    "compiled": compiled,
    "trained": trained,
    "command line": lambda: MultiViewModule.from_hyperparameters({"hyper_parameters": CONFIGURED}),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("made", MADE)
def test_a_copy_of_a_module_computes_and_optimizes_the_same(made, way):
    module = MADE[made]()
    copied = COPIES[way](module)
    assert copied is not module
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(copied.eval()(images), module.eval()(images))
        next(copied.parameters()).zero_()
        assert next(module.parameters()).any()  # which has its own
    assert copied.hparams == module.hparams
    if made != "command line":  # whose schedule wants a trainer, and is the same function
        one, other = (each.make_optimizer(each.parameters()) for each in (copied, module))
        assert type(one) is type(other)
        assert [group["lr"] for group in one.param_groups] == [group["lr"] for group in other.param_groups]


def test_a_copy_of_a_compiled_module_runs_its_own_weights():
    copied = pickle.loads(pickle.dumps(compiled()))
    with torch.no_grad():
        copied.backbone.norm.bias.fill_(3.0)
        assert torch.equal(copied._compiled._eager(torch.zeros(2, 3, 8, 8)), copied(torch.zeros(2, 3, 8, 8)))
    assert copied._compiled.is_compiled is None


@pytest.mark.parametrize("make", [lambda: MultiView(3), lambda: Shapes(views=MultiView(2))], ids=["views", "data"])
def test_views_and_data_modules_are_copied_too(make):
    images = torch.arange(2 * 3 * 8 * 8).remainder(251).to(torch.uint8).view(2, 3, 8, 8)
    made = make()
    for way in (copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))):
        views, copied = (each if isinstance(each, MultiView) else each.views for each in (made, way(made)))
        assert torch.equal(copied(images, (1, 2)), views(images, (1, 2)))


SPAWNED = """
import lightning, msssl, sys

if __name__ == "__main__":
    lightning.seed_everything(1)
    module = msssl.BarlowTwins(backbone=msssl.ResNet(18, width=4), proj_dim=8, lr_scheduler=msssl.WarmupCosine)
    data = msssl.Shapes(train_images=50, test_images=8, num_workers=0, batch_size=8)  # 40 to train on
    saved = msssl.callbacks.LastCheckpoint(dirpath="checkpoints")
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    strategy = sys.argv[1]
    callbacks = [msssl.OnlineProbe(), msssl.RankMonitor(), saved]
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_epochs=1, callbacks=callbacks, **options
    )
    trainer.fit(module, datamodule=data)
"""


@pytest.mark.slow
def test_two_spawned_processes_train(tmp_path):
    (tmp_path / "script.py").write_text(SPAWNED)
    subprocess.run([sys.executable, "script.py", "ddp_spawn"], cwd=tmp_path, check=True, timeout=600)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert checkpoint["Shapes"]["world_size"] == 2
