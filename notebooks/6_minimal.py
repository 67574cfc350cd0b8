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
# # 6. The method in plain PyTorch, beside msssl
#
# `docs/minimal.md` holds the whole method of Ghosh et al. 2024 in one file without msssl. This notebook takes the
# parts of that file, gives msssl the same weights and the same views, and trains both: every loss must be equal,
# until the end. The images are drawn, so there is nothing to download.
#
# About a minute on one or two cores.

# %%
import logging
import os
import warnings

import matplotlib.pyplot as plt
import msssl
import torch
from kornia import augmentation as A
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import nn
from torch.nn.functional import cross_entropy

SHORT = "MSSSL_SHORT" in os.environ  # fewer images and epochs: for tests
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")
torch.manual_seed(0)
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})  # small: pictures of images
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
DEVICE = "cpu"

# %% [markdown]
# ## Images and views
#
# `uint8` images (N, 3, 32, 32) become K views of each, (K, N, 3, 32, 32): each image is repeated K times, and each
# copy is augmented by random numbers of its own. Views of these drawings share the form; their colours change
# freely.

# %%
data = msssl.Shapes(train_images=200 if SHORT else 1500, test_images=100 if SHORT else 500, num_workers=0)
data.setup()


def images_of(split):
    batches = list(data.evaluation_dataloader(split))
    return [torch.cat([batch[key] for batch in batches]) for key in ("image", "label")]


