from pathlib import Path

import pytest
import torch
from conftest import NARROW, TINY_IMAGES, load
from test_losses import embeddings
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from msssl import MultiView, MultiViewDataModule, MultiViewModule

EXAMPLES = Path(__file__).parents[1] / "configs" / "examples"


def small_byol(**kwargs):
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 6))
    return load(EXAMPLES / "byol.py").BYOL(backbone=backbone, proj_dim=5, **kwargs)


def test_byol_loss_is_the_mean_over_pairs():
    module = small_byol().eval()
    z, module._targets = embeddings(3, 7, 5, torch.float32), embeddings(4, 7, 5, torch.float32)[:3]
    predicted = [module.predictor(view) for view in z]
    pairs = [(k, j) for k in range(3) for j in range(3) if k != j]
    cosines = [F.cosine_similarity(predicted[k], module._targets[j]).mean() for k, j in pairs]
    assert_close(module.compute_loss(z), 2 - 2 * torch.stack(cosines).mean())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_byol_target_follows_each_optimizer_step(accumulate, tmp_path):
    import lightning as L

    states = []

    class Recording(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            online = [p.detach().clone() for p in [*module.backbone.parameters(), *module.projector.parameters()]]
            states.append((online, [p.clone() for p in module.target.parameters()]))

    module = small_byol(momentum=0.9)
    start = [p.clone() for p in module.target.parameters()]
    images = torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8)
    data = MultiViewDataModule.from_datasets(
        TensorDataset(images, torch.arange(8) % 2), batch_size=4, num_workers=0, val_fraction=0.0, views=MultiView(3)
    )
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        callbacks=[Recording()],
        **quiet,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
    )
    trainer.fit(module, data)
    expected = start
    for online, found in states[accumulate - 1 :: accumulate]:
        expected = [0.9 * old + 0.1 * new for old, new in zip(expected, online, strict=True)]
        assert_close(found, expected)
    if accumulate == 2:
        assert_close(states[0][1], start, rtol=0, atol=0)
    assert all(p.grad is None for p in module.target.parameters())
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert not trained & {id(p) for p in module.target.parameters()}


def test_byol_in_double_precision(tmp_path):
    import lightning as L

    images = torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8)
    data = MultiViewDataModule.from_datasets(
        TensorDataset(images, torch.arange(8) % 2), batch_size=4, num_workers=0, val_fraction=0.0
    )
    trainer = L.Trainer(accelerator="cpu", precision="64-true", fast_dev_run=1, default_root_dir=tmp_path)
    module = small_byol()
    trainer.fit(module, data)
    assert module._targets.dtype == torch.float64


def test_byol_trains_by_one_flag_and_loads_again(msssl, tmp_path):
    (tmp_path / "byol.py").write_text((EXAMPLES / "byol.py").read_text())
    code, _, err = msssl(
        "fit", "--config", "demo.yaml", "--model", "byol.BYOL", *NARROW, *TINY_IMAGES, "--trainer.max_steps=2"
    )
    assert code == 0, err
    loaded = MultiViewModule.load_from_checkpoint(next(tmp_path.glob("runs/*/last.ckpt")))
    online = loaded.backbone.state_dict()
    assert any(not torch.equal(value, online[name]) for name, value in loaded.target[0].state_dict().items())


def test_per_instance_loss_takes_its_negatives_from_the_same_image():
    module = load(EXAMPLES / "per_instance_simclr.py").PerInstanceSimCLR(backbone=nn.Flatten(), temperature=0.5)
    z = embeddings(6, 3, 4)
    values = []
    for n in range(3):
        for k in range(6):
            similarity = F.cosine_similarity(z[k, n][None], z[:, n]) / 0.5
            others = [j for j in range(6) if j != k]
            values.append(similarity[others].exp().sum().log() - similarity[(k + 3) % 6])
    assert_close(module.compute_loss(z), torch.stack(values).mean(), rtol=1e-11, atol=0)
    with pytest.raises(ValueError, match="n_views is 5"):
        module.compute_loss(embeddings(5, 3, 4))


def test_shared_crops():
    crop = load(EXAMPLES / "per_instance_simclr.py").SharedCrop(8)
    views = crop(torch.rand(1, 3, 16, 16).repeat(12, 1, 1, 1))  # one image, K * N = 12
    assert views.shape == (12, 3, 8, 8)
    assert torch.equal(views[:6], views[6:])
    assert len(views.flatten(1).unique(dim=0)) == 6


def test_per_instance_simclr_trains_by_its_config(msssl, tmp_path):
    for name in ("per_instance_simclr.py", "per_instance_simclr.yaml"):
        (tmp_path / name).write_text((EXAMPLES / name).read_text())
    overlay = ["--config", "per_instance_simclr.yaml"]
    code, _, err = msssl("fit", "--config", "demo.yaml", *overlay, *NARROW, *TINY_IMAGES, "--trainer.max_steps=2")
    assert code == 0, err
