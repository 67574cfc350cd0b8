"""`RankMonitor` and `OnlineKNN` report what brute force finds, and leave no trace in the run."""

import logging
import math
import sys

import pytest
import torch
import torchvision
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import TensorDataset

import msssl
from msssl import BarlowTwins, MultiView, MultiViewDataModule, MultiViewModule
from msssl.callbacks import OnlineKNN, RankMonitor
from msssl.metrics import alpha_req, knn, rankme


class Encoder(nn.Module):
    num_features = 12

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(0.3))

    def forward(self, images):
        return self.layers(images).mean(dim=(2, 3))


def images(n, labelled=True):
    generator = torch.Generator().manual_seed(n)
    labels = torch.arange(n) % 3
    pixels = torch.randint(120, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
    pixels[torch.arange(n), labels] += 100
    return TensorDataset(pixels, labels if labelled else torch.full((n,), -1))


def fit(callbacks, tmp_path, *, train=None, val=None, epochs=1, method=BarlowTwins, **kwargs):
    torch.manual_seed(0)
    module = method(backbone=Encoder(), proj_dim=8)
    data = MultiViewDataModule.from_datasets(
        train or images(60), val or images(31), batch_size=10, num_workers=0, views=MultiView(2)
    )
    options = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callbacks,
        **{**options, **kwargs},
    )
    trainer.fit(module, data)
    return module.eval(), data, trainer.callback_metrics


@torch.no_grad()
def clean(module, data, split):
    rows = data.images(split)[range(len(data.splits[split]))]
    return module(data.views.evaluate(rows["image"])), rows["label"]


def test_ranks_are_those_of_all_validation_images(tmp_path):
    module, data, metrics = fit([RankMonitor()], tmp_path)
    features, _ = clean(module, data, "val")
    with torch.no_grad():
        z = module.projector(features)
    assert float(metrics["val/rankme"]) == pytest.approx(float(rankme(z)), rel=1e-5)
    assert float(metrics["val/alpha"]) == pytest.approx(float(alpha_req(features)), rel=1e-4)
    unit = z / z.norm(dim=1, keepdim=True)
    assert float(metrics["val/spread"]) == pytest.approx(float(unit.std(dim=0).mean()) * math.sqrt(8), rel=1e-5)


def test_neighbours_are_those_of_all_training_images(tmp_path):
    module, data, metrics = fit([OnlineKNN(k=7)], tmp_path)
    features, labels = clean(module, data, "val")
    scores = knn(features, *clean(module, data, "probe"), num_classes=3, k=7)
    assert float(metrics["val/knn_top1"]) == pytest.approx(float((scores.argmax(dim=1) == labels).float().mean()))
    assert metrics["val/knn_top1"] > 0.5


def test_a_bank_of_some_images_is_spread_over_all(tmp_path):
    module, data, metrics = fit([OnlineKNN(k=3, bank_size=9)], tmp_path)
    bank, bank_labels = clean(module, data, "probe")
    rows = torch.linspace(0, 59, 9).long()
    features, labels = clean(module, data, "val")
    scores = knn(features, bank[rows], bank_labels[rows], num_classes=3, k=3)
    assert float(metrics["val/knn_top1"]) == pytest.approx(float((scores.argmax(dim=1) == labels).float().mean()))


def test_a_small_bank_has_fewer_neighbours_and_says_so_once(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="msssl"):
        module, data, metrics = fit([OnlineKNN()], tmp_path, epochs=2)
    said = [each.getMessage() for each in caplog.records if "online kNN" in each.getMessage()]
    assert said == ["online kNN: k = 30, half of the 60 labelled images it compares with, not 200"]
    features, labels = clean(module, data, "val")
    scores = knn(features, *clean(module, data, "probe"), num_classes=3, k=30)
    assert float(metrics["val/knn_top1"]) == pytest.approx(float((scores.argmax(dim=1) == labels).float().mean()))
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="msssl"):
        fit([OnlineKNN(k=30)], tmp_path)
    assert "online kNN" not in caplog.text


