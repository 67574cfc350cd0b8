"""Every metric of 2 and 3 ranks is that of one process, on a validation set that they cannot share evenly."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import torch
from lightning import Trainer, seed_everything
from torch import nn
from torch.utils.data import TensorDataset
from msssl import BarlowTwins, MultiView, MultiViewDataModule, OnlineKNN, OnlineProbe, RankMonitor


class Net(nn.Sequential):
    num_features = 24

    def __init__(self):
        super().__init__(nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def images(n, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=generator)
    pixels = torch.randint(120, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
    pixels[torch.arange(n), labels] += 10
    labels[::7] = -1
    return TensorDataset(pixels, labels)


if __name__ == "__main__":
    world_size = int(sys.argv[1])
    seed_everything(0)
    module = BarlowTwins(backbone=Net(), proj_dim=12).double()
    mlp = OnlineProbe(name="mlp", hidden_dims=[8], on="projector.0")
    data = MultiViewDataModule.from_datasets(
        images(60, 0), images(31, 1), images(29, 2), batch_size=4, num_workers=0, views=MultiView(2)
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        precision="64-true",
        callbacks=[OnlineProbe(), mlp, OnlineKNN(k=5), RankMonitor()],
        **quiet,
    )
    found = {**trainer.validate(module, data, verbose=False)[0], **trainer.test(module, data, verbose=False)[0]}
    if trainer.is_global_zero:
        with open(f"{world_size}.json", "w") as file:
            json.dump(found, file)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "ranks.py").write_text(SCRIPT)
    results = {}
    for world_size in (1, 2, 3):
        done = subprocess.run(
            [sys.executable, "ranks.py", str(world_size)], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        results[world_size] = json.loads((folder / f"{world_size}.json").read_text())
    return results


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_metrics_of_ranks_are_those_of_one_process(found, world_size):
    names = ["val/probe_top1", "val/mlp_top1", "val/knn_top1", "val/rankme", "val/alpha", "val/spread"]
    assert set(found[1]) == {*names, "test/probe_top1", "test/mlp_top1"}
    assert found[world_size] == pytest.approx(found[1], abs=1e-6)
    assert 0 < found[1]["val/knn_top1"] < 1
