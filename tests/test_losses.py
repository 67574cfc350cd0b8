import math
import re
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import NormalDist

import lightly.loss
import pytest
import torch
from conftest import load
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from msssl.losses import (
    barlow_twins_loss,
    frossl_loss,
    lejepa_loss,
    logdet_loss,
    mmcr_loss,
    mvdhel_loss,
    simclr_loss,
    spectral_contrastive_loss,
    vicreg_loss,
    visreg_loss,
)

BETA = 0.3
COEFFS = {"sim_coeff": 3.0, "std_coeff": 7.0, "cov_coeff": 2.0}
barlow_twins = partial(barlow_twins_loss, beta=BETA)
vicreg = partial(vicreg_loss, **COEFFS)
SHAPES = [(K, N, D) for K in (2, 3, 5) for N, D in ((3, 5), (7, 4))]


def embeddings(K, N, D, dtype=torch.float64):
    """Views that agree in part; the dimensions differ in mean and scale, and some are below VICReg's hinge at 1."""
    generator = torch.Generator().manual_seed(1000 * K + 10 * N + D)
    image = torch.randn(N, D, generator=generator, dtype=torch.float64)
    noise = torch.randn(K, N, D, generator=generator, dtype=torch.float64)
    return ((image + 0.7 * noise) * torch.linspace(0.2, 2.5, D) + torch.linspace(-2, 1, D)).to(dtype)


def mean(values):
    return sum(values) / len(values)


def variance(values, correction):
    m = mean(values)
    return sum((value - m) ** 2 for value in values) / (len(values) - correction)


def standardise(values, eps):
    m, v = mean(values), variance(values, correction=0)
    return [(value - m) / (v + eps) ** 0.5 for value in values]


def pairs_of(K):
    return [(k, j) for k in range(K) for j in range(K) if k != j]


def standardised(z, eps):
    """Indexed k, d, n."""
    K, N, D = z.shape
    return [[standardise([z[k, n, d] for n in range(N)], eps) for d in range(D)] for k in range(K)]


def with_loss(weights, **terms):
    return {"loss": sum(weight * value for weight, value in zip(weights, terms.values(), strict=True)), **terms}


def brute_barlow_twins(z, beta=BETA, eps=1e-5):
    K, N, D = z.shape
    h = standardised(z, eps)
    invariance = redundancy = 0
    for k in range(K):
        for d in range(D):
            others = [mean([h[j][d][n] for j in range(K) if j != k]) for n in range(N)]
            invariance = invariance + (1 - sum(h[k][d][n] * others[n] for n in range(N)) / N) ** 2 / K
    hb = [[mean([h[k][d][n] for k in range(K)]) for n in range(N)] for d in range(D)]
    for d in range(D):
        for e in range(D):
            if d != e:
                redundancy = redundancy + (sum(hb[d][n] * hb[e][n] for n in range(N)) / N) ** 2
    return with_loss((1, beta), invariance=invariance, redundancy=redundancy)


def brute_barlow_twins_pairs(z, beta=BETA, eps=1e-5):
    K, N, D = z.shape
    h = standardised(z, eps)
    invariance = redundancy = 0
    for k, j in pairs_of(K):
        for d in range(D):
            for e in range(D):
                correlation = sum(h[k][d][n] * h[j][e][n] for n in range(N)) / N
                if d == e:
                    invariance = invariance + (1 - correlation) ** 2 / (K * (K - 1))
                else:
                    redundancy = redundancy + correlation**2 / (K * (K - 1))
    return with_loss((1, beta), invariance=invariance, redundancy=redundancy)


