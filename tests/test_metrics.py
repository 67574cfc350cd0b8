import re

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.testing import assert_close

from msssl.metrics import linear_probe, linear_probes

CLASSES = 3


def data(n=90, dim=6, seed=0):
    """Three overlapping classes, the last one larger; the features differ in mean and scale."""
    labels = (torch.arange(n) % 4).clamp(max=CLASSES - 1)
    centres = torch.randn(CLASSES, dim, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return (centres[labels] + 1.5 * noise) * torch.logspace(-1, 1, dim) + torch.linspace(-3, 3, dim), labels


def fit(x, labels, **kwargs):
    return linear_probe(x, labels, num_classes=CLASSES, **kwargs)


def probabilities(head, x):
    return head(x).softmax(dim=1)


def probabilities_of_sklearn(x, labels, test_x, weight_decay):
    # scikit-learn minimises C * (sum of cross-entropies) + 1/2 ||W||^2, hence C = 1 / (N * weight_decay).
    model = LogisticRegression(C=1 / (len(x) * weight_decay), tol=1e-10, max_iter=10_000)
    scaler = StandardScaler().fit(x.double().numpy())
    model.fit(scaler.transform(x.double().numpy()), labels.numpy())
    return torch.from_numpy(model.predict_proba(scaler.transform(test_x.double().numpy()))).float()


@pytest.mark.parametrize("weight_decay", [1.0, 1e-1, 1e-2, 1e-3])
def test_probabilities_are_those_of_scikit_learn(weight_decay):
    x, labels = data()
    test_x, _ = data(seed=1)
    head = fit(x, labels, weight_decay=weight_decay)
    expected = probabilities_of_sklearn(x, labels, test_x, weight_decay)
    assert_close(probabilities(head, test_x), expected, rtol=0, atol=1e-3)


def test_fit_is_deterministic():
    x, labels = data()
    heads = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        heads.append(fit(x, labels))
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert torch.equal(heads[0].bias, heads[1].bias)


def test_affine_change_of_the_features_changes_no_prediction():
    x, labels = data()
    test_x, _ = data(seed=1)
    scale, shift = torch.logspace(2, -2, 6), torch.linspace(5, -5, 6)
    expected = fit(x, labels)(test_x)
    found = fit(x * scale + shift, labels)(test_x * scale + shift)
    assert_close(found, expected, rtol=0, atol=1e-3)
    assert torch.equal(found.argmax(dim=1), expected.argmax(dim=1))


@pytest.mark.parametrize("constant", [0.0, 0.1, 100.3])
def test_constant_feature_has_no_weight(constant):
    x, labels = data()
    head = fit(torch.cat([x, torch.full((len(x), 1), constant)], dim=1), labels)
    assert head.weight[:, -1].abs().max() < 1e-3
    assert_close(
        probabilities(head, torch.cat([x, torch.zeros(len(x), 1)], dim=1)),
        probabilities(fit(x, labels), x),
        rtol=0,
        atol=1e-3,
    )


def test_rows_without_label_are_left_out():
    x, labels = data()
    expected = fit(x, labels)
    found = fit(torch.cat([x, 100 * x[:7]]), torch.cat([labels, torch.full((7,), -1)]))
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.bias, expected.bias)


def test_head_is_frozen_float32_also_without_gradients():
    x, labels = data()
    with torch.no_grad():
        head = fit(x.double(), labels)
    assert head.weight.shape == (CLASSES, 6)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in head.parameters())
    assert torch.equal(head.weight, fit(x, labels).weight)


@pytest.mark.parametrize(
    ("features", "labels"), [((4,), (4,)), ((4, 2, 1), (4,)), ((4, 2), (3,)), ((4, 2), (4, 1))], ids=str
)
def test_shapes_that_do_not_match_are_named(features, labels):
    with pytest.raises(ValueError, match=re.escape(f"{features} and labels {labels}")):
        fit(torch.zeros(features), torch.zeros(labels, dtype=torch.long))


@pytest.mark.parametrize("n", [0, 4])
def test_no_labelled_row_is_an_error(n):
    with pytest.raises(ValueError, match=f"none of the {n} rows"):
        fit(torch.zeros(n, 2), torch.full((n,), -1))


def test_label_beyond_the_classes_is_an_error():
    with pytest.raises(ValueError, match=f"label 3 is not below num_classes={CLASSES}"):
        fit(torch.zeros(4, 2), torch.arange(4))


def objective(weight, bias, x, y, weight_decay):
    return float(torch.nn.functional.cross_entropy(x @ weight.T + bias, y) + weight_decay / 2 * weight.square().sum())


@pytest.mark.parametrize("order", [(1.0, 1e-1, 1e-2, 1e-3, 1e-4), (1e-3, 1.0, 1e-4, 1e-2)])
def test_each_penalty_has_scikit_learns_objective_and_predictions(order):
    x, labels = data(n=400, dim=10)
    scaled = torch.from_numpy(StandardScaler().fit_transform(x.double().numpy()))
    test_x, _ = data(n=200, dim=10, seed=1)
    heads = linear_probes(x, labels, num_classes=CLASSES, weight_decays=order)
    for weight_decay, head in zip(order, heads, strict=True):
        model = LogisticRegression(C=1 / (len(x) * weight_decay), tol=1e-10, max_iter=10_000).fit(scaled, labels)
        best = objective(
            torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_), scaled, labels, weight_decay
        )
        mean, std = x.double().mean(dim=0), x.double().std(dim=0, correction=0)
        weight = head.weight.double() * std
        found = objective(weight, head.bias.double() + head.weight.double() @ mean, scaled, labels, weight_decay)
        assert abs(found - best) <= 1e-6
        scaled_test = ((test_x.double() - mean) / std).numpy()
        assert (head(test_x).argmax(dim=1).numpy() == model.predict(scaled_test)).all()


def test_rows_that_are_not_finite_are_counted():
    x, labels = data()
    x[3, 2] = float("nan")
    with pytest.raises(ValueError, match="1 of 90 rows of features are not finite"):
        fit(x, labels)
