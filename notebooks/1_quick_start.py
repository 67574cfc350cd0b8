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
# # 1. Quick start: an encoder that learns without labels
#
# Pretrain a small encoder on drawn shapes, with no label and no download, and look at what it learned: views, training,
# spectrum, a linear probe, nearest neighbours. The method is Barlow Twins with K = 4 views of each image and a small
# projector (Ghosh et al. 2024); every later notebook takes one piece of it apart.
#
# Under three minutes on one or two cores.

# %%
import logging
import os
import tempfile
import warnings

import lightning as L
import matplotlib.pyplot as plt
import msssl
import numpy as np
import torch
from kornia import augmentation as A
from lightning.pytorch.loggers import CSVLogger
from matplotlib_inline.backend_inline import set_matplotlib_formats
from msssl import metrics

SHORT = "MSSSL_SHORT" in os.environ  # fewer images and epochs: for tests
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")
L.seed_everything(0, verbose=False)  # drives weights, order and views
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})  # small: pictures of images
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

# %% [markdown]
# ## Images and views
#
# `msssl.Shapes` draws ten forms in free colours, textures, places and sizes. What the views of an image share is what
# the encoder will learn; what they differ in, it will ignore. Here they share the form: crops are mild and the colours
# change freely. Any Kornia augmentations can stand in the list.

# %%
views = msssl.MultiView(
    n_views=4,
    augmentations=[
        A.RandomResizedCrop((32, 32), scale=(0.7, 1.0), cropping_mode="resample"),
        A.RandomHorizontalFlip(),
        A.ColorJitter(0.4, 0.4, 0.4, 0.5, p=1.0),
        A.RandomChannelShuffle(),
        A.RandomInvert(),
        A.RandomGrayscale(p=0.2),
    ],
)
data = msssl.Shapes(
    train_images=200 if SHORT else 3000, test_images=100 if SHORT else 1000, batch_size=64, num_workers=0, views=views
)
data.setup()

batch = next(iter(data.evaluation_dataloader("test")))
images, labels = batch["image"][:10], batch["label"][:10]  # uint8 (N, 3, 32, 32), (N,)
made = views(images)  # float32, normalised: (K, N, 3, 32, 32)
assert made.shape == (4, 10, 3, 32, 32)


def picture(views_or_images):
    """Numbers in [0, 1], height x width x 3, of one image."""
    if views_or_images.dtype == torch.uint8:
        return views_or_images.permute(1, 2, 0) / 255
    mean, std = torch.tensor(views.mean), torch.tensor(views.std)
    return (views_or_images.permute(1, 2, 0) * std + mean).clamp(0, 1)


names = data.datasets["test"].classes
figure, axes = plt.subplots(5, 10, figsize=(8, 4.3), layout="constrained")
for n, column in enumerate(axes.T):
    column[0].set_title(names[labels[n]], fontsize=9)
    for axis, shown in zip(column, [images[n], *made[:, n]], strict=True):
        axis.imshow(picture(shown))
        axis.set(xticks=(), yticks=())
axes[0, 0].set_ylabel("image")
for k in range(4):
    axes[k + 1, 0].set_ylabel(f"view {k + 1}")
plt.show()

# %% [markdown]
# ## Training
#
# A narrow ResNet-18 (features of F = 128 numbers), a projector to D = 64, Adam. `beta="auto"` sets the weight of the
# redundancy to 5 / D. Two callbacks look on: a linear probe, which learns the labels on features that it cannot
# change, and the effective rank of the embeddings, which would warn of a collapse.

# %%
module = msssl.BarlowTwins(backbone=msssl.ResNet(depth=18, width=8 if SHORT else 16, low_resolution=False), proj_dim=64)
folder = tempfile.mkdtemp()
trainer = L.Trainer(
    accelerator="cpu",
    max_epochs=1 if SHORT else 8,
    callbacks=[msssl.OnlineProbe(), msssl.RankMonitor()],
    logger=CSVLogger(folder, name=None, version=""),
    log_every_n_steps=1 if SHORT else 10,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    num_sanity_val_steps=0,
)


@torch.no_grad()
def features_of(split):
    """Features (N, F), labels (N,) and images (N, 3, 32, 32) of `probe` (the training images) or `test`."""
    module.eval()
    batches = list(data.evaluation_dataloader(split))
    features = torch.cat([module(views.evaluate(batch["image"])) for batch in batches])
    return features, *(torch.cat([batch[key] for batch in batches]) for key in ("label", "image"))