def brute_barlow_twins_eq10(z, beta=BETA, eps=1e-5):
    K, N, D = z.shape
    h = standardised(z, eps)
    hb = [[mean([h[k][d][n] for k in range(K)]) for n in range(N)] for d in range(D)]
    invariance = redundancy = 0
    for k in range(K):
        for d in range(D):
            invariance = invariance + sum((h[k][d][n] - hb[d][n]) ** 2 for n in range(N)) / (K * N)
    for d in range(D):
        for e in range(D):
            redundancy = redundancy + (sum(hb[d][n] * hb[e][n] for n in range(N)) / N - float(d == e)) ** 2
    return with_loss((1, beta), invariance=invariance, redundancy=redundancy)


def covariance_energy(rows):
    """sum_{d != e} cov_de^2 / D of rows[n][d]."""
    N, D = len(rows), len(rows[0])
    centre = [mean([row[d] for row in rows]) for d in range(D)]
    total = 0
    for d in range(D):
        for e in range(D):
            if d != e:
                total = total + (sum((row[d] - centre[d]) * (row[e] - centre[e]) for row in rows) / (N - 1)) ** 2 / D
    return total


def brute_vicreg(z, sim_coeff=3.0, std_coeff=7.0, cov_coeff=2.0, eps=1e-4, form="mean"):
    K, N, D = z.shape
    invariance = mean([(z[k, n, d] - z[j, n, d]) ** 2 for k, j in pairs_of(K) for n in range(N) for d in range(D)])
    variances = 0
    for k in range(K):
        for d in range(D):
            std = (variance([z[k, n, d] for n in range(N)], correction=1) + eps) ** 0.5
            variances = variances + torch.relu(1 - std) / (K * D)
    if form == "mean":
        zb = [[mean([z[k, n, d] for k in range(K)]) for d in range(D)] for n in range(N)]
        covariance = 2 * covariance_energy(zb)
    else:
        covariance = mean([covariance_energy(z[k]) + covariance_energy(z[j]) for k, j in pairs_of(K)])
    weights = (sim_coeff, std_coeff, cov_coeff)
    return with_loss(weights, invariance=invariance, variance=variances, covariance=covariance)


def brute_simclr(z, temperature=0.5):
    K, N, _ = z.shape
    rows = [(k, n) for k in range(K) for n in range(N)]
    cosine = {(i, j): F.cosine_similarity(z[i], z[j], dim=0) for i in rows for j in rows}
    similarity = mean([cosine[(k, n), (j, n)] for n in range(N) for k, j in pairs_of(K)])
    partition = mean([sum(torch.exp(cosine[i, j] / temperature) for j in rows if j != i).log() for i in rows])
    return with_loss((-1 / temperature, 1), similarity=similarity, partition=partition)


def brute_spectral_contrastive(z):
    K, N, _ = z.shape
    alignment = mean([z[k, n] @ z[j, n] for n in range(N) for k, j in pairs_of(K)])
    different = [(n, m) for n in range(N) for m in range(N) if n != m]
    repulsion = mean([(z[k, n] @ z[j, m]) ** 2 for n, m in different for k in range(K) for j in range(K)])
    return with_loss((-2, 1), alignment=alignment, repulsion=repulsion)


def sum_of_singular_values(x):
    """Square roots of the eigenvalues of the smaller Gram matrix."""
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    return torch.linalg.eigvalsh(gram).sqrt().sum()


def brute_mmcr(z, local_coeff=0.2):
    K, N, _ = z.shape
    u = [[z[k, n] / (z[k, n] @ z[k, n]) ** 0.5 for n in range(N)] for k in range(K)]
    centroids = torch.stack([mean([u[k][n] for k in range(K)]) for n in range(N)])
    spread = mean([sum_of_singular_values(torch.stack([u[k][n] for k in range(K)])) for n in range(N)])
    return with_loss((-1, local_coeff), extent=sum_of_singular_values(centroids), spread=spread)


def unit_directions(D, S=3):
    generator = torch.Generator().manual_seed(D)
    return F.normalize(torch.randn(D, S, generator=generator, dtype=torch.float64), dim=0)


