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
# # 4. Few augmentations: what a sampled augmentation graph loses
#
# Appendix C of Ghosh et al. (2024) asks what happens to the eigenfunctions when only a few augmentations of each image
# are seen. It takes the smallest graph in which classes and mere likeness of pixels compete: four images. Then it
# states an *ansatz*, an assumption that their figure 7 supports. Here it is tried, with error bars and with the
# expectation in closed form: part of it holds, part does not.
#
# Half a minute on one core.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

SHORT = "MSSSL_SHORT" in os.environ  # fewer draws: for tests
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
MODES = ("constant", "class", "pixels", "both")
COLOURS = ("grey", "C0", "C1", "C2")

# %% [markdown]
# ## The graph (figure 6)
#
# Four images: $x_{11}, x_{12}$ of class 1, $x_{21}, x_{22}$ of class 2. By their pixels others are alike: $x_{11}$ and
# $x_{21}$, $x_{12}$ and $x_{22}$. An augmentation of $x$ looks like (is a patch of)
#
# | | probability | here |
# |---|---|---|
# | $x$ itself | $\rho$ | 0.55 |
# | the image of the same class | $\mu$ | 0.25 |
# | the image with the same pixels, of the other class | $\nu$ | 0.15 |
# | the fourth, which shares neither | $\delta$ | 0.05 |
#
# with $\rho + \mu + \nu + \delta = 1$ (Eq. 45). Augmentations are any good if $\mu > \nu$: they keep the class more
# often than the pixels. In the order $x_{11}, x_{12}, x_{21}, x_{22}$ these are the rows of $P = p(a \mid x)$, (4, 4).

# %%
RHO, MU, NU, DELTA = 0.55, 0.25, 0.15, 0.05


def symmetric(own, same_class, same_pixels, neither):
    """The (4, 4) matrix whose entries depend only on what two images share."""
    block, other = (
        np.array([[own, same_class], [same_class, own]]),
        np.array([[same_pixels, neither], [neither, same_pixels]]),
    )
    return np.block([[block, other], [other, block]])


P = symmetric(RHO, MU, NU, DELTA)
NAMES = ["$x_{11}$", "$x_{12}$", "$x_{21}$", "$x_{22}$"]
PLACES = {0: (0, 1), 1: (0, 0), 2: (1, 1), 3: (1, 0)}

figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for i in range(4):
    for j in range(i):
        (x0, y0), (x1, y1) = PLACES[i], PLACES[j]
        kind = 1 if x0 == x1 else 2 if y0 == y1 else 3
        axes[0].plot([x0, x1], [y0, y1], color=COLOURS[kind], lw=30 * P[i, j], alpha=0.7, zorder=0)
for i, (x, y) in PLACES.items():
    axes[0].scatter(x, y, s=900, color="white", edgecolor="black")
    axes[0].text(x, y, NAMES[i], ha="center", va="center")
for x, y, text, colour in (
    (-0.22, 0.5, r"class: $\mu$", "C0"),
    (0.5, 1.12, r"pixels: $\nu$", "C1"),
    (0.5, 0.28, r"neither: $\delta$", "C2"),
):
    axes[0].text(x, y, text, color=colour, ha="center")
axes[0].set(xlim=(-0.45, 1.2), ylim=(-0.25, 1.25))
axes[0].axis("off")
image = axes[1].imshow(P, cmap="Blues", vmin=0)
axes[1].set_xticks(range(4), NAMES)
axes[1].set_yticks(range(4), NAMES)
axes[1].set(title="$p(a | x)$", xlabel="view $a$", ylabel="image $x$")
figure.colorbar(image, ax=axes[1])
plt.show()

