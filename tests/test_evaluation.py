"""The numbers of `msssl probe` against scikit-learn, and features that are averaged over views."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score, top_k_accuracy_score
from torch.utils.data import TensorDataset

from msssl import MultiView, MultiViewDataModule
from msssl.evaluation.features import extract
from msssl.evaluation.heads import WEIGHT_DECAYS, evaluate
from msssl.metrics import accuracy_interval, knn, linear_probe

CLASSES = 7


def split(n, seed, unlabelled=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(CLASSES, (n,), generator=generator)
    x = centres[labels] + 1.5 * torch.randn(n, 12, generator=generator)
    labels[:unlabelled] = -1
    return x, labels


@pytest.fixture(scope="module")
def features():
    return {"probe": split(400, 1), "val": split(100, 2), "test": split(300, 3, unlabelled=20)}


def test_measures_are_those_of_scikit_learn(features):
    result, fitted = evaluate(features, CLASSES)
    grid = {
        decay: float(
            (
                linear_probe(*features["probe"], num_classes=CLASSES, weight_decay=decay)(features["val"][0]).argmax(1)
                == features["val"][1]
            )
            .float()
            .mean()
        )
        for decay in WEIGHT_DECAYS
    }
    assert result["grid"] == pytest.approx({str(decay): accuracy for decay, accuracy in grid.items()}, abs=0.011)
    assert result["val_top1"] == max(result["grid"].values())
    assert result["grid"][str(result["weight_decay"])] == result["val_top1"]
    x, y = (torch.cat(parts) for parts in zip(features["probe"], features["val"], strict=True))
    head = linear_probe(x, y, num_classes=CLASSES, weight_decay=result["weight_decay"])
    test_x, test_y = (each[20:] for each in features["test"])
    probabilities, truth = head(test_x).softmax(dim=1).double(), test_y.numpy()
    probabilities = (probabilities / probabilities.sum(dim=1, keepdim=True)).numpy()
    predicted = probabilities.argmax(axis=1)
    assert result["test_top1"] == pytest.approx((predicted == truth).mean())
    assert result["test_top5"] == pytest.approx(top_k_accuracy_score(truth, probabilities, k=5))
    assert result["test_balanced"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert result["test_auroc"] == pytest.approx(roc_auc_score(truth, probabilities, multi_class="ovr"), abs=1e-6)
    assert result["test_confusion"] == confusion_matrix(truth, predicted).tolist()
    assert np.mean(result["test_per_class"]) == pytest.approx(result["test_balanced"])
    votes = knn(test_x, x, y, num_classes=CLASSES).argmax(dim=1).numpy()
    assert result["test_knn"] == pytest.approx((votes == truth).mean())
    assert torch.equal(fitted.weight, head.weight)
    low, high = result["test_interval"]
    assert low < result["test_top1"] < high
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in result.items()}
    assert json.loads(json.dumps(result)) == lists


def test_nothing_is_chosen_on_test(features):
    """Other labels in test move no choice."""
    other = {**features, "test": (features["test"][0], (features["test"][1] + 1) % CLASSES)}
    (one, _), (two, _) = evaluate(features, CLASSES), evaluate(other, CLASSES)
    moved = {name for name in one if one[name] != two[name]}
    assert all(name.startswith("test_") for name in moved)
    assert {"test_top1", "test_mlp", "test_knn"} <= moved


def test_without_val_nothing_is_chosen_and_without_test_val_is_reported(features):
    without_val, _ = evaluate({name: features[name] for name in ("probe", "test")}, CLASSES)
    assert without_val["weight_decay"] == 1e-2
    assert without_val["val_top1"] is None
    without_test, _ = evaluate({name: features[name] for name in ("probe", "val")}, CLASSES)
    assert "test_top1" not in without_test
    assert without_test["val_top1"] > 0.5


def test_two_evaluations_are_identical(features):
    assert evaluate(features, CLASSES)[0] == evaluate(features, CLASSES)[0]


def test_the_interval_covers_the_truth_in_95_of_100_draws():
    generator = torch.Generator().manual_seed(0)
    n, p = 2000, 0.8
    found = torch.binomial(torch.full((1000,), float(n)), torch.full((1000,), p), generator=generator)
    covered = sum(low <= p <= high for low, high in (accuracy_interval(int(k), n, draws=2000) for k in found))
    assert 930 <= covered <= 970


def test_the_interval_is_that_of_resampled_images():
    correct = torch.arange(150) < 120
    generator = torch.Generator().manual_seed(0)
    resampled = correct[torch.randint(150, (20_000, 150), generator=generator)].double().mean(dim=1)
    expected = torch.quantile(resampled, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert accuracy_interval(120, 150) == pytest.approx(expected, abs=1.01 / 150)
    assert accuracy_interval(0, 10) == (0.0, 0.0)
    assert accuracy_interval(10, 10) == (1.0, 1.0)
    with pytest.raises(ValueError, match="11 of 10"):
        accuracy_interval(11, 10)


# Features.


@pytest.fixture
def data():
    images = torch.randint(256, (30, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = MultiViewDataModule.from_datasets(
        TensorDataset(images, torch.arange(30) % 2), batch_size=8, num_workers=0, views=MultiView(2)
    )
    data.setup()
    return data


def flat(images):
    return images.flatten(1)


def test_features_of_clean_images_are_those_in_order(data):
    x, labels = extract(flat, data, "probe", "cpu")
    batch = data.images("probe")[range(len(x))]
    rows = data.splits["probe"].indices
    assert torch.equal(x, flat(data.views.evaluate(batch["image"])))
    assert torch.equal(labels, rows % 2)


@pytest.mark.parametrize("n_patches", [2, 4, 5])
def test_features_are_averaged_over_the_clean_image_and_random_views(data, n_patches):
    seen = []

    def recording(images):
        seen.append(flat(images))
        return seen[-1]

    x, _ = extract(recording, data, "val", "cpu", n_patches)
    assert len(seen) == n_patches
    assert torch.allclose(x, torch.stack(seen).mean(dim=0), atol=1e-6)
    clean = flat(data.views.evaluate(data.images("val")[range(len(x))]["image"]))
    assert torch.equal(seen[0], clean)
    assert all(not torch.equal(one, other) for i, one in enumerate(seen) for other in seen[:i])
    assert torch.equal(extract(flat, data, "val", "cpu", n_patches)[0], x)  # drawn from the seed alone


def test_no_image_is_no_accuracy():
    with pytest.raises(ValueError, match="0 of 0"):
        accuracy_interval(0, 0)
    assert math.isclose(sum(accuracy_interval(5, 10)), 1.0, abs_tol=0.05)