train, test = images_of("probe"), images_of("test")
NORMALIZE = A.Normalize(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
AUGMENT = nn.Sequential(
    A.RandomResizedCrop((32, 32), scale=(0.7, 1.0), cropping_mode="resample"),
    A.RandomHorizontalFlip(),
    A.ColorJitter(0.4, 0.4, 0.4, 0.5, p=1.0),
    A.RandomChannelShuffle(),
    A.RandomInvert(),
    A.RandomGrayscale(p=0.2),
    NORMALIZE,
)


def make_views(images, n_views):  # 2. (N, 3, 32, 32) -> K views of each image: (K, N, 3, 32, 32)
    return AUGMENT(images.repeat(n_views, 1, 1, 1) / 255).unflatten(0, (n_views, -1))


views = make_views(train[0][:8], n_views=4)
assert views.shape == (4, 8, 3, 32, 32)
figure, axes = plt.subplots(5, 8, figsize=(6.4, 4.2), layout="constrained")
for n, column in enumerate(axes.T):
    pictures = [train[0][n] / 255, *(views[:, n] * 0.25 + 0.5)]
    for axis, shown in zip(column, pictures, strict=True):
        axis.imshow(shown.clamp(0, 1).permute(1, 2, 0))
        axis.set(xticks=(), yticks=())
axes[0, 0].set_ylabel("image")
for k in range(4):
    axes[k + 1, 0].set_ylabel(f"view {k + 1}")
plt.show()

# %% [markdown]
# ## Network and loss
#
# The encoder is small here, for a CPU. Projector, loss and the pass of all views as one batch are those of the
# file. With $h_k$ view k of the embeddings, standardised over the N images, $\bar h$ the mean of all views and
# $\bar h_{-k}$ the mean of all views but k, the loss is
#
# $$\frac1K \sum_k \sum_d \Big(1 - \tfrac1N (h_k^T \bar h_{-k})_{dd}\Big)^2
#   + \frac5D \sum_{d \neq e} \Big(\tfrac1N (\bar h^T \bar h)_{de}\Big)^2.$$


# %%
def encoder():
    layers = []
    for width, next_width in ((3, 16), (16, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(width, next_width, 3, stride=2, padding=1), nn.BatchNorm2d(next_width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def projector(n_features, dim):  # 4. features (N, F) -> embeddings (N, D)
    hidden = nn.Linear(n_features, dim, bias=False)
    return nn.Sequential(hidden, nn.BatchNorm1d(dim), nn.ReLU(), nn.Linear(dim, dim))


def barlow_twins(z, beta):  # 5. embeddings (K, N, D) -> the loss
    n_views, n_images, _ = z.shape
    h = (z - z.mean(dim=1, keepdim=True)) / (z.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt()
    mean_view = h.mean(dim=0)  # (N, D)
    other_views = (n_views * mean_view - h) / (n_views - 1)  # (K, N, D): the mean of all views but this one
    agreement = (h * other_views).mean(dim=1)  # (K, D)
    correlation = mean_view.T @ mean_view / n_images  # (D, D): one matrix product, whatever K is
    off_diagonal = correlation - correlation.diag().diag()
    return (1 - agreement).square().sum(dim=1).mean() + beta * off_diagonal.square().sum()


def loss_of(network, views):  # 6. views (K, N, 3, 32, 32) pass through the network as one batch of K * N rows
    z = network(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    return barlow_twins(z, beta=5 / z.shape[-1])


# %% [markdown]
# ## Two trainings, the same views
#
# `network` is plain PyTorch and `module` is `msssl.BarlowTwins` with a copy of its weights. Each step draws views
# once and gives them to both; each has an Adam of its own. In float64, since rounding grows with the steps.


# %%
def adam(parameters):
    return torch.optim.Adam(parameters, lr=3e-3, weight_decay=1e-6)


network = nn.Sequential(encoder(), projector(128, 64))
untrained = encoder()
untrained.load_state_dict(network[0].state_dict())
module = msssl.BarlowTwins(backbone=encoder(), proj_dim=64, optimizer=adam)
module.backbone.load_state_dict(network[0].state_dict())
module.projector.load_state_dict(network[1].state_dict())
network.double(), module.double()
optimizer = adam(network.parameters())
module_optimizer = module.configure_optimizers()

losses = []
for _ in range(1 if SHORT else 3):
    for rows in torch.randperm(len(train[0])).split(64)[:-1]:
        views = make_views(train[0][rows], n_views=4).double()
        batch = {"views": views, "label": train[1][rows], "index": rows}
        pair = loss_of(network, views), module.training_step(batch, len(losses))["loss"]
        for loss, each in zip(pair, (optimizer, module_optimizer), strict=True):
            each.zero_grad()
            loss.backward()
            each.step()
        losses.append([loss.item() for loss in pair])

plain, ours = torch.tensor(losses, dtype=torch.float64).T
difference = ((plain - ours) / plain).abs()
assert difference.max() < 1e-6
figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
axes[0].plot(plain, lw=4, alpha=0.4, label="plain PyTorch")
axes[0].plot(ours, lw=1, label="msssl.BarlowTwins")
axes[0].set(title="loss", xlabel="step")
axes[0].legend()
axes[1].semilogy(difference.clamp(min=1e-17), lw=1)
axes[1].set(title="relative difference", xlabel="step", ylim=(1e-17, 1))
plt.show()
print(f"{len(losses)} steps, largest relative difference {float(difference.max()):.0e}")

# %% [markdown]
# ## Linear probe
#
# The projector is thrown away, and a linear classifier is fitted to the features of the frozen encoder. The same with
# `msssl.metrics.linear_probe`, which solves the same convex problem.


# %%
def linear_probe(backbone, train, test, weight_decay=1e-2):  # 8. how good the features are
    with torch.no_grad():
        x, x_test = (torch.cat([backbone(NORMALIZE(n / 255)) for n in s.split(512)]) for s in (train[0], test[0]))
    mean, std = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6)
    x, x_test = (x - mean) / std, (x_test - mean) / std
    head = nn.Linear(x.shape[1], 10).to(DEVICE)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def objective():
        optimizer.zero_grad()
        value = cross_entropy(head(x), train[1]) + weight_decay / 2 * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(objective)
    return (head(x_test).argmax(dim=1) == test[1]).float().mean().item()


def probe_of_msssl(backbone):
    with torch.no_grad():
        x, x_test = (backbone(NORMALIZE(images / 255)) for images, _ in (train, test))
    head = msssl.metrics.linear_probe(x, train[1], num_classes=10)
    return (head(x_test).argmax(dim=1) == test[1]).float().mean().item()


trained = network[0].float().eval()
for name, backbone in (("random weights", untrained.eval()), ("pretrained", trained)):
    print(f"{name:15} test top-1: {linear_probe(backbone, train, test):.3f}, msssl {probe_of_msssl(backbone):.3f}")
if not SHORT:
    assert abs(linear_probe(trained, train, test) - probe_of_msssl(trained)) < 0.01
    assert linear_probe(trained, train, test) > linear_probe(untrained, train, test)

# %% [markdown]
# **What to try.** Another `n_views`. Another loss in `loss_of`, such as $\|z_k - z_l\|^2$ alone: it goes to 0, and
# so does what the probe finds. `docs/minimal.md` explains each step, and says what msssl does besides.