# %% [markdown]
# ## Its eigenvalues, in closed form
#
# Two views of one image are joined with $p(a, a') = \sum_x p(x)\, p(a \mid x)\, p(a' \mid x)$ (Eq. 39), and $p(a) =
# 1/4$ (Eq. 40), so the degree-normalised adjacency is $A = P^T P$. It has the form of $P$ (Eq. 46), with
#
# $$\rho' = \rho^2 + \mu^2 + \nu^2 + \delta^2,\quad \mu' = 2(\rho\mu + \nu\delta),\quad
#   \nu' = 2(\rho\nu + \mu\delta),\quad \delta' = 2(\rho\delta + \mu\nu).$$
#
# Every matrix of this form has the same four eigenvectors; those of $A$ have the squares of the eigenvalues of $P$:
#
# | eigenvector | it tells apart | eigenvalue | |
# |---|---|---|---|
# | (1, 1, 1, 1)/2 | nothing | $\rho' + \mu' + \nu' + \delta'$ | 1 |
# | (1, 1, -1, -1)/2 | the classes | $\rho' + \mu' - \nu' - \delta'$ | $(\rho + \mu - \nu - \delta)^2$ |
# | (1, -1, 1, -1)/2 | the pixels | $\rho' - \mu' + \nu' - \delta'$ | $(\rho - \mu + \nu - \delta)^2$ |
# | (1, -1, -1, 1)/2 | both | $\rho' - \mu' - \nu' + \delta'$ | $(\rho - \mu - \nu + \delta)^2$ |
#
# The class comes before the pixels exactly if $\mu > \nu$ (the sums in brackets being positive). A feature of one
# dimension, which has room for one eigenvector, then learns the class.

# %%
VECTORS = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]).T / 2
A = P.T @ P
primed = (
    RHO**2 + MU**2 + NU**2 + DELTA**2,
    2 * (RHO * MU + NU * DELTA),
    2 * (RHO * NU + MU * DELTA),
    2 * (RHO * DELTA + MU * NU),
)
signs = VECTORS * 2  # of a row: how (own, class, pixels, neither) enter each eigenvalue
EIGENVALUES = np.array(primed) @ signs
np.testing.assert_allclose(A, symmetric(*primed), atol=1e-15)
np.testing.assert_allclose(A @ VECTORS, VECTORS * EIGENVALUES, atol=1e-15)
np.testing.assert_allclose(EIGENVALUES, (np.array([RHO, MU, NU, DELTA]) @ signs) ** 2)
np.testing.assert_allclose(np.linalg.eigvalsh(A)[::-1], EIGENVALUES)
print({name: round(float(value), 4) for name, value in zip(MODES, EIGENVALUES, strict=True)})

# %% [markdown]
# ## The sampled graph
#
# Draw K augmentations of each image; $\hat P$ holds how often each view came, and $\hat A = \hat P^T \hat P$ the
# sampled adjacency. What is it on average? Two of the K draws are different with probability $1 - 1/K$ and otherwise
# one and the same, so $\mathbb E\, \hat p \hat p^T = (1 - 1/K)\, p p^T + \mathrm{diag}(p)/K$ for each row, and
#
# $$\mathbb E \hat A = \left(1 - \tfrac1K\right) A + \tfrac1K I: \qquad
#   \mathbb E \hat\mu' = \left(1 - \tfrac1K\right)\mu', \quad \mathbb E \hat\nu' = \left(1 - \tfrac1K\right)\nu', \quad
#   \mathbb E \hat\delta' = \left(1 - \tfrac1K\right)\delta'.$$
#
# All eigenvalues shrink towards 1 and their gaps by $1 - 1/K$. We draw many graphs to see mean *and* spread.

# %%
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
DRAWS = 500 if SHORT else 20_000
generator = np.random.default_rng(0)


def sampled(n_views):
    """Adjacencies (DRAWS, 4, 4) of graphs with `n_views` augmentations of each image."""
    p = generator.multinomial(n_views, P, size=(DRAWS, 4)) / n_views
    return p.swapaxes(1, 2) @ p


def parameters(adjacency):
    """The own, class, pixels and neither entries, averaged over the four places of each: (DRAWS, 4)."""
    masks = [symmetric(*np.eye(4)[k]) for k in range(4)]
    return np.stack([(adjacency * mask).sum(axis=(1, 2)) / 4 for mask in masks], axis=1)