def along_random_directions(loss):
    """The loss with fixed directions for each D, which tests can call with z alone."""
    return lambda z, **kwargs: loss(z, directions=unit_directions(z.shape[-1]), **kwargs)


def invariance_to_the_mean(z):
    K, N, D = z.shape
    return mean([(z[k, n, d] - mean(list(z[:, n, d]))) ** 2 for k in range(K) for n in range(N) for d in range(D)])


def brute_lejepa(z, lambda_=0.3):
    K, N, D = z.shape
    tests = []
    for k in range(K):
        for a in unit_directions(D).T:
            x = [z[k, n] @ a for n in range(N)]
            statistic = 0
            for j in range(17):
                t, dt = 3 * j / 16, 3 / 16
                phi = math.exp(-(t**2) / 2)
                weight = (dt if j in (0, 16) else 2 * dt) * phi
                real = mean([torch.cos(t * value) for value in x]) - phi
                imaginary = mean([torch.sin(t * value) for value in x])
                statistic = statistic + weight * (real**2 + imaginary**2)
            tests.append(N * statistic)
    return with_loss((1 - lambda_, lambda_), invariance=invariance_to_the_mean(z), sigreg=mean(tests))


def brute_visreg(z, lambda_=0.3, eps=1e-8):
    K, N, D = z.shape
    centers, scales, shapes = [], [], []
    for k in range(K):
        columns = [[z[k, n, d] for n in range(N)] for d in range(D)]
        means = [mean(column) for column in columns]
        stds = [(variance(column, correction=0) + eps) ** 0.5 for column in columns]
        centers += [m**2 for m in means]
        scales += [(1 - s) ** 2 for s in stds]
        for a in unit_directions(D).T:
            projected = [sum((z[k, n, d] - means[d]) / stds[d].detach() * a[d] for d in range(D)) for n in range(N)]
            for i, value in enumerate(sorted(projected, key=lambda value: value.item())):
                shapes.append((value - NormalDist().inv_cdf((i + 1) / (N + 1))) ** 2)
    weights = (1 - lambda_, lambda_, lambda_, lambda_)
    terms = {"center": mean(centers), "scale": mean(scales), "shape": mean(shapes)}
    return with_loss(weights, invariance=invariance_to_the_mean(z), **terms)


def brute_frossl(z, weight=3.0):
    K, N, D = z.shape
    length = [[sum(z[k, n, d] ** 2 for n in range(N)) ** 0.5 for d in range(D)] for k in range(K)]
    h = [[[z[k, n, d] / length[k][d] for d in range(D)] for n in range(N)] for k in range(K)]
    entropy = invariance = 0
    for k in range(K):
        gram = [[sum(h[k][n][d] * h[k][n][e] for n in range(N)) for d in range(D)] for e in range(D)]
        entropy = entropy + torch.log(sum(value**2 for row in gram for value in row) / D**2) / K
        for n in range(N):
            for d in range(D):
                invariance = invariance + (h[k][n][d] - mean([h[j][n][d] for j in range(K)])) ** 2 / (K * D)
    return with_loss((1, weight), entropy=entropy, invariance=invariance)


def brute_logdet(z, alpha=2.0, eps=1e-4):
    K, N, D = z.shape
    u = [[z[k, n] / (z[k, n] @ z[k, n]) ** 0.5 for n in range(N)] for k in range(K)]
    invariance = mean([((u[k][n] - u[j][n]) ** 2).sum() for k, j in pairs_of(K) for n in range(N)])
    volumes = []
    for k in range(K):
        centre = mean(u[k])
        covariance = sum(torch.outer(row - centre, row - centre) for row in u[k]) / N
        volumes.append(torch.linalg.eigvalsh(covariance + eps * torch.eye(D, dtype=z.dtype)).log().sum() / D)
    return with_loss((alpha, -2), invariance=invariance, volume=mean(volumes))


