# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Your own images, your own loss, and `beta` against D
#
# A folder of images becomes a data module, a formula becomes a method, both are checked before they cost time, and
# then they train. After that, the paper's recommendation for a small projector, `beta` proportional to 1/D, is tried
# on the same folder.
#
# Under three minutes on one or two cores.

# %%
import logging
import os
import tempfile
import warnings
from pathlib import Path

import lightning as L
import matplotlib.pyplot as plt
import msssl
import torch
from kornia import augmentation as A
from msssl import metrics
from msssl.testing import check_method
from torch import nn
from torch.nn.functional import normalize
from torchvision.io import write_png

SHORT = "MSSSL_SHORT" in os.environ  # fewer images, epochs and runs: for tests
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

# %% [markdown]
# ## Your own images
#
# `my_images/train/<class>/*` and `my_images/test/<class>/*`, of any format and size; without class folders they count
# as unlabelled. To have some, we write six patterns in any two colours, of any period and phase, as PNG files. A
# tenth of `train` is held out for validation where there is no `val/`.

# %%
folder = Path(tempfile.mkdtemp()) / "my_images"
CLASSES = ("rows", "columns", "diagonals", "checks", "rings", "rays")


def write_patterns(split, n_images, seed):
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(32.0)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    for number in range(n_images):
        period, *phase = (
            torch.rand(3, generator=generator) * torch.tensor([5, 32, 32]) + torch.tensor([5, 0, 0])
        ).tolist()
        u, v = (x - phase[0]) * 6.28 / period, (y - phase[1]) * 6.28 / period
        waves = (
            v.sin(),
            u.sin(),
            (u + v).sin(),
            u.sin() * v.sin(),
            torch.hypot(u, v).sin(),
            (5 * torch.atan2(u, v)).sin(),
        )
        shares = (0.5 + 3 * waves[number % 6]).clamp(0, 1)
        ground, figure = torch.rand(2, 3, 1, 1, generator=generator)
        image = ground + (figure - ground) * shares + 0.05 * torch.randn(3, 32, 32, generator=generator)
        path = folder / split / CLASSES[number % 6] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png((image.clamp(0, 1) * 255).to(torch.uint8), str(path))


write_patterns("train", 150 if SHORT else 900, seed=0)
write_patterns("test", 60 if SHORT else 600, seed=1)


def my_data():
    views = msssl.MultiView(
        n_views=2,
        augmentations=[
            A.RandomResizedCrop((32, 32), scale=(0.5, 1.0), cropping_mode="resample"),
            A.ColorJitter(0.4, 0.4, 0.4, 0.5, p=1.0),
            A.RandomChannelShuffle(),
            A.RandomInvert(),
        ],
        mean="auto",  # statistics of your images
        std="auto",
    )
    return msssl.ImageFolder(str(folder), batch_size=64, num_workers=0, views=views)


# %% [markdown]
# ## Your own loss
#
# A method is a subclass with one function: from the embeddings z (K, N, D) of all K views of all N images (of all
# GPUs, if there are several) to a scalar, or a dict of scalars that are logged. This one holds the views together and
# lets the mean views fill the space, measured by the logarithm of a determinant: with unit vectors $u_{kn}$, their
# mean $\bar u_n$, $\bar U$ of shape (N, D),
#
# $$L = 1 - \frac{1}{N} \sum_n \|\bar u_n\|^2
#   - w \, \frac1D \log\det\left(I + \frac{4 D}{N}\, \bar U^T \bar U\right).$$


# %%
class CodingRate(msssl.MultiViewModule):
    """Views agree, mean views take as much volume as they can."""

    def __init__(self, weight=1.0, **kwargs):
        super().__init__(**kwargs)
        self.weight = weight

    def compute_loss(self, z):  # (K, N, D)
        mean_view = normalize(z, dim=-1).mean(dim=0)
        _, n, d = z.shape
        disagreement = 1 - mean_view.square().sum(dim=-1).mean()
        rate = torch.logdet(torch.eye(d, dtype=z.dtype) + 4 * d / n * mean_view.T @ mean_view) / d
        return {"loss": disagreement - self.weight * rate, "disagreement": disagreement, "rate": rate}


# %% [markdown]
# `check_method` puts it through what every method must hold: a finite gradient for each embedding, no dependence on
# the order of views or images, a price on collapse, the same number in half precision and under `torch.compile`, and
# a checkpoint that gives the method back. It raises where one does not hold.

# %%
check_method(CodingRate, weight=1.0)


# %% [markdown]
# ## Training
#
# A backbone of your own too: any module from images (N, 3, H, W) to features (N, F) will do, here one of three small
# convolutions, F = 64. One function trains it and fits a linear probe of its features on the training images, which is
# read on the test images.


