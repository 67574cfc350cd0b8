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
# # 3. How the loss learns: weak and strong orthogonalisation
#
# Theorem 3.2 of Ghosh et al. (2024; B.4 in the appendix): from small weights, gradient descent learns the dominant
# direction first, and with a weak `beta` *every* feature learns that one. Their appendix shows it for a linear
# network with two inputs and two features. Here is the same, three times over: by gradient descent on the loss, by
# the differential equation of the appendix, and in closed form, with less than 1 % between them; and as an animation.
#
# A minute on one core.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Image
from matplotlib.animation import FuncAnimation, PillowWriter
from scipy.integrate import cumulative_trapezoid, solve_ivp

SHORT = "MSSSL_SHORT" in os.environ  # fewer steps and frames: for tests
torch.set_num_threads(1)
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
COLOURS = ("C0", "C1")

# %% [markdown]
# ## The setting
#
# | symbol | is | shape |
# |---|---|---|
# | $x, x'$ | two views of an image, centred | (m,), m = 2 |
# | $\Gamma = \mathbb E[x x'^T]$ | their correlation; $\Gamma = V \,\mathrm{diag}(\gamma)\, V^T$ | (m, m) |
# | $W$ | the linear network $f(x) = W x$; row $w_i$ is the weight vector of feature i | (d, m), d = 2 |
# | $C = W \Gamma W^T$ | correlation of the features, *not* normalised | (d, d) |
# | $A = W V$ | the weights in the eigenbasis: $A_{ij}$ is how much of $v_j$ feature i has | (d, m) |
#
# $$L = \sum_i (1 - C_{ii})^2 + \beta \sum_{i \ne j} C_{ij}^2, \qquad
#   \frac{dW}{dt} = -\frac{\partial L}{\partial W}
#   = 4 \left[ I - \mathrm{diag}(C) - \beta\, \mathrm{offdiag}(C) \right] W \Gamma. \quad (31\text{-}34)$$
#
# We take $\gamma = (1, 0.5)$, and eigenvectors that are turned by 30 degrees so that they are not the axes. Both weight
# vectors start small, in different directions.

# %%
GAMMA = np.array([1.0, 0.5])
TURN = np.deg2rad(30)
V = np.array([[np.cos(TURN), -np.sin(TURN)], [np.sin(TURN), np.cos(TURN)]])  # columns v_1, v_2
GAMMA_MATRIX = V * GAMMA @ V.T
START = 0.002 * np.array([[np.cos(a), np.sin(a)] for a in np.deg2rad([75, 145])])  # W at t = 0, (d, m)
WEAK, STRONG = 0.01, 1.0
END = 6.0


def loss(W, beta):
    C = W @ torch.from_numpy(GAMMA_MATRIX) @ W.T
    diagonal = C.diagonal()
    return (1 - diagonal).square().sum() + beta * (C.square().sum() - diagonal.square().sum())


def descend(beta, start=START, end=END, rate=1e-3):
    """Gradient descent on the loss by autograd: times (n,), W (n, d, m). A step of size `rate` is a time of `rate`."""
    W = torch.tensor(start, requires_grad=True)
    path = [start]
    for _ in range(round(end / rate)):
        (gradient,) = torch.autograd.grad(loss(W, beta), W)
        with torch.no_grad():
            W -= rate * gradient
        path.append(W.detach().numpy().copy())
    return np.arange(len(path)) * rate, np.array(path)


def flow(beta, times, start=START):
    """The differential equation (34), by an integrator of order 8: W (n, d, m)."""

    def velocity(_, flat):
        W = flat.reshape(start.shape)
        C = W @ GAMMA_MATRIX @ W.T
        diagonal = np.diag(np.diag(C))
        return (4 * (np.eye(len(C)) - diagonal - beta * (C - diagonal)) @ W @ GAMMA_MATRIX).ravel()

    found = solve_ivp(velocity, (0, times[-1]), start.ravel(), "DOP853", times, rtol=1e-10, atol=1e-13)
    return found.y.T.reshape(-1, *start.shape)


