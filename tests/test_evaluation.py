"""The numbers of `msssl probe` against scikit-learn, and features that are averaged over views."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from live_bytes import LiveBytes
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score, top_k_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from torch.utils.data import TensorDataset

from msssl import MultiView, MultiViewDataModule
from msssl.evaluation.probe import adam, heads
from msssl.evaluation.probe.adam import mlp_probe
from msssl.evaluation.probe.cross_validation import cross_validate, make_folds
from msssl.evaluation.probe.features import extract, joined
from msssl.evaluation.probe.few_labels import evaluate_few_labels
from msssl.evaluation.probe.heads import WEIGHT_DECAYS, evaluate, measures
from msssl.evaluation.probe.protocol import Protocol
from msssl.metrics import accuracy_interval, knn, linear_probe, mean_interval

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


def test_classes_without_test_images_do_not_count(features):
    """Means over the others are those of scikit-learn on their rows, with all classes to confuse them with."""
    x, y = features["test"]
    there = (y < CLASSES - 2) & (y >= 0)
    logits = linear_probe(*features["probe"], num_classes=CLASSES)(x[there])
    found = measures(logits, y[there], CLASSES)
    truth, probabilities = y[there].numpy(), logits.softmax(dim=1).double().numpy()
    assert found["per_class"][-2:] == [None, None]
    assert found["balanced"] == pytest.approx(np.mean(found["per_class"][:-2]))
    one_against_others = [roc_auc_score(truth == label, probabilities[:, label]) for label in range(CLASSES - 2)]
    assert found["auroc"] == pytest.approx(np.mean(one_against_others), abs=1e-6)
    assert measures(logits[:3], torch.zeros(3).long(), CLASSES)["auroc"] is None


# Cross-validation.


@pytest.mark.parametrize("seed", range(5))
def test_folds_without_groups_are_as_stratified_as_those_of_scikit_learn(seed):
    labels = torch.randint(4, (57,), generator=torch.Generator().manual_seed(seed)) ** 2 // 3 - 1  # -1 to 2
    folds = make_folds(labels, seed=seed)
    assert torch.equal(folds.of_image < 0, labels < 0)
    assert folds.n_groups is None
    known = labels[labels >= 0]
    for label in known.unique():
        ours = folds.of_image[labels == label].bincount(minlength=5)
        splitter = StratifiedKFold(5, shuffle=True, random_state=seed)
        theirs = [int((known[test] == label).sum()) for _, test in splitter.split(known, known)]
        assert sorted(ours.tolist()) == sorted(theirs)


@pytest.mark.parametrize("seed", range(5))
def test_folds_keep_groups_whole_and_are_no_less_even_than_those_of_scikit_learn(seed):
    generator = torch.Generator().manual_seed(seed)
    of_group = torch.randint(30, (300,), generator=generator)
    labels = (of_group % 3 + (torch.rand(300, generator=generator) < 0.1)).clamp(max=2)  # some groups have two classes
    names = [f"g{i}" for i in of_group.tolist()]
    folds = make_folds(labels, names)
    assert (folds.of_image >= 0).all()
    assert folds.n_groups == len(of_group.unique())
    assert all(len(folds.of_image[of_group == i].unique()) == 1 for i in of_group.unique())
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    theirs = torch.empty(300, dtype=torch.long)
    for fold, (_, test) in enumerate(splitter.split(labels, labels, of_group)):
        theirs[test] = fold
    assert unevenness(folds.of_image, labels) <= 1.5 * unevenness(theirs, labels)
    assert torch.equal(make_folds(labels, names).of_image, folds.of_image)
    assert not torch.equal(make_folds(labels, names, seed=1).of_image, folds.of_image)


def unevenness(folds, labels):
    """Standard deviation over the folds of the number of images of a class, averaged over classes."""
    counts = torch.stack([folds[labels == label].bincount(minlength=5) for label in labels.unique()])
    return float(counts.double().std(dim=1).mean())


def test_a_class_of_one_group_is_never_held_out():
    folds = make_folds(torch.tensor([0, 0, 1, 1, 2, 2, 2]), ["a", "b", "c", "d", "e", "e", "e"])
    assert folds.n == 2
    assert folds.of_image.tolist()[4:] == [-1] * 3
    assert sorted(folds.of_image.tolist()[:2]) == sorted(folds.of_image.tolist()[2:4]) == [0, 1]
    assert folds.n_groups == 4
    assert make_folds(torch.tensor([0, 0, 1, 1]), ["a", "b", "c", "c"]) is None  # nothing to tell apart
    assert make_folds(torch.tensor([0, 1, 2, -1])) is None


def test_cross_validated_accuracies_are_those_of_scikit_learn():
    x, y = split(60, 4, unlabelled=5)
    folds, decays = make_folds(y), (1.0, 1e-2)
    found = cross_validate(x, y, folds, num_classes=CLASSES, weight_decays=decays)
    for decay in decays:
        right = 0
        for fold in range(5):
            held_out, fitted = folds.of_image == fold, (folds.of_image != fold) & (y >= 0)
            scale = StandardScaler().fit(x[fitted])
            model = LogisticRegression(C=1 / (decay * int(fitted.sum())), tol=1e-9, max_iter=5000)
            model.fit(scale.transform(x[fitted]), y[fitted])
            right += int((model.predict(scale.transform(x[held_out])) == y[held_out].numpy()).sum())
        assert found["grid"][str(decay)] == pytest.approx(right / 55)
    assert found["cv_top1"] == max(found["grid"].values()) == found["grid"][str(found["weight_decay"])]
    assert found["cv_interval"] == accuracy_interval(round(55 * found["cv_top1"]), 55)


def test_two_evaluations_are_identical(features):
    assert evaluate(features, CLASSES)[0] == evaluate(features, CLASSES)[0]


def test_the_number_of_neighbours_is_the_one_that_voted(features):
    """Of each bank: train alone for val, train and val for test; and of every draw of few labels."""
    result, _ = evaluate(features, CLASSES)
    assert (result["val_knn_k"], result["test_knn_k"]) == (200, 200)
    assert "kNN: k = 200, T = 0.1" in Protocol("standard", None).described(features)["protocol"]
    small = {**features, "probe": split(60, 1, unlabelled=10), "val": split(40, 2, unlabelled=6)}
    result, _ = evaluate(small, CLASSES)
    assert (result["val_knn_k"], result["test_knn_k"]) == (25, 42)
    assert "kNN: k = 25 on val, 42 on test (at most half of" in Protocol("standard", None).described(small)["protocol"]
    x, y = (torch.cat(parts) for parts in zip(small["probe"], small["val"], strict=True))
    bank, bank_labels = x[y >= 0], y[y >= 0]
    scores = knn(small["test"][0], bank, bank_labels, num_classes=CLASSES, k=42)
    labelled = small["test"][1] >= 0
    right = scores[labelled].argmax(dim=1) == small["test"][1][labelled]
    assert result["test_knn"] == pytest.approx(float(right.double().mean()))
    one, _ = evaluate({name: small[name] for name in ("probe", "val")}, CLASSES)
    assert one["val_knn_k"] == 25
    assert "test_knn_k" not in one
    few = evaluate_few_labels(small, CLASSES, [1, 2])
    assert [few[count]["knn"]["k"] for count in ("1", "2")] == [3, 7]


def test_accuracies_on_val_have_an_interval_where_they_are_reported(features):
    result, _ = evaluate({name: features[name] for name in ("probe", "val")}, CLASSES)
    for name in ("top1", "mlp", "knn"):
        interval = result["val_interval" if name == "top1" else f"val_{name}_interval"]
        expected = proportion_confint(result[f"val_{name}"], len(features["val"][1]))
        assert interval == pytest.approx(expected)


def proportion_confint(p, n, z=1.959963984540054):
    """Wilson's interval as he writes it."""
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def test_the_interval_covers_the_truth_in_95_of_100_draws():
    generator = torch.Generator().manual_seed(0)
    for n, p in ((2000, 0.8), (40, 0.97)):
        found = torch.binomial(torch.full((1000,), float(n)), torch.full((1000,), p), generator=generator)
        covered = sum(low <= p <= high for low, high in (accuracy_interval(int(k), n) for k in found))
        assert 930 <= covered <= 980