GRAPHS = {K: sampled(K) for K in COUNTS}
FOUND = {K: parameters(graph) for K, graph in GRAPHS.items()}
for K in COUNTS:
    expected = (1 - 1 / K) * np.array(primed) + np.array([1 / K, 0, 0, 0])
    standard_error = FOUND[K].std(axis=0) / np.sqrt(DRAWS)
    assert (np.abs(FOUND[K].mean(axis=0) - expected) < 5 * standard_error + 1e-12).all()

# %% [markdown]
# ## The ansatz
#
# Appendix C.3: where augmentations are too few, those that keep the class and those that keep the pixels look equally
# likely, $\hat\mu' \approx \hat\nu'$, and those that change both do not occur, $\hat\delta' \approx 0$. Left: mean
# and standard deviation over graphs. Right: how often the graph has $\hat\mu' > \hat\nu'$, as it should, how often
# not, how often both are equal; and how often $\hat\delta'$ is exactly 0.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for k, symbol in ((1, r"$\hat\mu'$, class"), (2, r"$\hat\nu'$, pixels"), (3, r"$\hat\delta'$, neither")):
    values = np.array([FOUND[K][:, k] for K in COUNTS])
    shift = 1.06 ** (k - 2)
    axes[0].errorbar(
        np.array(COUNTS) * shift,
        values.mean(axis=1),
        values.std(axis=1),
        fmt="o-",
        color=COLOURS[k],
        label=symbol,
        capsize=2,
        markersize=4,
    )
    axes[0].axhline(primed[k], color=COLOURS[k], linestyle=":")
axes[0].set(title="Edges of the sampled graph (dotted: true)", xlabel="augmentations of each image, K")
axes[0].legend()

difference = {K: FOUND[K][:, 1] - FOUND[K][:, 2] for K in COUNTS}
order = np.array([[(d > 1e-12).mean(), (np.abs(d) <= 1e-12).mean(), (d < -1e-12).mean()] for d in difference.values()])
for column, (label, colour) in enumerate(
    ((r"$\hat\mu' > \hat\nu'$", "C0"), (r"$\hat\mu' = \hat\nu'$", "grey"), (r"$\hat\mu' < \hat\nu'$", "C1"))
):
    axes[1].plot(COUNTS, order[:, column], "o-", color=colour, label=label, markersize=4)
zero = np.array([(FOUND[K][:, 3] < 1e-12).mean() for K in COUNTS])
axes[1].plot(COUNTS, zero, "o--", color="C2", label=r"$\hat\delta' = 0$", markersize=4)
axes[1].set(title="Share of sampled graphs", xlabel="augmentations of each image, K", ylim=(0, 1))
axes[1].legend()
for axis in axes:
    axis.set_xscale("log", base=2)
    axis.set_xticks(COUNTS, [str(K) for K in COUNTS])
plt.show()

for K, (right, tie, wrong), none in zip(COUNTS[1:], order[1:], zero[1:], strict=True):
    d, (mu, nu, delta) = difference[K], FOUND[K].mean(axis=0)[1:]
    print(
        f"K {K:3}: mu' {mu:.3f}, nu' {nu:.3f}, delta' {delta:.3f}; (mu' - nu') / its spread {d.mean() / d.std():.2f}; "
        f"mu' > nu' in {right:.0%}, equal in {tie:.0%}, less in {wrong:.0%}; delta' = 0 in {none:.0%}"
    )

assert (FOUND[2].mean(axis=0)[1:] < 0.6 * np.array(primed)[1:]).all()  # halved, all three
ratio = [FOUND[K].mean(axis=0)[1] / FOUND[K].mean(axis=0)[2] for K in COUNTS[1:]]
assert (np.abs(np.array(ratio) / (primed[1] / primed[2]) - 1) < (0.2 if SHORT else 0.03)).all()
assert order[1, 0] < 0.7 < 0.99 < order[-1, 0]
assert zero[1] > zero[3] > zero[-1]