# %%
def convolutions():
    layers = []
    for width, next_width in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(width, next_width, 5, stride=2, padding=2), nn.BatchNorm2d(next_width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def adam(parameters):
    return torch.optim.Adam(parameters, lr=3e-3)


def train(make_method, epochs, seed=0):
    """Test top-1 of a linear probe, and the effective rank of the embeddings z."""
    L.seed_everything(seed, verbose=False)
    data = my_data()
    module = make_method(backbone=convolutions(), optimizer=adam)
    L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    ).fit(module, data)
    module.eval()
    found = {}
    with torch.no_grad():
        for split in ("probe", "test"):
            batches = list(data.evaluation_dataloader(split))
            features = torch.cat([module(data.views.evaluate(batch["image"])) for batch in batches])
            found[split] = features, torch.cat([batch["label"] for batch in batches])
        rank = metrics.rankme(module.projector(found["test"][0]))
    head = metrics.linear_probe(*found["probe"], num_classes=len(CLASSES), max_iter=100)
    features, labels = found["test"]
    return float((head(features).argmax(dim=1) == labels).float().mean()), float(rank)


EPOCHS = 1 if SHORT else 7
results = {
    "untrained": train(lambda **kwargs: msssl.BarlowTwins(proj_dim=64, **kwargs), 0),
    "CodingRate": train(lambda **kwargs: CodingRate(weight=1.0, proj_dim=64, **kwargs), EPOCHS),
    "BarlowTwins": train(lambda **kwargs: msssl.BarlowTwins(proj_dim=64, **kwargs), EPOCHS),
}
for name, (accuracy, rank) in results.items():
    print(f"{name:12} test top-1 {accuracy:.3f}, effective rank of z {rank:.1f} of 64")
if not SHORT:
    assert results["CodingRate"][0] > results["untrained"][0] + 0.1
    assert results["BarlowTwins"][0] > results["untrained"][0] + 0.1

# %% [markdown]
# ## `beta` against D
#
# A weak `beta` that is kept while D shrinks is what makes small projectors look bad (section 4.1). The grid: two
# widths D of the projector, each with $\beta = c / D$ for three values of c; 5 is `auto`.

# %%
DIMS, FACTORS = ((16,), (0.02, 5.0)) if SHORT else ((16, 256), (0.02, 5.0, 100.0))
grid = {
    (D, c): train(lambda D=D, c=c, **kwargs: msssl.BarlowTwins(beta=c / D, proj_dim=D, **kwargs), EPOCHS)
    for D in DIMS
    for c in FACTORS
}
noise = [results["BarlowTwins"][0]]
noise += [
    train(lambda **kw: msssl.BarlowTwins(proj_dim=64, **kw), EPOCHS, seed)[0] for seed in (() if SHORT else (1, 2))
]

figure, axes = plt.subplots(1, 2, figsize=(8, 2.4), layout="constrained")
for axis, which, title in ((axes[0], 0, "test top-1, linear probe"), (axes[1], 1, "effective rank of z, share of D")):
    values = torch.tensor([[grid[D, c][which] / (D if which else 1) for c in FACTORS] for D in DIMS])
    axis.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in torch.cartesian_prod(*map(torch.arange, values.shape)).tolist():
        value = float(values[row, column])
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.5 else "black")
    axis.set_xticks(range(len(FACTORS)), [f"{c:g} / D" for c in FACTORS])
    axis.set_yticks(range(len(DIMS)), DIMS)
    axis.set(title=title, xlabel="beta", ylabel="D")
plt.show()
print("D = 64, beta = 5 / D, seeds 0 to 2:", ", ".join(f"{value:.3f}" for value in noise))
if not SHORT:
    for D in DIMS:
        assert grid[D, 5.0][1] > grid[D, 0.02][1]  # the effective rank

# %% [markdown]
# In both rows 5/D is best. The **effective rank** tells the weak `beta` apart without labels: it leaves dimensions of z
# unused, the redundancy of theorem 3.2. A strong `beta` raises the rank further and costs accuracy, so the rank alone
# does not choose `beta`.
#
# What the paper has for long training, small projectors as good as large ones, is *not* seen here: with so few steps
# accuracy rises with D (16, 64, 256) at the best `beta` of each. And these are **noisy**: one seed for each cell,
# 600 test images (a standard error of 0.02 from the images alone), three seeds above that differ by 0.06. A table needs
# seeds, more training and a choice on validation images: `msssl sweep` with the grids in `configs/paper/`.
#
# **What to try.** Your own folder in place of `folder`. `weight` of `CodingRate` from 0.2 to 5. Take `ColorJitter` out
# of the views: features learn the colours, and the probe of the patterns falls.