@pytest.mark.parametrize(("n_correct", "n"), [(120, 150), (0, 10), (10, 10), (1, 1), (1600, 2000)])
def test_the_interval_is_wilsons_and_has_a_width_at_both_ends(n_correct, n):
    low, high = accuracy_interval(n_correct, n)
    assert (low, high) == pytest.approx(proportion_confint(n_correct / n, n), abs=1e-12)
    assert 0 <= low < high <= 1


@pytest.mark.parametrize(("n_correct", "n"), [(11, 10), (0, 0), (-1, 10)])
def test_more_right_than_there_are_is_no_accuracy(n_correct, n):
    with pytest.raises(ValueError, match=f"{n_correct} of {n} images"):
        accuracy_interval(n_correct, n)


def test_the_interval_over_seeds_is_students_from_four_on_and_within_bounds():
    for values in ([0.3, 0.35, 0.5, 0.41], [0.2, 0.6, 0.9, 0.1, 0.35]):
        mean, low, high = mean_interval(values)
        assert mean == pytest.approx(np.mean(values))
        expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert (low, high) == pytest.approx(expected)
    for n in (1, 2, 3):
        mean, low, high = mean_interval([0.1, 0.6, 0.8][:n])
        assert math.isnan(low)
        assert math.isnan(high)
    values = [0.99, 0.9, 1.0, 0.7]
    assert mean_interval(values)[2] > 1
    assert mean_interval(values, bounds=(0.0, 1.0)) == (*mean_interval(values)[:2], 1.0)
    assert mean_interval([0.01, 0.1, 0.0, 0.3], bounds=(0.0, 1.0))[1] == 0.0
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


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