def brute_tcr(z, alpha=2.0, eps=0.2):
    K, N, D = z.shape
    u = [[z[k, n] / (z[k, n] @ z[k, n]) ** 0.5 for n in range(N)] for k in range(K)]
    similarities, volumes = [], []
    for k in range(K):
        second_moment = sum(torch.outer(row, row) for row in u[k])
        volumes.append(
            torch.linalg.eigvalsh(torch.eye(D, dtype=z.dtype) + D / (N * eps) * second_moment).log().sum() / 2
        )
        similarities += [F.cosine_similarity(u[k][n], mean([u[j][n] for j in range(K)]), dim=0) for n in range(N)]
    return with_loss((alpha, -1), invariance=-mean(similarities), volume=mean(volumes))


def of_few_dimensions(loss):
    """The loss of the first dimensions, fewer than there are images."""

    def loss_of(z, **kwargs):
        is_valid = z.ndim == 3 and len(z) > 1 and z.shape[1] > 1
        return loss(z[..., : z.shape[1] - 1] if is_valid else z, **kwargs)

    return loss_of


def brute_mvdhel(z, temperature=0.5):
    K, N, _ = z.shape
    u = [[z[k, n] / (z[k, n] @ z[k, n]) ** 0.5 for n in range(N)] for k in range(K)]
    uniformity = alignment = 0
    for n in range(N):
        for k in range(K):
            others = [torch.exp(u[k][n] @ u[k][m] / temperature) for m in range(N) if m != n]
            uniformity = uniformity + sum(others).log() / N
        alignment = alignment + sum(torch.exp(u[k][n] @ u[j][n] / temperature) for k, j in pairs_of(K)).log() / N
    return with_loss((1, -1), uniformity=uniformity, alignment=alignment)


LOSSES = {
    "barlow_twins": (barlow_twins, brute_barlow_twins),
    "barlow_twins pairs": (partial(barlow_twins, form="pairs"), brute_barlow_twins_pairs),
    "barlow_twins eq10": (partial(barlow_twins, form="eq10"), brute_barlow_twins_eq10),
    "vicreg": (vicreg, brute_vicreg),
    "vicreg pairs": (partial(vicreg, form="pairs"), partial(brute_vicreg, form="pairs")),
    "simclr": (partial(simclr_loss, temperature=0.5), brute_simclr),
    "spectral_contrastive": (spectral_contrastive_loss, brute_spectral_contrastive),
    "mmcr": (partial(mmcr_loss, local_coeff=0.2), brute_mmcr),
    "lejepa": (partial(along_random_directions(lejepa_loss), lambda_=0.3), brute_lejepa),
    "visreg": (partial(along_random_directions(visreg_loss), lambda_=0.3), brute_visreg),
    "frossl": (partial(frossl_loss, weight=3.0), brute_frossl),
    "logdet": (partial(of_few_dimensions(logdet_loss), alpha=2.0), of_few_dimensions(brute_logdet)),
    "logdet tcr": (partial(logdet_loss, alpha=2.0, form="tcr"), brute_tcr),
    "mvdhel": (partial(mvdhel_loss, temperature=0.5), brute_mvdhel),
}
all_losses = pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES.values()], ids=LOSSES)


def gradient(value, z):
    return torch.autograd.grad(value, z, retain_graph=True)[0]