def test_the_run_is_the_same_with_and_without(tmp_path):
    """Three epochs with dropout, and BatchNorm's statistics: bit for bit."""
    states = [fit(callbacks, tmp_path, epochs=3)[0].state_dict() for callbacks in ([], [RankMonitor(), OnlineKNN()])]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_collapse_is_said_with_its_step(tmp_path, caplog):
    constant = TensorDataset(torch.full((60, 3, 8, 8), 7, dtype=torch.uint8), torch.arange(60) % 3)
    with caplog.at_level(logging.WARNING, logger="msssl"):
        fit([RankMonitor()], tmp_path, val=constant, num_sanity_val_steps=2)
    assert "collapse at step 6: RankMe of z is 1.00 of 8" in caplog.text
    assert "collapse at step 0" not in caplog.text  # an untrained encoder may well be
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="msssl"):
        fit([RankMonitor()], tmp_path)
    assert "collapse" not in caplog.text


def methods():
    public = [getattr(msssl, name) for name in msssl.__all__]
    return [each for each in public if isinstance(each, type) and issubclass(each, MultiViewModule)][1:]


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.__name__)
def test_a_collapse_of_every_method_is_said(method, tmp_path, caplog):
    constant = TensorDataset(torch.full((60, 3, 8, 8), 7, dtype=torch.uint8), torch.arange(60) % 3)
    with caplog.at_level(logging.WARNING, logger="msssl"):
        fit([RankMonitor()], tmp_path, val=constant, method=method)
    assert "collapse at step 6: RankMe of z is 1.00 of 8" in caplog.text


def test_without_labels_neighbours_are_off_with_one_line(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="msssl"):
        _, _, metrics = fit([OnlineKNN(), RankMonitor()], tmp_path, train=images(60, False), val=images(31, False))
    assert "online kNN: off, the data has no labels" in caplog.text
    assert "val/knn_top1" not in metrics
    assert "val/rankme" in metrics


def test_the_pictures_are_in_tensorboard(tmp_path):
    fit([RankMonitor()], tmp_path, logger=TensorBoardLogger(tmp_path, name="", version=""))
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    (event,) = events.Images("correlation of z")
    assert (event.width, event.height, event.step) == (8, 8, 6)
    for name in ("eigenspectrum", "neighbours"):
        (event,) = events.Images(name)
        picture = torchvision.io.decode_image(
            torch.frombuffer(bytearray(event.encoded_image_string), dtype=torch.uint8)
        )
        assert event.step == 6
        assert picture[:3].float().std() > 10  # something is drawn


def test_pictures_are_of_the_first_each_nth_and_the_last_validation(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["msssl.callbacks.rank_monitor"], "PICTURES_EVERY", 3)
    fit([RankMonitor()], tmp_path, epochs=4, logger=TensorBoardLogger(tmp_path, name="", version=""))
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "scalars": 0}).Reload()
    for name in ("correlation of z", "eigenspectrum", "neighbours"):
        assert [event.step for event in events.Images(name)] == [6, 18, 24]
    assert len(events.Scalars("val/alpha")) == 4


def test_a_validation_decomposes_features_and_embeddings_once_each(tmp_path, monkeypatch):
    shapes = []
    eigenvalues = torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda gram: shapes.append(len(gram)) or eigenvalues(gram))
    monkeypatch.setattr(torch.linalg, "svdvals", lambda x: pytest.fail("a decomposition of all images"))
    fit([RankMonitor()], tmp_path, epochs=2, logger=TensorBoardLogger(tmp_path, name="", version=""))
    fit([RankMonitor()], tmp_path, epochs=2)  # without pictures
    assert sorted(shapes) == [8, 8, 8, 8, 12, 12, 12, 12]