def error(found, expected):
    """Largest distance of the weights at any time, as a share of the largest weight: 0.01 is 1 %."""
    return np.abs(found - expected).max() / np.abs(expected).max()


RATE, TOLERANCE = (1e-2, 0.1) if SHORT else (5e-4, 0.01)  # of the descent
EVERY = round(0.2 / RATE)  # steps from dot to dot in figures
for beta in (WEAK, STRONG):
    times, descended = descend(beta, rate=RATE)
    difference = error(descended, flow(beta, times))
    print(f"beta {beta}: gradient descent is within {difference:.2%} of the differential equation")
    assert difference < TOLERANCE

# %% [markdown]
# ## The animation
#
# The plane of the weights: grey lines are the eigenvectors $v_1$ (solid, $\gamma_1 = 1$) and $v_2$ (dashed,
# $\gamma_2 = 0.5$), arrows the two weight vectors.

# %%
GIF = Path(tempfile.mkdtemp()) / "dynamics.gif"
N_FRAMES = 4 if SHORT else 36
times = np.linspace(0, END, N_FRAMES)
paths = {beta: flow(beta, times) for beta in (WEAK, STRONG)}

figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.4), dpi=70, layout="constrained")
arrows, trails = [], []
for axis, (beta, name) in zip(axes, ((WEAK, "weak"), (STRONG, "strong")), strict=True):
    for v, style in zip(V.T, ("-", "--"), strict=True):
        axis.plot(*np.outer(v, (-2, 2)), style, color="lightgrey", zorder=0)
    axis.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal", xticks=(), yticks=())
    axis.set_title(rf"{name}, $\beta$ = {beta}")
    arrows.append(axis.quiver([0, 0], [0, 0], [1, 0], [0, 1], color=COLOURS, scale=1, scale_units="xy", angles="xy"))
    trails.append([axis.plot([], [], color=colour, alpha=0.4)[0] for colour in COLOURS])
title = figure.suptitle(" ")


def draw(frame):
    title.set_text(f"t = {times[frame]:.1f}")
    for beta, arrow, lines in zip(paths, arrows, trails, strict=True):
        arrow.set_UVC(*paths[beta][frame].T)
        for i, line in enumerate(lines):
            line.set_data(*paths[beta][: frame + 1, i].T)


FuncAnimation(figure, draw, frames=N_FRAMES).save(GIF, PillowWriter(fps=8))
plt.close(figure)
Image(data=GIF.read_bytes())

# %% [markdown]
# With the weak `beta` both vectors turn to $v_1$, from wherever they start, and stop there: two features, one
# direction. With the strong one they end at a right angle in the scalar product of $\Gamma$: two features, two
# directions.
#
# ## Weak: the closed form
#
# At $\beta = 0$ (Eq. 35) the features do not know of each other, and Eq. 36 reads
# $dA_{ij}/dt = 4 \gamma_j (1 - C_{ii}) A_{ij}$, with $C_{ii} = \sum_j \gamma_j A_{ij}^2$. All components of a feature
# grow by the same factor but for $\gamma_j$, so with a clock of its own, $\tau_i$,
#
# $$A_{ij}(t) = A_{ij}(0)\, e^{\gamma_j \tau_i(t)}, \qquad \frac{d\tau_i}{dt} = 4\,(1 - C_{ii}). $$
#
# - While the weights are small the clock is $\tau = 4t$: each component grows exponentially, at the rate $4 \gamma_j$
#   (Eq. 37).
# - At all times $(A_{i1}/A_{i1}(0))^{1/\gamma_1} = (A_{i2}/A_{i2}(0))^{1/\gamma_2}$ (Eq. 38): which direction a feature
#   takes depends on where it starts and on $\gamma$, and the strong one wins from small weights.
# - It stops where $C_{ii} = 1$, at the $\tau_i$ with $\sum_j \gamma_j A_{ij}(0)^2 e^{2 \gamma_j \tau_i} = 1$.
#
# The time at which the clock shows $\tau$ is one integral, $t = \int_0^\tau d\tau' / (4 (1 - C_{ii}(\tau')))$.