def flops(loss, K, N, D):
    z = torch.randn(K, N, D, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        loss(z)["loss"].backward()
    return counter.get_total_flops()


class Counted(TorchDispatchMode):
    """Counts operations, in the forward and the backward pass."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **(kwargs or {}))


def assert_finite(loss, z):
    z = z.requires_grad_()
    terms = loss(z)
    assert all(value.isfinite() for value in terms.values())
    assert gradient(terms["loss"], z).isfinite().all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("loss", "brute"), LOSSES.values(), ids=LOSSES)
def test_every_term_and_its_gradient_are_those_of_brute_force(loss, brute, shape):
    z = embeddings(*shape).requires_grad_()
    terms, expected = loss(z), brute(z)
    assert terms.keys() == expected.keys()
    for name, value in terms.items():
        assert abs(expected[name]) > 1e-6, name  # a term that vanishes would show nothing
        assert_close(value, expected[name], rtol=1e-11, atol=0)
        found, wanted = gradient(value, z), gradient(expected[name], z)
        assert (found - wanted).norm() <= 1e-10 * wanted.norm(), name


def test_arguments_reach_the_formula():
    z = embeddings(3, 7, 4)
    assert_close(barlow_twins_loss(z, beta=2.0, eps=0.1), brute_barlow_twins(z, beta=2.0, eps=0.1), rtol=1e-11, atol=0)
    assert_close(vicreg_loss(z, eps=0.1), brute_vicreg(z, 25.0, 25.0, 1.0, eps=0.1), rtol=1e-11, atol=0)
    assert_close(simclr_loss(z), brute_simclr(z, temperature=0.15), rtol=1e-11, atol=0)
    assert_close(mmcr_loss(z)["loss"], brute_mmcr(z, local_coeff=0.0)["loss"], rtol=1e-11, atol=0)


@pytest.mark.parametrize(
    ("loss", "peer"),
    [
        (partial(barlow_twins_loss, beta=0.02, form="pairs"), lightly.loss.BarlowTwinsLoss(lambda_param=0.02)),
        (partial(vicreg_loss, form="pairs"), lightly.loss.VICRegLoss(25.0, 25.0, 1.0)),
        (partial(simclr_loss, temperature=0.2), lightly.loss.NTXentLoss(temperature=0.2)),
    ],
    ids=["barlow_twins", "vicreg", "simclr"],
)
def test_two_views_are_those_of_lightly(loss, peer):
    z = embeddings(2, 16, 12).requires_grad_()
    found, expected = loss(z)["loss"], peer(z[0], z[1])
    assert_close(found, expected, rtol=1e-9, atol=0)
    assert_close(gradient(found, z), gradient(expected, z), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("K", [2, 3, 5])
def test_losses_for_many_views_are_those_of_lightly(K, monkeypatch):
    """Lightly sums FroSSL over the views, and its weight means another thing for each K, N and D."""
    N, D, S = 16, 12, 7
    z, directions = embeddings(K, N, D), unit_directions(D, S)
    monkeypatch.setattr(lightly.loss.lejepa_loss.SIGReg, "_generate_unit_vectors", lambda *args: directions)
    peer = lightly.loss.LeJEPALoss(lambda_param=0.2, sigreg_num_vectors=S).double()
    expected = peer(global_proj=z[:2], local_proj=z[2:]) if K > 2 else peer(global_proj=z[:1], local_proj=z[1:])
    targets = 2 if K > 2 else 1
    found = lejepa_loss(z, directions=directions, lambda_=0.2, n_targets=targets)["loss"]
    assert_close(found, expected, rtol=1e-6, atol=0)
    monkeypatch.setattr(torch, "randn", lambda *args, **kwargs: directions)
    peer = lightly.loss.VISRegLoss(lambda_param=0.2, num_slices=S, eps=1e-12)
    terms = peer.forward_components(global_proj=z[:targets], local_proj=z[targets:])
    found = visreg_loss(z, directions=directions, lambda_=0.2, eps=0.0, n_targets=targets)
    for name, theirs in {
        "loss": "total",
        "invariance": "pred",
        "center": "center",
        "scale": "scale",
        "shape": "shape",
    }.items():
        assert_close(found[name], getattr(terms, theirs), rtol=1e-6, atol=0)
    expected = lightly.loss.FroSSLLoss(invariance_weight=1.4)(list(z))
    assert_close(K * frossl_loss(z, weight=1.4 * K * D / N)["loss"], expected, rtol=1e-6, atol=0)


def test_barlow_twins_invariance_of_two_views_is_that_of_the_cross_correlation():
    z = embeddings(2, 7, 4)
    h = [F.batch_norm(view, None, None, training=True, eps=1e-5) for view in z]
    diagonal = (h[0].T @ h[1] / 7).diagonal()
    assert_close(barlow_twins(z)["invariance"], (1 - diagonal).square().sum(), rtol=1e-11, atol=0)


@pytest.mark.parametrize("K", [2, 3, 5])
def test_vicreg_invariance_is_the_mean_squared_error_over_pairs(K):
    z = embeddings(K, 7, 4)
    pairs = [F.mse_loss(a, b) for a, b in combinations(z, 2)]
    assert_close(vicreg(z)["invariance"], torch.stack(pairs).mean(), rtol=1e-11, atol=0)


@pytest.mark.parametrize("constant", [0.0, 0.7])
@pytest.mark.parametrize("K", [2, 4])
def test_collapse_is_worst(constant, K):
    z = torch.full((K, 6, 8), constant)
    assert barlow_twins(z)["invariance"].item() == pytest.approx(8, rel=1e-5)  # D: nothing correlates
    assert vicreg(z)["variance"].item() == pytest.approx(1 - 1e-4**0.5)  # 1 - sqrt(eps)


@all_losses
def test_degenerate_embeddings_have_finite_gradients(loss):
    z = embeddings(3, 6, 4, torch.float32)
    assert_finite(loss, torch.zeros(3, 6, 4))
    assert_finite(loss, torch.full((3, 6, 4), 0.7))
    assert_finite(loss, z[:1].expand(3, 6, 4).clone())  # equal views
    assert_finite(loss, z[:, :1].expand(3, 6, 4).clone())  # each view constant
    assert_finite(loss, torch.cat([z[..., :3], torch.zeros(3, 6, 1)], dim=2))  # a dead dimension
    assert_finite(loss, z[:, :2].clone())  # two images


@pytest.mark.parametrize("name", [name for name in LOSSES if name.startswith(("barlow", "vicreg"))])
def test_float32_far_from_zero(name):
    """At an offset of 1,000 standard deviations, against the exact value for the same rounded numbers."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(64, 16, generator=generator)
    z = image + 0.5 * torch.randn(4, 64, 16, generator=generator) + 1000
    loss = LOSSES[name][0]
    assert_close({k: v.double() for k, v in loss(z).items()}, loss(z.double()), rtol=1e-4, atol=0)


@all_losses
def test_half_precision_is_computed_in_float32(loss):
    z = embeddings(3, 7, 4, torch.bfloat16)
    exact = loss(z.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [loss(z), loss(z.float())]
    for terms in [loss(z), *found]:
        assert terms["loss"].dtype == torch.float32
        assert_close({name: value.double() for name, value in terms.items()}, exact, rtol=1e-4, atol=1e-6)


@all_losses
def test_float64_stays_float64(loss):
    z = embeddings(3, 7, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = loss(z)
    assert all(value.dtype == torch.float64 and value.shape == () for value in terms.values())
    assert_close(terms, loss(z), rtol=0, atol=0)


@all_losses
@pytest.mark.parametrize("shape", [(1, 4, 5), (0, 4, 5), (3, 1, 5), (4, 5), (2, 3, 4, 5)], ids=str)
def test_wrong_shape_is_named(loss, shape):
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        loss(torch.zeros(shape))


@pytest.mark.parametrize("loss", [barlow_twins, vicreg], ids=["barlow_twins", "vicreg"])
def test_an_unknown_form_is_named(loss):
    with pytest.raises(ValueError, match=r"'medians'.*mean, pairs"):
        loss(embeddings(3, 7, 4), form="medians")


@pytest.mark.parametrize("name", ["barlow_twins", "barlow_twins eq10", "vicreg"])
@pytest.mark.parametrize(("N", "D"), [(8, 32), (32, 8)])
def test_matrix_products_do_not_grow_with_the_views(name, N, D):
    loss = LOSSES[name][0]
    assert 0 < flops(loss, 16, N, D) == flops(loss, 2, N, D)
    assert flops(loss, 2, N, D) == 3 * 2 * N * D * min(N, D)  # one Gram of the smaller side, and its two gradients


@pytest.mark.parametrize("name", ["lejepa", "visreg", "frossl", "logdet", "logdet tcr", "mvdhel"])
def test_launches_do_not_grow_with_the_views(name):
    counts = []
    for K in (2, 16):
        z = embeddings(K, 32, 8).requires_grad_()
        counter = Counted()
        with counter:
            LOSSES[name][0](z)["loss"].backward()
        counts.append(counter.number)
    assert counts[0] == counts[1] > 0


def test_mvdhel_of_many_views_does_not_overflow():
    z = embeddings(16, 256, 64)
    terms = mvdhel_loss(z.float(), temperature=0.1)
    assert_close({k: v.double() for k, v in terms.items()}, mvdhel_loss(z, temperature=0.1), rtol=1e-5, atol=0)


def test_frossl_invariance_does_not_depend_on_the_batch():
    values = []
    for N in (64, 256, 1024):
        generator = torch.Generator().manual_seed(N)
        image, noise = torch.randn(N, 512, generator=generator), torch.randn(2, N, 512, generator=generator)
        values.append(frossl_loss(image + 0.5 * noise)["invariance"].item())
    assert max(values) / min(values) < 1.05


@pytest.mark.parametrize("loss", [lejepa_loss, visreg_loss])
def test_all_views_are_compared_with_the_first_ones(loss):
    z = embeddings(5, 7, 4)
    terms = loss(z, directions=unit_directions(4), n_targets=2)
    assert_close(terms["invariance"], (z - z[:2].mean(dim=0)).square().mean(), rtol=1e-11, atol=0)


def test_lejepa_gradient_is_that_of_finite_differences():
    z = embeddings(2, 5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: lejepa_loss(z, directions=unit_directions(3))["sigreg"], z)


def test_logdet_has_published_weights_for_each_form():
    z = embeddings(3, 7, 4)
    assert_close(logdet_loss(z), logdet_loss(z, alpha=4.0, eps=1e-4), rtol=0, atol=0)
    assert_close(logdet_loss(z, form="tcr"), logdet_loss(z, form="tcr", alpha=200.0, eps=0.2), rtol=0, atol=0)


def test_a_covariance_that_rounding_makes_singular_is_not_a_number():
    z = embeddings(2, 7, 4, torch.float32)
    z[..., 3] = z[..., 2]
    assert logdet_loss(z, eps=1e-12)["volume"].isnan()


A = unit_directions(4)
WRONG_ARGUMENTS = {
    "directions have shape (3, 4): expected (D, S) with the D = 4 of": lambda z: lejepa_loss(z, directions=A.T),
    "directions have shape (4,)": lambda z: visreg_loss(z, directions=torch.ones(4)),
    "lambda_ is 1.5: expected a number in [0, 1]": lambda z: lejepa_loss(z, directions=A, lambda_=1.5),
    "lambda_ is -0.1": lambda z: visreg_loss(z, directions=A, lambda_=-0.1),
    "n_targets is 4: expected 1 to 3": lambda z: lejepa_loss(z, directions=A, n_targets=4),
    "temperature is 0": lambda z: mvdhel_loss(z, temperature=0),
    "temperature is 0.0: expected a number above 0": lambda z: simclr_loss(z, temperature=0.0),
    "temperature is nan": lambda z: simclr_loss(z, temperature=math.nan),
    "beta is -0.1: a weight is at least 0": lambda z: barlow_twins_loss(z, beta=-0.1),
    "std_coeff is -1: a weight is at least 0": lambda z: vicreg_loss(z, std_coeff=-1),
    "local_coeff is -1: a weight is at least 0": lambda z: mmcr_loss(z, local_coeff=-1),
    "weight is -1: a weight is at least 0": lambda z: frossl_loss(z, weight=-1),
    "eps is 0: expected a number above 0": lambda z: logdet_loss(z, eps=0),
    "alpha is -1: a weight is at least 0": lambda z: logdet_loss(z, alpha=-1),
    "form is 'det': expected one of logdet, tcr": lambda z: logdet_loss(z, form="det"),
    "(3, 4, 4): the covariance of 4 images in 4 dimensions is singular": lambda z: logdet_loss(z[:, :4]),
}


@pytest.mark.parametrize(("message", "loss"), WRONG_ARGUMENTS.items(), ids=WRONG_ARGUMENTS)
def test_wrong_arguments_are_named(message, loss):
    with pytest.raises(ValueError, match=re.escape(message)):
        loss(embeddings(3, 7, 4))


@pytest.mark.parametrize("name", ["barlow_twins pairs", "vicreg pairs", "spectral_contrastive"])
def test_pairs_cost_as_much_as_the_views(name):
    loss = LOSSES[name][0]
    assert flops(loss, 16, 256, 256) <= 4.6 * flops(loss, 4, 256, 256)


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_memory_of_a_wide_projector(name):
    """The paper's baseline: no D x D tensor, at most 10 times the input."""
    z = torch.randn(8, 256, 8192, requires_grad=True)
    with load(Path(__file__).parents[1] / "benchmarks" / "tensors.py").Tensors() as memory:
        LOSSES[name][0](z)["loss"].backward()
    size = z.untyped_storage().nbytes()
    assert memory.largest == size < 4 * 8192**2  # nothing is larger than the input, as a D x D tensor would be
    assert memory.peak <= 10 * size


def test_mmcr_is_lightlys_on_embeddings_of_unit_length():
    z = embeddings(4, 16, 6)
    unit = F.normalize(z, dim=-1).transpose(0, 1)  # lightly takes (N, K, D), half of the views from each network
    expected = lightly.loss.MMCRLoss(lmda=0.3)(unit[:, :2], unit[:, 2:])
    assert_close(mmcr_loss(z, local_coeff=0.3)["loss"], expected, rtol=1e-9, atol=0)


PAGES_WITH_GRADIENTS = {
    "barlow-twins": partial(barlow_twins_loss, beta=5 / 64),
    "vicreg": vicreg_loss,
    "lejepa": partial(lejepa_loss, directions=unit_directions(64, 256)),
    "visreg": partial(visreg_loss, directions=unit_directions(64, 256)),
    "frossl": frossl_loss,
    "logdet": logdet_loss,
    "mvdhel": mvdhel_loss,
    "simclr": simclr_loss,
    "spectral-contrastive": spectral_contrastive_loss,
    "mmcr": mmcr_loss,
}


@pytest.mark.parametrize("page", PAGES_WITH_GRADIENTS)
def test_gradients_at_collapse_are_those_that_the_pages_give(page):
    """Within 6 %: they have two digits."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(256, 64, generator=generator, dtype=torch.float64)
    noise = torch.randn(4, 256, 64, generator=generator, dtype=torch.float64)
    text = (Path(__file__).parents[1] / "docs" / "methods" / f"{page}.md").read_text()
    listed = re.search(r"(?:0\.001 is |around zero \()([-+.\d e,]+?\d)(?:: |\.\s| at size|\. )", text)
    given = [float(number) for number in listed[1].split(",")]
    for size, number in zip((1, 0.1, 0.01, 0.001), given, strict=True):
        z = (size * (image + 0.5 * noise) / 1.25**0.5).requires_grad_()
        norm = gradient(PAGES_WITH_GRADIENTS[page](z)["loss"], z).norm()
        assert float(norm) == pytest.approx(number, rel=0.06), size
