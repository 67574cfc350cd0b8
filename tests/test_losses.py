import re
from functools import partial
from itertools import combinations
from pathlib import Path

import lightly.loss
import pytest
import torch
from conftest import load
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from msssl.losses import barlow_twins_loss, mmcr_loss, simclr_loss, spectral_contrastive_loss, vicreg_loss

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


LOSSES = {
    "barlow_twins": (barlow_twins, brute_barlow_twins),
    "barlow_twins pairs": (partial(barlow_twins, form="pairs"), brute_barlow_twins_pairs),
    "barlow_twins eq10": (partial(barlow_twins, form="eq10"), brute_barlow_twins_eq10),
    "vicreg": (vicreg, brute_vicreg),
    "vicreg pairs": (partial(vicreg, form="pairs"), partial(brute_vicreg, form="pairs")),
    "simclr": (partial(simclr_loss, temperature=0.5), brute_simclr),
    "spectral_contrastive": (spectral_contrastive_loss, brute_spectral_contrastive),
    "mmcr": (partial(mmcr_loss, local_coeff=0.2), brute_mmcr),
}
all_losses = pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES.values()], ids=LOSSES)


def gradient(value, z):
    return torch.autograd.grad(value, z, retain_graph=True)[0]


def flops(loss, K, N, D):
    z = torch.randn(K, N, D, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        loss(z)["loss"].backward()
    return counter.get_total_flops()


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