def test_the_neighbours_drawn_are_the_nearest_of_the_other_images(tmp_path, monkeypatch):
    drawn = []
    module = sys.modules["msssl.callbacks.rank_monitor"]
    monkeypatch.setattr(module, "draw_neighbours", lambda axes, *given: drawn.append(given))
    fitted, data, _ = fit([RankMonitor()], tmp_path, logger=TensorBoardLogger(tmp_path, name="", version=""))
    ((queries, nearest, similarity),) = drawn
    features, _ = clean(fitted, data, "val")
    pixels = data.images("val")[range(31)]["image"]
    shown = [0, 6, 12, 18, 24, 30]
    assert torch.equal(queries, pixels[shown])
    cosine = torch.nn.functional.cosine_similarity(features[:, None], features[None], dim=2)[shown]
    cosine[:, shown] = -2
    expected = cosine.sort(dim=1, descending=True)
    assert torch.equal(nearest, pixels[expected.indices[:, :6]])
    assert torch.allclose(similarity, expected.values[:, :6], atol=1e-5)


@pytest.mark.parametrize(("dim", "at_most"), [(256, 10_000), (2048, 9_600), (8192, 2_300)])
def test_large_sets_are_looked_at_in_part(dim, at_most):
    stride = sys.modules["msssl.callbacks.rank_monitor"]._stride
    for n in (1_000, 50_000, 1_000_000):
        assert min(n, 1_000) <= -(-n // stride(n, dim)) <= at_most
    assert stride(1_000, dim) == 1


def test_a_part_is_the_same_images_for_any_number_of_ranks(tmp_path, monkeypatch):
    module = sys.modules["msssl.callbacks.rank_monitor"]
    monkeypatch.setattr(module, "MAX_ROWS", 12)
    fitted, data, metrics = fit([RankMonitor()], tmp_path)
    features, _ = clean(fitted, data, "val")
    assert float(metrics["val/alpha"]) == pytest.approx(float(alpha_req(features[::3])), rel=1e-4)


def test_ranks_with_uneven_shares_report_what_one_process_does(tmp_path, monkeypatch):
    """Two monitors see the even and the odd images; put together they are one."""
    features = torch.randn(31, 12).double()
    module = BarlowTwins(backbone=Encoder(), proj_dim=8).eval().double()
    logged = {}
    module.log = lambda name, value, **_: logged.setdefault(name, []).append(value)
    trainer = Trainer(accelerator="cpu", logger=False)

    def monitor(rows):
        callback = RankMonitor()
        for part in rows.split(7):
            with torch.no_grad():
                outputs = {"features": features[part], "index": part}
                callback.on_validation_batch_end(trainer, module, outputs, None, 0)
        return callback

    monitor(torch.arange(31)).on_validation_epoch_end(trainer, module)
    ranks = [monitor(torch.arange(rank, 31, 2)) for rank in (0, 1)]
    shares = [rank._rows for rank in ranks]
    gathering = sys.modules["msssl.callbacks.rank_monitor"]
    gather_rows = gathering.gather_rows
    monkeypatch.setattr(gathering, "gather_rows", lambda rows, on_first_rank_only: gather_rows(shares[0] + shares[1]))
    ranks[0].on_validation_epoch_end(trainer, module)
    for one, two in logged.values():
        assert two == pytest.approx(one, rel=1e-9)

    # The second rank has the rows of none, decomposes nothing, and logs what the first one has found.
    monkeypatch.setattr(gathering, "gather_rows", lambda rows, on_first_rank_only: ())
    monkeypatch.setattr(type(trainer.strategy), "is_global_zero", False)
    monkeypatch.setattr(trainer.strategy, "broadcast", lambda value: {"rankme": 3.0, "alpha": 1.5, "spread": 0.7})
    ranks[1]._rows = shares[1]
    logged.clear()
    ranks[1].on_validation_epoch_end(trainer, module)
    assert logged == {"val/rankme": [3.0], "val/alpha": [1.5], "val/spread": [0.7]}
