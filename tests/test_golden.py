"""Losses of five steps on the CPU, in double precision: a silent change of any number on the way shows here.

`make golden` rewrites them. Written with torch 2.15 and kornia 0.9; the tolerance covers other CPUs and versions.
"""

import os
from pathlib import Path

import lightning as L
import pytest

import msssl

GOLDEN = Path(__file__).with_name("golden")


class Losses(L.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *[("BarlowTwins", form) for form in ("mean", "pairs", "eq10")],
        *[("VICReg", form) for form in ("mean", "pairs")],
        *[(name, None) for name in ("SimCLR", "SpectralContrastive", "MMCR")],
    ],
)
def test_losses_of_five_steps(name, form, tmp_path):
    L.seed_everything(0)
    losses = Losses()
    trainer = L.Trainer(
        accelerator="cpu",
        precision="64-true",
        max_steps=5,
        callbacks=[losses],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    backbone = msssl.ResNet(18, width=8, low_resolution=False)
    arguments = {"form": form} if form else {}
    module = getattr(msssl, name)(backbone=backbone, proj_dim=32, **arguments)
    trainer.fit(module, msssl.Shapes(train_images=200, batch_size=32, num_workers=0))
    golden = GOLDEN / f"{name}{f'-{form}' if form else ''}.txt"
    if os.environ.get("GOLDEN"):
        golden.write_text("".join(f"{value:.10f}\n" for value in losses.values))
    assert losses.values == pytest.approx([float(line) for line in golden.read_text().split()], rel=1e-5)