untrained = {split: features_of(split) for split in ("probe", "test")}
trainer.fit(module, data)
pretrained = {split: features_of(split) for split in ("probe", "test")}

# %%
log = np.genfromtxt(f"{folder}/metrics.csv", delimiter=",", names=True, deletechars="")
assert np.isfinite(log["train/loss"][~np.isnan(log["train/loss"])]).all()
figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
for axis, column, title in (
    (axes[0], "train/loss", "loss"),
    (axes[1], "val/probe_top1", "online probe, validation top-1"),
    (axes[2], "val/rankme", "effective rank of z, of 64"),
):
    known = ~np.isnan(log[column])
    axis.plot(log["step"][known], log[column][known], ".-")
    axis.set(title=title, xlabel="step")
plt.show()
if not SHORT:
    loss = log["train/loss"][~np.isnan(log["train/loss"])]
    assert loss[-5:].mean() < 0.8 * loss[:5].mean()

# %% [markdown]
# ## What it learned
#
# The **spectrum**: eigenvalues of the covariance of the features (N, F) of the test images, each as a share of the
# largest. RankMe is the number of directions in effect (of F = 128), alpha the slope of the tail: training fills more
# directions, and the variance beyond them falls off more steeply.

# %%
figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
for name, found in (("untrained", untrained), ("pretrained", pretrained)):
    spectrum = metrics.eigenspectrum(found["test"][0])
    axis.loglog(range(1, len(spectrum) + 1), spectrum / spectrum[0], label=name)
    alpha, rank = float(metrics.alpha_req(found["test"][0])), float(metrics.rankme(found["test"][0]))
    print(f"{name}: alpha {alpha:.2f}, RankMe {rank:.1f}")
axis.set(xlabel="dimension", ylabel="variance, of the largest", ylim=(1e-8, 2))
axis.legend()
plt.show()

# %% [markdown]
# The **linear probe** and the **nearest neighbours**, the same for raw pixels, the untrained and the pretrained
# encoder: fitted on the training images with their labels, read once on the test images. Nothing was chosen.


# %%
def accuracies(train, test):
    (x, y), (x_test, y_test) = train, test
    head = metrics.linear_probe(x, y, num_classes=10, max_iter=30 if SHORT else 100)
    votes = metrics.knn(x_test, x, y, num_classes=10, k=20)
    return [float((scores.argmax(dim=1) == y_test).float().mean()) for scores in (head(x_test), votes)]


def pixels(split):
    _, labels, images = pretrained[split]
    return images.flatten(1) / 255, labels


rows = {
    "raw pixels": accuracies(pixels("probe"), pixels("test")),
    "untrained": accuracies(untrained["probe"][:2], untrained["test"][:2]),
    "pretrained": accuracies(pretrained["probe"][:2], pretrained["test"][:2]),
}
print(f"{'test top-1':12} linear   kNN")
for name, (linear, neighbours) in rows.items():
    print(f"{name:12} {linear:6.3f} {neighbours:.3f}")
if not SHORT:
    assert rows["pretrained"][0] > max(rows["raw pixels"][0], rows["untrained"][0]) + 0.1
    assert rows["pretrained"][1] > max(rows["raw pixels"][1], rows["untrained"][1]) + 0.1

# %% [markdown]
# The nearest neighbours of eight test images among the training images, by the cosine of the features. A green frame is
# the same form.

# %%
features, labels, images = pretrained["test"]
bank, bank_labels, bank_images = pretrained["probe"]
_, nearest = metrics.neighbours(features[:8], bank, 5)
figure, axes = plt.subplots(6, 8, figsize=(6.4, 5), layout="constrained")
for n, column in enumerate(axes.T):
    for axis, shown in zip(column, [images[n], *bank_images[nearest[n]]], strict=True):
        axis.imshow(picture(shown))
        axis.set(xticks=(), yticks=())
    for axis, label in zip(column[1:], bank_labels[nearest[n]], strict=True):
        axis.spines[:].set(visible=True, color="C2" if label == labels[n] else "C3", linewidth=2)
axes[0, 0].set_ylabel("image")
axes[3, 0].set_ylabel("nearest")
plt.show()

# %% [markdown]
# **What to try.** `n_views=2` with twice the epochs: the same number of views seen. Leave out `ColorJitter`,
# `RandomChannelShuffle` and `RandomInvert`: the encoder takes the easy way and learns colours. `msssl.VICReg` in
# place of `msssl.BarlowTwins`. The command line does all this with a config, checkpoints and TensorBoard: `msssl fit
# --config demo.yaml`.
