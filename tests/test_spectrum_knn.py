"""kNN, RankMe, alpha-ReQ, LiDAR and CLID against references in float64 that are made another way."""

import math
import sys

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist
from sklearn.neighbors import KNeighborsClassifier

from msssl.metrics import alpha_of, alpha_req, clid, eigenspectrum, knn, lidar, rankme


def features(n=300, dim=40, seed=0, decay=1.0):
    """Gaussian rows whose covariance has the eigenvalues n**-decay, in a random basis, off centre."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator).double())[0]
    scale = torch.arange(1, dim + 1).double() ** (-decay / 2)
    return torch.randn(n, dim, generator=generator).double() * scale @ basis + 0.3


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (7, 0.1), (20, 0.07), (150, 1.0)])
def test_knn_votes_as_scikit_learn_does_with_these_weights(k, temperature):
    x, bank = features(60, seed=1), features(300)
    labels = torch.arange(300) % 7 % 5  # of unequal sizes
    classifier = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(bank.numpy(), labels.numpy())
    scores = knn(x, bank, labels, num_classes=5, k=k, temperature=temperature)
    assert np.abs(scores.numpy() - classifier.predict_proba(x.numpy())).max() < 1e-9


def test_knn_takes_half_the_bank_at_most_and_no_row_without_label():
    bank, labels = features(40), torch.arange(40) % 4
    whole = knn(bank, bank, labels, num_classes=4, k=200)
    assert torch.equal(whole, knn(bank, bank, labels, num_classes=4, k=20))
    more, none = torch.cat([bank, 5 * bank]), torch.cat([labels, torch.full((40,), -1)])
    assert torch.equal(knn(bank, more, none, num_classes=4), whole)


def test_knn_is_the_same_in_chunks(monkeypatch):
    x, bank, labels = features(50, seed=1), features(300), torch.arange(300) % 5
    whole = knn(x, bank, labels, num_classes=5)
    monkeypatch.setattr(sys.modules["msssl.metrics.blocks"], "NUMBERS", 7 * 300)
    assert torch.allclose(knn(x, bank, labels, num_classes=5), whole, rtol=1e-12)


def test_rankme_against_scipy():
    z = features()
    s = linalg.svdvals(z.numpy())
    expected = math.exp(stats.entropy(s / s.sum()))
    assert float(rankme(z, epsilon=1e-300)) == pytest.approx(expected, rel=1e-9)
    p = s / s.sum() + 1e-7
    assert float(rankme(z)) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rankme_of_equal_directions_is_their_number(rank):
    basis = torch.linalg.qr(torch.randn(64, 64))[0][:, :rank]
    assert float(rankme(basis @ torch.linalg.qr(torch.randn(32, 32))[0][:rank])) == pytest.approx(rank, rel=1e-3)


def test_rankme_of_collapsed_embeddings_is_1():
    assert float(rankme(torch.ones(50, 16))) == pytest.approx(1, abs=1e-4)
    assert math.isfinite(float(rankme(torch.zeros(50, 16))))


def test_the_spectrum_is_that_of_numpy():
    x = features()
    expected = np.sort(np.linalg.eigvalsh(np.cov(x.numpy().T)))[::-1]
    assert np.abs(eigenspectrum(x).numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("shape", [(400, 256), (400, 60), (60, 256)])
def test_the_exponent_of_a_power_law(alpha, shape):
    """Rows made to have exactly these eigenvalues: orthonormal directions that are orthogonal to the mean."""
    n, dim = shape
    rank = min(n - 1, dim)
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(n, rank, generator=generator).double()
    left = torch.linalg.qr(left - left.mean(dim=0))[0]
    right = torch.linalg.qr(torch.randn(dim, rank, generator=generator).double())[0]
    x = left * torch.arange(1, rank + 1).double() ** (-alpha / 2) @ right.T + 1.7
    assert float(alpha_req(x)) == pytest.approx(alpha, abs=1e-3)


def test_alpha_against_numpys_weighted_fit():
    x = features(decay=1.3)
    values = np.sort(np.linalg.eigvalsh(np.cov(x.numpy().T)))[::-1]
    n = np.arange(1, 41)
    slope, _ = np.polyfit(np.log(n[3:]), np.log(values[3:]), 1, w=1 / np.sqrt(n[3:]))
    assert float(alpha_req(x)) == pytest.approx(-slope, rel=1e-6)


LAWS = {  # from the numbers n of the directions to their singular values
    "singular values to 1e-4": lambda n: n ** (math.log(1e-4) / math.log(len(n))),
    "eigenvalues to 1e-4": lambda n: n ** (math.log(1e-2) / math.log(len(n))),
    "steep": lambda n: n**-2.0,
    "eight directions": lambda n: (n <= 8).double(),
    "most directions": lambda n: (n <= 0.9 * len(n)).double() / n.sqrt(),
    "one direction": lambda n: (n == 1).double(),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("shape", [(700, 200), (160, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spectra_are_as_exact_as_a_decomposition_in_float64(law, shape, dtype):
    """Of both types, with a mean, with a variance that falls by eight digits or is 0 in some directions."""
    generator = torch.Generator().manual_seed(0)
    n, dim, rank = *shape, min(shape)
    left = torch.linalg.qr(torch.randn(n, rank, generator=generator).double())[0]
    right = torch.linalg.qr(torch.randn(dim, rank, generator=generator).double())[0]
    values = LAWS[law](torch.arange(1, rank + 1).double())
    z = ((left * values @ right.T + 0.01) * 50).to(dtype)

    s = linalg.svdvals(z.double().numpy())
    p = s / s.sum() + 1e-7
    assert float(rankme(z)) == pytest.approx(math.exp(-(p * np.log(p)).sum()), abs=1e-6)

    s = linalg.svdvals((z.double() - z.double().mean(dim=0)).numpy())
    variances = s**2 / (n - 1)
    assert np.abs(eigenspectrum(z).numpy() - variances).max() < 1e-12 * variances[0]
    fitted = [i for i in range(3, min(100, rank)) if variances[i] > variances[0] * max(shape) * 2.3e-16]
    if len(fitted) < 2:
        assert alpha_req(z).isnan()
        return
    at = np.array(fitted)
    slope, _ = np.polyfit(np.log(at + 1), np.log(variances[at]), 1, w=1 / np.sqrt(at + 1))
    assert float(alpha_req(z)) == pytest.approx(-slope, abs=1e-3)
    assert float(alpha_of(eigenspectrum(z))) == pytest.approx(-slope, abs=1e-6)


def test_large_and_small_features_have_the_same_exponent():
    x = features(decay=1.3).float()
    for scale in (1e-30, 1e30):  # whose squares float32 cannot hold
        assert float(alpha_req(scale * x)) == pytest.approx(float(alpha_req(x)), abs=1e-5)


def test_spectra_are_the_same_where_matrix_products_are_less_precise():
    x = features(400, 256, decay=1.3).float()
    expected = [rankme(x), alpha_req(x), eigenspectrum(x)]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = [rankme(x), alpha_req(x), eigenspectrum(x)]
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(torch.equal(*each) for each in zip(found, expected, strict=True))


def test_at_most_ten_thousand_rows_spread_over_all():
    x = torch.randn(20_000, 4)
    rows = torch.linspace(0, 19_999, 10_000).long()
    assert torch.equal(rankme(x), rankme(x[rows]))
    assert torch.equal(eigenspectrum(x), eigenspectrum(x[rows]))


@pytest.mark.parametrize("metric", [rankme, alpha_req, eigenspectrum])
def test_what_is_no_table_of_features_is_refused(metric):
    with pytest.raises(ValueError, match=r"\(3, 4, 5\)"):
        metric(torch.zeros(3, 4, 5))
    broken = torch.randn(8, 4)
    broken[3, 1] = float("nan")
    with pytest.raises(ValueError, match="1 of 8 rows"):
        metric(broken)


def test_alpha_of_too_few_directions_is_nan():
    assert alpha_req(torch.randn(30, 3)).isnan()
    assert alpha_req(torch.ones(30, 64)).isnan()


def test_knn_refuses_shapes_that_do_not_match():
    with pytest.raises(ValueError, match=r"\(4, 3\), \(8, 2\), \(8,\)"):
        knn(torch.zeros(4, 3), torch.zeros(8, 2), torch.zeros(8).long(), num_classes=2)
    with pytest.raises(ValueError, match="no labelled rows"):
        knn(torch.zeros(4, 3), torch.zeros(8, 3), torch.full((8,), -1), num_classes=2)


def brute_lidar(z, delta=1e-4, epsilon=1e-7):
    """By the definition, in float64 and with loops, and the square root of the covariance within images."""
    K, N, D = z.shape
    means = [sum(z[k, n] for k in range(K)) / K for n in range(N)]
    mean = sum(means) / N
    between = sum(np.outer(m - mean, m - mean) for m in means) / N
    within = sum(np.outer(z[k, n] - means[n], z[k, n] - means[n]) for k in range(K) for n in range(N)) / (K * N)
    values, vectors = np.linalg.eigh(within + delta * np.eye(D))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    eigenvalues = np.clip(np.linalg.eigvalsh(root @ between @ root), 0, None)
    p = np.sort(eigenvalues)[::-1][: min(N, D)] / eigenvalues.sum() + epsilon
    return math.exp(-sum(value * math.log(value) for value in p))


@pytest.mark.parametrize("shape", [(2, 30, 8), (5, 12, 20), (3, 2, 4)])
def test_lidar_is_the_definition(shape):
    image = torch.randn(shape[1:], dtype=torch.float64)
    z = image + 0.3 * torch.randn(shape, dtype=torch.float64) * torch.linspace(0.1, 2, shape[2]) + 5
    assert float(lidar(z)) == pytest.approx(brute_lidar(z.numpy()), rel=1e-6)
    assert float(lidar(z.float())) == pytest.approx(brute_lidar(z.numpy()), rel=1e-3)


def test_lidar_ignores_directions_in_which_only_views_differ():
    """RankMe counts them."""
    image, noise = torch.randn(200, 16), torch.randn(10, 200, 16)
    image[:, 4:] = 0
    z = image + noise * (torch.arange(16) >= 4)
    assert float(lidar(z)) < 5
    assert float(rankme(z.flatten(0, 1))) > 12


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(3, 4), r"\(3, 4\)"),
        (torch.zeros(1, 3, 4), r"\(1, 3, 4\)"),
        (torch.full((2, 3, 4), math.nan), "finite"),
    ],
)
def test_lidar_names_wrong_embeddings(z, message):
    with pytest.raises(ValueError, match=message):
        lidar(z)


def test_clusters_far_apart_are_learnt_and_noise_is_not():
    """25 points of each of 25 corners: k-means with sqrt(625) clusters starts in nearly all of them."""
    corners = torch.eye(25, 32).repeat_interleave(25, dim=0) + 1e-3 * torch.randn(625, 32)
    assert clid(corners).learnability > 0.6
    noise = torch.randn(625, 32)
    assert clid(noise).learnability < 0.5


def test_learnability_is_the_accuracy_of_a_nearest_neighbour_on_the_clusters():
    """With scikit-learn on the same clusters and halves."""
    x = torch.randn(200, 6, dtype=torch.float64)
    unit = (x / x.norm(dim=1, keepdim=True)).numpy()
    _, clusters = kmeans2(unit, 14, minit="++", rng=3)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3)).numpy()
    bank, queries = order[:100], order[100:]
    peer = KNeighborsClassifier(1).fit(unit[bank], clusters[bank])
    assert clid(x, seed=3).learnability == pytest.approx(peer.score(unit[queries], clusters[queries]), abs=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_dimension_is_that_of_the_definition_and_near_the_truth(dim):
    """A flat patch of this dimension, far from the origin, so that unit length keeps its dimension."""
    points = torch.zeros(1500, 12, dtype=torch.float64)
    points[:, :dim] = 0.1 * torch.rand(1500, dim, dtype=torch.float64)
    points[:, -1] = 1
    unit = (points / points.norm(dim=1, keepdim=True)).numpy()
    distances = np.sort(cdist(unit, unit), axis=1)
    expected = 1 / np.log(distances[:, 2] / distances[:, 1]).mean()
    assert clid(points).dimension == pytest.approx(expected, rel=1e-6)
    assert clid(points).dimension == pytest.approx(dim, rel=0.2)


def test_equal_rows_are_left_out_of_the_dimension():
    x = torch.randn(100, 8)
    assert clid(torch.cat([x, x[:10]])).dimension > 0
    assert math.isnan(clid(torch.ones(20, 3)).dimension)