# %%
def weak_closed_form(times, start=START):
    """A (n, d, m) at beta = 0 from the clock of each feature."""
    A0 = start @ V
    features = []
    for a in A0:
        low, high = 0.0, 50.0  # the clock stops where C_ii = 1
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if (GAMMA * a**2 * np.exp(2 * GAMMA * middle)).sum() < 1 else (low, middle)
        tau = low * (1 - np.geomspace(1, 1e-12, 40_000))  # dense where it slows down
        C = (GAMMA * a**2 * np.exp(2 * GAMMA * tau[:, None])).sum(axis=1)
        clock = np.interp(times, cumulative_trapezoid(1 / (4 * (1 - C)), tau, initial=0), tau)
        features.append(a * np.exp(GAMMA * clock[:, None]))
    return np.stack(features, axis=1)


times = np.linspace(0, END, 601)
closed, A_zero, A_weak = weak_closed_form(times), flow(0.0, times) @ V, flow(WEAK, times) @ V
small = times < 1
exponential = (START @ V) * np.exp(4 * GAMMA * times[:, None, None])
print(f"closed form against the equation at beta = 0: {error(closed, A_zero):.3%}")
print(f"exponential growth (37) while the weights are small, t < 1: {error(exponential[small], A_zero[small]):.2%}")
print(f"closed form against beta = {WEAK} up to t = {END:.0f}: {error(closed, A_weak):.2%}")
assert error(closed, A_zero) < 0.01
assert error(exponential[small], A_zero[small]) < 0.01
assert error(closed, A_weak) < 0.01
invariant = np.abs(A_zero / (START @ V)) ** (1 / GAMMA)
assert np.abs(invariant[..., 0] / invariant[..., 1] - 1).max() < 0.01  # (38), at all times

# %% [markdown]
# ## Strong: the closed form
#
# At $\beta = 1$ the bracket is $I - C$ (Simon et al. 2023). If the features start along the eigenvectors, $A(0)$
# diagonal, then $A$ stays diagonal, and $c_j = \gamma_j A_{jj}^2$ follows a logistic curve with the rate $8 \gamma_j$:
#
# $$\frac{dc_j}{dt} = 8 \gamma_j\, c_j (1 - c_j), \qquad c_j(t) = \frac{1}{1 + (1/c_j(0) - 1)\, e^{-8 \gamma_j t}}.$$
#
# One direction after the other, each at its time $\approx \ln(1/c_j(0)) / (8 \gamma_j)$. Nothing but the rotation of
# the features changes if $A(0) = U \mathrm{diag}(s)$ with a rotation U: then $C$ has the eigenvalues $c_j$.

# %%
SIZE = 0.002
aligned = SIZE * V.T  # feature i starts along v_i


def logistic_curves(times):
    return 1 / (1 + (1 / (GAMMA * SIZE**2) - 1) * np.exp(-8 * GAMMA * times[:, None]))  # (n, m)


logistic = logistic_curves(times)
turned = np.array([[0.6, -0.8], [0.8, 0.6]]) @ aligned
for name, start in (("aligned", aligned), ("turned", turned)):
    W = flow(STRONG, times, start)
    eigenvalues = np.linalg.eigvalsh(W @ GAMMA_MATRIX @ W.swapaxes(1, 2))[:, ::-1]
    print(f"{name} start: eigenvalues of C against the logistic curves: {error(eigenvalues, logistic):.3%}")
    assert error(eigenvalues, logistic) < 0.01