def test_views_for_features_are_not_compiled(data, monkeypatch):
    data.views.compile_views = True
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: pytest.fail("compiled for a few batches"))
    extract(flat, data, "val", "cpu", 2)
    assert data.views.training


# Memory.


def many(n, seed, dim=256):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator), torch.arange(n) % 3


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks that are as small beside these features as they are beside those of ImageNet."""
    monkeypatch.setattr(sys.modules["msssl.metrics.blocks"], "NUMBERS", 2**14)
    monkeypatch.setattr(adam, "HIDDEN_DIM", 16)
    monkeypatch.setattr(adam, "MIN_STEPS", 2)
    monkeypatch.setattr(heads, "DEFAULT_ROUNDS", 1)
    monkeypatch.setattr(heads, "ROUNDS", 1)
    monkeypatch.setattr(heads, "WEIGHT_DECAYS", (10.0, 1.0))
    monkeypatch.setattr(heads, "K", 20)


def in_folds(x, y):
    return cross_validate(x, y, make_folds(y, n=2), num_classes=3, weight_decays=[1.0])


@pytest.mark.parametrize(
    "fit",
    [
        lambda x, y: linear_probe(x, y, num_classes=3, weight_decay=1.0),
        lambda x, y: linear_probe(x, y.masked_fill(y == 2, -1), num_classes=3, weight_decay=1.0),
        in_folds,
        lambda x, y: mlp_probe((x, y), num_classes=3, rounds=1, val=(x, y)),
        lambda x, y: knn(x[:200], x, y, num_classes=3, k=20),
        lambda x, y: knn(x[:200], x, y.clone().index_fill(0, torch.arange(9), -1), num_classes=3, k=20),
    ],
    ids=["linear", "linear, some without a label", "cross-validation", "MLP", "kNN", "kNN, some without a label"],
)
def test_a_head_takes_one_copy_of_the_features_at_most(small_blocks, fit):
    x, y = many(3000, 0)
    with LiveBytes() as live:
        fit(x, y)
    assert live.peak < 1.25 * x.nbytes


def test_a_probe_takes_two_copies_of_an_encoders_features(small_blocks):
    features = {"probe": many(3000, 0), "val": many(400, 1), "test": many(400, 2)}
    with LiveBytes() as live:
        features = joined(features)
        n_bytes = live.now
        evaluate(features, 3)
    n_joined = sum(len(features[name][1]) for name in ("probe", "val"))
    assert n_joined * 256 * 4 < n_bytes < 1.02 * n_joined * 256 * 4  # without a copy of `probe`, `val` or their sum
    assert live.peak < 2.25 * n_bytes


def test_features_in_blocks_give_the_same_head(monkeypatch):
    x, y = many(1000, 0, dim=16)
    x = x * torch.logspace(-1, 1, 16) + 10
    whole = linear_probe(x, y, num_classes=3)
    monkeypatch.setattr(sys.modules["msssl.metrics.blocks"], "NUMBERS", 100)
    head = linear_probe(x, y, num_classes=3)
    assert torch.allclose(head(x), whole(x), atol=1e-4)
    assert not torch.equal(head.weight, whole.weight)  # the sums are others in their last digits


def test_extraction_takes_the_features_once(data):
    def wide(images):
        return images.flatten(1).repeat(1, 20)

    with LiveBytes() as live:
        x, _ = extract(wide, data, "probe", "cpu")
    assert live.peak < 2.2 * x.nbytes  # a batch of 8 of 27 images is a third of them, and is there twice
