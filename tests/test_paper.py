"""The objectives of the paper's released code, against loops over images and dimensions in double precision."""

import pytest
import torch
from conftest import load
from test_contract import PAPER
from test_losses import covariance_energy, embeddings, gradient, mean, variance
from torch.testing import assert_close


def std(values):
    return variance(values, correction=1) ** 0.5


def barlow_twins(z, lambd):
    K, N, D = z.shape
    u = [[z[k, n] / (z[k, n] @ z[k, n]) ** 0.5 for n in range(N)] for k in range(K)]
    pooled = [[u[k][n][d] for k in range(K) for n in range(N)] for d in range(D)]
    centre, scale = [mean(values) for values in pooled], [std(values) for values in pooled]
    h = [[[(u[k][n][d] - centre[d]) / scale[d] for d in range(D)] for n in range(N)] for k in range(K)]

    def correlation(a, b, d, e):
        return sum(a[n][d] * b[n][e] for n in range(N)) / N

    different = [(d, e) for d in range(D) for e in range(D) if d != e]
    if K == 2:
        on = sum((correlation(h[0], h[1], d, d) - 1) ** 2 for d in range(D))
        return on + lambd * sum(correlation(h[0], h[1], d, e) ** 2 for d, e in different)
    hb = [[mean([h[k][n][d] for k in range(K)]) for d in range(D)] for n in range(N)]
    on = sum((correlation(h[k], hb, d, d) - 1) ** 2 for k in range(K) for d in range(D)) / K
    return on + lambd * sum(correlation(hb, hb, d, e) ** 2 for d, e in different)


def vicreg(z, lambd):
    K, N, D = z.shape
    pairs = [(z[0], z[1])]
    if K > 2:
        pairs = [(z[k], mean([z[j] for j in range(K) if j != k])) for k in range(K)]
    values = []
    for x, y in pairs:
        mse = mean([(x[n, d] - y[n, d]) ** 2 for n in range(N) for d in range(D)])
        hinge = mean([torch.relu(1 - std(list(side[:, d]))) for side in (x, y) for d in range(D)])
        values.append(lambd * (mse + hinge) + covariance_energy(x) + covariance_energy(y))
    return mean(values)


@pytest.mark.parametrize("K", [2, 3, 5])
@pytest.mark.parametrize(("name", "brute"), [("FastSSLBarlowTwins", barlow_twins), ("FastSSLVICReg", vicreg)])
def test_value_and_gradient(name, brute, K):
    z = embeddings(K, 7, 4).requires_grad_()
    module = getattr(load(PAPER), name)(backbone=torch.nn.Flatten(), lambd=0.7)
    found, expected = module.compute_loss(z)["loss"], brute(z, lambd=0.7)
    assert_close(found, expected, rtol=1e-11, atol=0)
    assert_close(gradient(found, z), gradient(expected, z), rtol=1e-9, atol=1e-11)