# %% [markdown]
# **What holds.** In a single graph with few augmentations the class edges cannot be told from the pixel edges: their
# difference is smaller than its spread, and in many graphs they are equal or in the wrong order. $\hat\delta' = 0$ is
# common.
#
# **What does not hold.** Not on average: $\hat\mu'/\hat\nu'$ stays $\mu'/\nu'$ for every K >= 2, since all three
# edges shrink by the same $1 - 1/K$. So $\hat\mu' \approx \hat\nu'$ is about the noise of one graph, not a bias
# towards pixels, and $\hat\delta'$ is no nearer to 0, in proportion, than the others. (The frequencies in $\hat P$
# themselves are not biased at all.)
#
# ## The eigenvalues (figure 7), and the consequence
#
# Left: eigenvalues of the sampled graphs, largest first, degree-normalised; mean and standard deviation. Right: where
# the second eigenvector, the first that says anything, points: its squared cosine with each of the true eigenvectors.


# %%
def decompose(adjacency):
    """Eigenvalues (DRAWS, 4), largest first, and squared cosines of the second eigenvector with the true ones."""
    degree = adjacency.sum(axis=2)
    scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1e-300)), 0)  # a view that never came is isolated
    values, vectors = np.linalg.eigh(adjacency * scale[:, :, None] * scale[:, None])
    return values[:, ::-1], (vectors[:, :, -2] @ VECTORS) ** 2


decomposed = {K: decompose(graph) for K, graph in GRAPHS.items()}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for k, (mode, colour) in enumerate(zip(MODES, COLOURS, strict=True)):
    values = np.array([decomposed[K][0][:, k] for K in COUNTS])
    axes[0].errorbar(
        np.array(COUNTS) * 1.06 ** (k - 2),
        values.mean(axis=1),
        values.std(axis=1),
        fmt="o-",
        color=colour,
        label=f"{k + 1}.",
        capsize=2,
        markersize=4,
    )
    axes[0].axhline(EIGENVALUES[k], color=colour, linestyle=":")
    points = np.array([decomposed[K][1][:, k].mean() for K in COUNTS])
    errors = np.array([decomposed[K][1][:, k].std() for K in COUNTS]) / np.sqrt(DRAWS)
    axes[1].errorbar(COUNTS, points, 2 * errors, fmt="o-", color=colour, label=mode, capsize=2, markersize=4)
axes[0].set(title="Eigenvalues (dotted: true)", xlabel="augmentations of each image, K")
axes[1].set(title="Second eigenvector: what it tells apart", xlabel="augmentations of each image, K", ylim=(0, 1))
for axis in axes:
    axis.set_xscale("log", base=2)
    axis.set_xticks(COUNTS, [str(K) for K in COUNTS])
    axis.legend()
plt.show()

share = {K: decomposed[K][1].mean(axis=0) for K in COUNTS}
for K in COUNTS:
    print(f"K {K:3}: class {share[K][1]:.2f}, pixels {share[K][2]:.2f}, both {share[K][3]:.2f}")
assert share[2][1] < 0.6 < 0.9 < share[128][1]
assert all(share[K][1] > share[K][2] for K in COUNTS[1:])  # the class leads on average, if barely
assert np.abs(decomposed[128][0].mean(axis=0) - EIGENVALUES).max() < 0.05
assert (decomposed[2][0].mean(axis=0)[1:3] > EIGENVALUES[1:3] + 0.1).all()

# %% [markdown]
# With few augmentations the second and third eigenvalue are too large, the gap between class and pixels drowns in the
# spread, and one learned feature mixes the two: the class is suppressed, as the paper says, and more augmentations
# bring it back. It takes many: the axis is logarithmic, and the error of the gap falls as $1/\sqrt K$. The pixels do
# not overtake the class on average.
#
# **What to try.** `MU = NU`: the two eigenvalues meet, and no number of augmentations helps. `DELTA = 0`. A clearer
# class, `RHO, MU, NU, DELTA = 0.4, 0.4, 0.1, 0.1`: few augmentations are enough.