strong_weights = flow(STRONG, times)
general = np.linalg.eigvalsh(strong_weights @ GAMMA_MATRIX @ strong_weights.swapaxes(1, 2))[:, ::-1]
print(f"a start that is neither, that of the animation: {error(general, logistic):.1%}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
times_gd, descended = descend(0.0, rate=RATE)
A_gd = np.abs(descended @ V)
difference = error(A_gd, np.abs(weak_closed_form(times_gd)))
print(f"gradient descent at beta = 0 against the closed form: {difference:.2%}")
assert difference < TOLERANCE
for i, colour in enumerate(COLOURS):
    for j, style in enumerate(("-", "--")):
        axes[0].semilogy(times, np.abs(closed[:, i, j]), style, color=colour, label=f"$|A_{{{i + 1}{j + 1}}}|$")
        axes[0].semilogy(times_gd[::EVERY], A_gd[::EVERY, i, j], ".", color=colour)
axes[0].set(title=r"$\beta = 0$: lines closed form, dots descent", xlabel="t", ylabel="component")
axes[0].legend(ncols=2, loc="lower right")
times_gd, descended = descend(STRONG, start=turned, rate=RATE)
found = np.linalg.eigvalsh(descended @ GAMMA_MATRIX @ descended.swapaxes(1, 2))[:, ::-1]
difference = error(found, logistic_curves(times_gd))
print(f"gradient descent against the logistic curves: {difference:.2%}")
assert difference < TOLERANCE
for j in range(2):
    axes[1].plot(times, logistic[:, j], color="black", lw=1, label="logistic curves" if j == 0 else None)
    axes[1].plot(times_gd[::EVERY], found[::EVERY, j], ".", label=rf"descent, $\gamma_{j + 1}$ = {GAMMA[j]}")
axes[1].set(title=r"$\beta = 1$: eigenvalues of $C$", xlabel="t")
axes[1].legend(loc="lower right")
plt.show()

# %% [markdown]
# ## How long the collapse lasts
#
# The theorem takes $\beta \to 0$ and small weights. For a $\beta > 0$ the collapsed state is *not* where this loss
# ends. Let both features be $w = \pm\sqrt{c/\gamma_1}\, v_1$; they are stationary where $1 - c = \beta c$. A small
# difference between them along $v_2$ then grows, at the rate
#
# $$4 \gamma_2 \left[(1 - c) + \beta c\right] = \frac{8 \beta \gamma_2}{1 + \beta}.$$
#
# So the un-normalised loss leaves the collapse after a time of the order $1 / (8 \beta \gamma_2)$, during which
# nothing seems to happen. A run that is shorter sees a collapse; `beta` decides how long it lasts.

# %%
small_betas = (0.03, 1.0) if SHORT else (0.01, 0.03, 0.1, 1.0)
long_times = np.linspace(0, 160, 3201)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
waits = []
for beta in small_betas:
    W = flow(beta, long_times)
    s = np.linalg.svd(W @ V * np.sqrt(GAMMA), compute_uv=False)  # roots of the eigenvalues of C
    aspect = s[:, 1] / s[:, 0]
    axes[0].semilogy(long_times, aspect, label=rf"$\beta$ = {beta}")
    after = long_times > long_times[aspect.argmin()]
    waits.append(long_times[after & (aspect > 0.5)][0])
    rising = after & (aspect > 1.2 * aspect.min()) & (aspect < 0.2)
    if beta < 0.1:
        rate = np.polyfit(long_times[rising], np.log(aspect[rising]), 1)[0]
        expected = 8 * beta * GAMMA[1] / (1 + beta)
        print(f"beta {beta}: the second direction grows at {rate:.4f}, expected {expected:.4f}")
        assert abs(rate / expected - 1) < 0.02
axes[0].set(title="Second direction of the features", xlabel="t", ylabel="its size, of the first", xlim=(0, 160))
axes[0].legend()
axes[1].loglog(small_betas, waits, "o-", label="until its size is 0.5")
axes[1].loglog(
    small_betas, 1 / (8 * np.array(small_betas) * GAMMA[1]), ":", color="grey", label=r"$1 / (8 \beta \gamma_2)$"
)
axes[1].set(title="Time until the collapse ends", xlabel=r"$\beta$", ylabel="t")
axes[1].legend()
plt.show()

# %% [markdown]
# **What holds.** Selection of the dominant direction under a weak `beta`, exactly as in the appendix. **What needs a
# qualification.** In this loss the collapse is a long plateau, not an end. In Barlow Twins itself, with features that
# are standardised, it *is* the end below a certain `beta`: notebook 2 has its value.
#
# **What to try.** `GAMMA = (1.0, 0.95)`: two directions that are almost as strong, and a feature keeps the one it
# started near. `START` ten times as large: the selection is weaker. A negative $\gamma_2$: that direction is
# suppressed, with any `beta`.
