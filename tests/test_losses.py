import re
from functools import partial
from itertools import combinations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from msssl.losses import barlow_twins_loss, vicreg_loss

BETA = 0.3
COEFFS = {"sim_coeff": 3.0, "std_coeff": 7.0, "cov_coeff": 2.0}
barlow_twins = partial(barlow_twins_loss, beta=BETA)
vicreg = partial(vicreg_loss, **COEFFS)
both_losses = pytest.mark.parametrize("loss", [barlow_twins, vicreg], ids=["barlow_twins", "vicreg"])
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


def brute_barlow_twins(z, beta=BETA, eps=1e-5):
    K, N, D = z.shape
    h = [[standardise([z[k, n, d] for n in range(N)], eps) for d in range(D)] for k in range(K)]  # indexed k, d, n
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
    return {"loss": invariance + beta * redundancy, "invariance": invariance, "redundancy": redundancy}


def brute_vicreg(z, sim_coeff=3.0, std_coeff=7.0, cov_coeff=2.0, eps=1e-4):
    K, N, D = z.shape
    pairs = [(k, j) for k in range(K) for j in range(K) if k != j]
    invariance = mean([(z[k, n, d] - z[j, n, d]) ** 2 for k, j in pairs for n in range(N) for d in range(D)])
    variances = 0
    for k in range(K):
        for d in range(D):
            std = (variance([z[k, n, d] for n in range(N)], correction=1) + eps) ** 0.5
            variances = variances + torch.relu(1 - std) / (K * D)
    zb = [[mean([z[k, n, d] for k in range(K)]) for d in range(D)] for n in range(N)]
    centre = [mean([zb[n][d] for n in range(N)]) for d in range(D)]
    covariance = 0
    for d in range(D):
        for e in range(D):
            if d != e:
                cov = sum((zb[n][d] - centre[d]) * (zb[n][e] - centre[e]) for n in range(N)) / (N - 1)
                covariance = covariance + 2 * cov**2 / D
    loss = sim_coeff * invariance + std_coeff * variances + cov_coeff * covariance
    return {"loss": loss, "invariance": invariance, "variance": variances, "covariance": covariance}


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
@pytest.mark.parametrize(
    ("loss", "brute"), [(barlow_twins, brute_barlow_twins), (vicreg, brute_vicreg)], ids=["barlow_twins", "vicreg"]
)
def test_every_term_and_its_gradient_are_those_of_brute_force(loss, brute, shape):
    z = embeddings(*shape).requires_grad_()
    terms, expected = loss(z), brute(z)
    assert terms.keys() == expected.keys()
    for name, value in terms.items():
        assert expected[name] > 1e-6, name  # a term that vanishes would show nothing
        assert_close(value, expected[name], rtol=1e-11, atol=0)
        found, wanted = gradient(value, z), gradient(expected[name], z)
        assert (found - wanted).norm() <= 1e-10 * wanted.norm(), name


def test_arguments_reach_the_formula():
    z = embeddings(3, 7, 4)
    assert_close(barlow_twins_loss(z, beta=2.0, eps=0.1), brute_barlow_twins(z, beta=2.0, eps=0.1), rtol=1e-11, atol=0)
    assert_close(vicreg_loss(z, eps=0.1), brute_vicreg(z, 25.0, 25.0, 1.0, eps=0.1), rtol=1e-11, atol=0)


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


@both_losses
@pytest.mark.parametrize("N", [3, 7])
def test_order_of_views_and_images_does_not_matter(loss, N):
    z = embeddings(3, N, 5)
    permuted = z[torch.tensor([2, 0, 1])][:, torch.arange(N - 1, -1, -1)]
    assert_close(loss(permuted), loss(z), rtol=1e-12, atol=0)


@pytest.mark.parametrize("constant", [0.0, 0.7])
@pytest.mark.parametrize("K", [2, 4])
def test_collapse_is_finite_and_worst(constant, K):
    z = torch.full((K, 6, 8), constant)
    assert_finite(barlow_twins, z.clone())
    assert_finite(vicreg, z.clone())
    assert barlow_twins(z)["invariance"].item() == pytest.approx(8, rel=1e-5)  # D: nothing correlates
    assert vicreg(z)["variance"].item() == pytest.approx(1 - 1e-4**0.5)  # 1 - sqrt(eps)


@both_losses
def test_degenerate_embeddings_have_finite_gradients(loss):
    z = embeddings(3, 6, 4, torch.float32)
    assert_finite(loss, z[:1].expand(3, 6, 4).clone())  # equal views
    assert_finite(loss, z[:, :1].expand(3, 6, 4).clone())  # each view constant
    assert_finite(loss, torch.cat([z[..., :3], torch.zeros(3, 6, 1)], dim=2))  # a dead dimension
    assert_finite(loss, z[:, :2].clone())  # two images


@both_losses
def test_half_precision_is_computed_in_float32(loss):
    z = embeddings(3, 7, 4, torch.bfloat16)
    expected = loss(z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [loss(z), loss(z.float())]
    for terms in [loss(z), *found]:
        assert_close(terms, expected, rtol=0, atol=0)  # checks dtypes too
        assert terms["loss"].dtype == torch.float32


@both_losses
def test_float64_stays_float64(loss):
    z = embeddings(3, 7, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = loss(z)
    assert all(value.dtype == torch.float64 and value.shape == () for value in terms.values())
    assert_close(terms, loss(z), rtol=0, atol=0)


@both_losses
def test_input_is_not_modified(loss):
    for dtype in (torch.float32, torch.float64):
        z = embeddings(3, 7, 4, dtype)
        before = z.clone()
        loss(z)
        assert torch.equal(z, before)


@both_losses
@pytest.mark.parametrize("shape", [(1, 4, 5), (0, 4, 5), (3, 1, 5), (4, 5), (2, 3, 4, 5)], ids=str)
def test_wrong_shape_is_named(loss, shape):
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        loss(torch.zeros(shape))


@both_losses
def test_compiles_to_one_graph(loss):
    z = embeddings(3, 7, 4).requires_grad_()
    terms = torch.compile(loss, fullgraph=True, backend="aot_eager")(z)
    assert_close(terms, loss(z), rtol=1e-12, atol=0)
    assert_close(gradient(terms["loss"], z), gradient(loss(z)["loss"], z), rtol=1e-10, atol=1e-12)


@both_losses
@pytest.mark.parametrize(("N", "D"), [(8, 32), (32, 8)])
def test_matrix_products_do_not_grow_with_the_views(loss, N, D):
    assert 0 < flops(loss, 16, N, D) == flops(loss, 2, N, D)
    assert flops(loss, 2, N, D) == 3 * 2 * N * D * min(N, D)  # one Gram of the smaller side, and its two gradients
