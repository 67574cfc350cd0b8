"""`msssl finetune`: what it measures and writes, how it stops and goes on, on ranks, and what it refuses."""

import copy
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from conftest import NARROW, fitted_in, load
from lightning import Trainer
from runner import output, run_of
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset
from torchvision import models
from torchvision.transforms.v2.functional import to_pil_image

from msssl import BarlowTwins, ImageFolder, MultiView, MultiViewDataModule, MultiViewModule, finetune
from msssl.evaluation.finetune.classifier import Classifier, LabelledImages
from msssl.evaluation.finetune.table import rows_of
from msssl.evaluation.probe import against
from msssl.evaluation.probe.few_labels import draw_share
from msssl.evaluation.probe.subject import open_subject
from msssl.run.head import read_head
from msssl.views import Preprocess

DATA = [f"--data.{option}" for option in ("train_images=160", "test_images=60", "val_fraction=0.4")]
TUNE = ["finetune", "--ckpt_path", "last", "--trainer.max_epochs=3", "--learning_rates", "0.001", "0.01"]
FEW = [*TUNE, "--labels_per_class=4", "--batch_size=16", "--draws=2", "--trainer.accelerator=cpu"]


def pretrained(runner, folder):
    assert runner(folder, "fit", "--config", "run.yaml", *DATA, "--trainer.max_steps=3") == 0, output(folder)


def report_in(folder):
    return json.loads((run_of(folder) / "finetune.json").read_text())


def without_times(value):
    if isinstance(value, dict):
        hidden = ("minutes", "seconds", "checkpoint", "data_dir")
        return {name: without_times(item) for name, item in value.items() if name not in hidden}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def tuned_state(folder):
    return torch.load(run_of(folder) / "finetuned.ckpt", weights_only=True)


def module_and_data(path):
    """What a checkpoint describes: the module in evaluation mode, and its data, set up."""
    data = MultiViewDataModule.from_checkpoint(torch.load(path, weights_only=True))
    data.setup()
    return MultiViewModule.load_from_checkpoint(path).eval(), data


@pytest.fixture(scope="module")
def once(runner):
    """A folder with a run that was fine-tuned without a disturbance."""
    folder = runner.folder("finetuned")
    pretrained(runner, folder)
    assert runner(folder, *FEW, "--against", "scratch") == 0, output(folder)
    return folder


@pytest.fixture
def importable(once, monkeypatch):
    """Makes the network of that run importable here."""
    monkeypatch.syspath_prepend(str(once))
    monkeypatch.setitem(sys.modules, "net", load(once / "net.py"))


@pytest.fixture
def again(once, folder):
    """A folder with the same run, before it was fine-tuned."""
    shutil.copytree(once / "runs", folder / "runs")
    for path in run_of(folder).glob("finetune*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


@pytest.mark.long
def test_the_same_command_gives_the_same_table(once, runner, again):
    assert runner(again, *FEW, "--against", "scratch") == 0, output(again)
    assert without_times(report_in(again)) == without_times(report_in(once))
    assert_close(tuned_state(again)["state_dict"], tuned_state(once)["state_dict"], rtol=0, atol=0)


@pytest.mark.long
@pytest.mark.parametrize(
    "point",
    [
        ("step", 4),
        ("step", 40),
        pytest.param(("save", 5), marks=pytest.mark.slow),
        pytest.param(("rename", 30), marks=pytest.mark.slow),
        ("SIGTERM", 25),
    ],
)
def test_stopped_and_started_again_it_gives_the_same_table(point, once, runner, again):
    first = runner(again, *FEW, "--against", "scratch", point=point)
    assert first == (143 if point[0] == "SIGTERM" else -9), output(again)
    if point[0] == "SIGTERM":
        assert "stopped: the same command goes on" in output(again)
    assert not (run_of(again) / "finetuned.ckpt").exists()
    assert runner(again, *FEW, "--against", "scratch") == 0, output(again)
    assert without_times(report_in(again)) == without_times(report_in(once))
    assert_close(tuned_state(again)["state_dict"], tuned_state(once)["state_dict"], rtol=0, atol=0)


@pytest.mark.long
def test_what_is_finished_is_not_trained_again_and_stays_in_the_table(once, runner, again):
    shutil.rmtree(again / "runs")
    shutil.copytree(once / "runs", again / "runs")
    before = {path: path.stat().st_mtime_ns for path in again.glob("runs/*/finetune/*/result.json")}
    more = [*TUNE, "--label_fraction=0.5", "--batch_size=16", "--draws=1", "--trainer.accelerator=cpu"]
    assert runner(again, *more) == 0, output(again)
    after = {path: path.stat().st_mtime_ns for path in again.glob("runs/*/finetune/*/result.json")}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1
    labels = [(row["labels"], row["start"]) for row in report_in(again)["rows"]]
    assert labels == [("4/class", "pretrained"), ("4/class", "scratch"), ("50 %", "pretrained")]


@pytest.mark.long
def test_accuracies_are_those_of_the_checkpoint_on_the_test_images(once, importable):
    path = run_of(once) / "finetuned.ckpt"
    module, data = module_and_data(path)
    head, classes = read_head(path, module.feature_dim)
    hits = []
    for batch in data.evaluation_dataloader("test"):
        with torch.no_grad():
            logits = head(module(module.preprocess.evaluate(batch["image"])))
        hits += (logits.argmax(dim=1) == batch["label"]).tolist()
    (result,) = [r for r in report_in(once)["results"] if r["start"] == "pretrained" and r["seed"] == 0]
    assert result["top1"] == pytest.approx(np.mean(hits), abs=1e-9)
    assert classes == [str(name) for name in report_in(once)["classes"]]
    assert result["n_labels"] == 4 * len(classes)
    best = max(result["fits"], key=lambda fit: fit["val_top1"])
    assert result["learning_rate"] == best["learning_rate"]


@pytest.mark.long
def test_the_linear_probe_beside_it_is_logistic_regression_on_the_same_images(once, importable):
    module, data = module_and_data(run_of(once) / "last.ckpt")

    def features(split):
        batches = list(data.evaluation_dataloader(split))
        x = torch.cat([module(module.preprocess.evaluate(batch["image"])) for batch in batches]).detach().double()
        return x.numpy(), torch.cat([batch["label"] for batch in batches]).numpy()

    x, y = features("probe")
    generator = torch.Generator().manual_seed(1)
    rows = []
    for label in range(10):  # the second draw
        of_class = torch.from_numpy((y == label).nonzero()[0])
        rows += of_class[torch.randperm(len(of_class), generator=generator)[:4]].tolist()
    x, y = x[rows], y[rows]
    mean, std = x.mean(axis=0), np.sqrt(x.var(axis=0) + 1e-12)
    val_x, val_y = features("val")
    test_x, test_y = features("test")
    scores = {}
    for weight_decay in (1.0, 0.1, 0.01, 0.001, 0.0001):
        peer = LogisticRegression(C=1 / (weight_decay * len(y)), max_iter=5000, tol=1e-8).fit((x - mean) / std, y)
        accuracy = peer.score((val_x - mean) / std, val_y)
        scores.setdefault(accuracy, peer.score((test_x - mean) / std, test_y))
    (result,) = [r for r in report_in(once)["results"] if r["start"] == "pretrained" and r["seed"] == 1]
    assert result["linear"]["top1"] == pytest.approx(scores[max(scores)], abs=1 / 60 + 1e-9)


@pytest.mark.long
def test_a_finetuned_checkpoint_is_a_classifier_in_one_onnx_file(once, importable, msssl, tmp_path):
    path = run_of(once) / "finetuned.ckpt"
    code, _, err = msssl("export", "--ckpt_path", path, "--format", "onnx", "--out", tmp_path / "onnx")
    assert code == 0, err
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    code, _, err = msssl("predict", "--ckpt_path", path, "--out", tmp_path / "classes.npz")
    assert code == 0, err
    predicted = np.load(tmp_path / "classes.npz")
    module, data = module_and_data(path)
    images = torch.cat([module.preprocess.evaluate(b["image"]) for b in data.evaluation_dataloader("test")])
    (logits,) = session.run(None, {"images": images.numpy()})
    assert [classes[i] for i in logits.argmax(axis=1)] == predicted["class"].tolist()
    assert "Fine-tuned on the labels of 40 images" in (tmp_path / "onnx" / "README.md").read_text()


@pytest.mark.long
def test_a_report_shows_the_table(once, msssl, tmp_path):
    code, out, err = msssl("report", run_of(once), "--out", tmp_path / "table")
    assert code == 0, err
    assert "scratch" in out
    assert "| pretrained | 4/class |" in (tmp_path / "table.md").read_text()


RANKS = """
seed_everything: 3
trainer: {accelerator: cpu, max_steps: 2, enable_progress_bar: false}
model:
  class_path: msssl.BarlowTwins
  init_args: {backbone: {class_path: ranks.Net}, proj_dim: 8}
data: {class_path: msssl.Shapes, init_args: {train_images: 160, test_images: 60, val_fraction: 0.4, batch_size: 16}}
"""
NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2), nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
"""


@pytest.mark.long
def test_ranks_train_as_one_process(runner, folder):
    (folder / "ranks.py").write_text(NET)
    (folder / "run.yaml").write_text(RANKS)
    assert runner(folder, "fit", "--config", "run.yaml") == 0, output(folder)
    command = ["finetune", "--ckpt_path", "last", "--trainer.precision=64-true", "--trainer.max_steps=5", "--draws=1"]
    command += ["--trainer.accelerator=cpu", "--batch_size=16", "--label_fraction=0.5"]
    states, tables = [], []
    for ranks in (1, 2):
        devices = [f"--trainer.devices={ranks}", f"--trainer.strategy={'ddp' if ranks > 1 else 'auto'}"]
        assert runner(folder, *command, *devices, ranks=ranks) == 0, output(folder)
        states.append(tuned_state(folder))
        tables.append(without_times(report_in(folder)["rows"]))
        for path in run_of(folder).glob("finetune*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    one, two = states
    assert tables[0] == tables[1]
    for name, expected in {**one["state_dict"], **{k: one["head"][k] for k in ("weight", "bias")}}.items():
        found, expected = {**two["state_dict"], **two["head"]}[name].double(), expected.double()
        assert (found - expected).norm() <= 1e-8 * expected.norm(), name


def images(n, n_classes=2, size=8):
    pixels = torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    return TensorDataset(pixels, torch.arange(n) % n_classes)


def data_of(*sets, **kwargs):
    given = {"batch_size": 8, "num_workers": 0, "views": MultiView(2, mean=(0.5,) * 3, std=(0.5,) * 3), **kwargs}
    return MultiViewDataModule.from_datasets(*sets, **given)


def test_a_fit_starts_as_the_linear_probe_and_changes_all_weights(tmp_path):
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Linear(4, 2)
    classifier = Classifier(copy.deepcopy(backbone), copy.deepcopy(head), 0.01)
    x = torch.rand(5, 3, 8, 8)
    assert_close(classifier.eval()(x), head(backbone.eval()(x)))
    data = data_of(images(16), images(24), images(24))
    data.setup()
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    )
    trainer.fit(classifier.train(), LabelledImages(data, torch.arange(16), 8, seed=0))
    before = {**{f"backbone.{k}": v for k, v in backbone.state_dict().items()}, "head.weight": head.weight}
    same = [name for name, value in before.items() if torch.equal(classifier.state_dict()[name], value)]
    assert not same  # the statistics of BatchNorm too


def test_training_images_are_the_drawn_ones_and_differ_from_epoch_to_epoch(tmp_path):
    data = data_of(images(16), images(24), images(24))
    data.setup()
    seen = []

    class Recording(Classifier):
        def training_step(self, batch, batch_idx):
            seen.append((batch["index"].tolist(), batch["views"]))
            return super().training_step(batch, batch_idx)

    rows = torch.tensor([1, 4, 6, 7])
    options = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    Trainer(**options, default_root_dir=tmp_path).fit(
        Recording(nn.Flatten(), nn.Linear(192, 2), 0.01), LabelledImages(data, rows, 64, seed=0)
    )
    assert [sorted(index) for index, _ in seen] == [rows.tolist()] * 2
    assert all(views.shape == (1, 4, 3, 8, 8) for _, views in seen)
    assert not torch.equal(
        seen[0][1].sum(dim=(0, 2, 3, 4)).sort().values, seen[1][1].sum(dim=(0, 2, 3, 4)).sort().values
    )


def test_shares_are_nested_and_have_an_image_of_each_class():
    labels = torch.tensor([0] * 30 + [-1] * 5 + [1] * 10 + [2])
    small, large = (draw_share(labels, share, seed=1) for share in (0.1, 0.5))
    assert labels[small].bincount().tolist() == [3, 1, 1]
    assert labels[large].bincount().tolist() == [15, 5, 1]
    assert set(small.tolist()) <= set(large.tolist())
    assert set(draw_share(labels, 0.1, seed=2).tolist()) != set(small.tolist())


def test_rows_are_means_over_draws_with_an_interval_from_four_on():
    def result(seed, top1):
        linear = {"top1": top1 - 0.1, "interval": [0.1, 0.2]}
        of_all = {
            "start": "scratch",
            "labels": "1/class",
            "n_labels": 2,
            "balanced": top1,
            "linear": linear,
            "protocol": "p",
        }
        return {
            **of_all,
            "seed": seed,
            "top1": top1,
            "interval": [0.3, 0.4],
            "learning_rate": 1e-3,
            "epoch": 2,
            "minutes": 1,
        }

    values = [0.5, 0.6, 0.7, 0.6]
    (row,) = rows_of(map(result, range(4), values))
    assert row["top1"]["mean"] == pytest.approx(0.6)
    half = 3.182446 * np.std(values, ddof=1) / 2  # Student's t, 3 degrees of freedom
    assert row["top1"]["interval"] == pytest.approx((0.6 - half, 0.6 + half), abs=1e-6)
    assert row["minutes"] == 4
    (row,) = rows_of(map(result, range(3), values))
    assert row["top1"]["interval"] is None
    (row,) = rows_of([result(0, 0.5)])
    assert row["top1"]["interval"] == (0.3, 0.4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a run on drawn shapes, with the architecture of torchvision's ResNet-18 at a width of 8."""
    folder = tmp_path_factory.mktemp("finetune")
    data = [f"--data.{option}" for option in ("train_images=60", "test_images=20", "val_fraction=0.4", "batch_size=16")]
    return fitted_in(folder, ["fit", "--config", "demo.yaml", *NARROW, *data, "--trainer.max_steps=1"])


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--labels_per_class=0"], "labels_per_class is 0: expected one image at least"),
        (["--labels_per_class=1000"], "labels_per_class is 1000, but class 0 has"),
        (["--label_fraction=1.5"], "label_fraction is 1.5: expected a share in (0, 1]"),
        (["--draws=0"], "draws is 0: expected at least 1"),
        (["--batch_size=0"], "batch_size is 0: expected at least 1"),
        (["--learning_rates", "0.1", "-1"], "learning_rates has -1.0: expected numbers above 0"),
        (["--against", "nothing.pth"], "weights nothing.pth is not a file"),
        (["--against", "torchvision:ResNet7"], "torchvision has no weights ResNet7"),
        (["--against", "timm:resnet7"], "timm has no weights 'resnet7'; did you mean timm:"),
        (["--trainer.max_epoch=2"], "no option trainer.max_epoch; did you mean trainer.max_epochs?"),
        (["--trainer.precision=7"], "trainer"),
    ],
)
def test_wrong_flags_end_in_one_line(flags, line, checkpoint, msssl):
    code, _, err = msssl("finetune", "--ckpt_path", checkpoint, *flags)
    assert code == 2
    assert line in err.splitlines()[-1]
    assert "Traceback" not in err


def test_several_data_sets_are_refused(checkpoint, msssl):
    code, _, err = msssl("finetune", "--ckpt_path", checkpoint, "--data", "cifar.yaml", "--data", "stl10.yaml")
    assert code == 2
    assert err.splitlines()[-1].endswith("finetune takes one data set: give --data once")


def test_files_that_do_not_fit_are_named(checkpoint, msssl, tmp_path):
    torch.save(models.resnet34().state_dict(), "wide.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name, line in (("wide.pth", "in the backbone ResNet"), ("text.pth", "text.pth cannot be read as a checkpoint")):
        code, _, err = msssl("finetune", "--ckpt_path", checkpoint, "--against", name)
        assert code == 2
        assert line in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("sets", "line"),
    [
        ((images(24), images(24)), "finetune reports on test images"),
        ((images(24), images(6), images(8)), "at least 20 labelled validation images"),
        ((images(24), images(24), images(24, n_classes=3)), "test has the label 2, which train has not"),
        ((images(24, n_classes=1), images(24, n_classes=1), images(24, n_classes=1)), "has one class"),
        ((TensorDataset(images(24).tensors[0], torch.full((24,), -1)), images(24), images(24)), "has"),
    ],
)
def test_data_that_cannot_be_measured_is_named(sets, line, checkpoint):
    with pytest.raises(ValueError, match=line):
        finetune(str(checkpoint), data=data_of(*sets))


def test_weights_of_torchvision_see_images_of_their_size(checkpoint, monkeypatch, tmp_path):
    """The stand-in for the download is where torch keeps it."""
    weights = models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    network = models.resnet18()
    (tmp_path / "checkpoints").mkdir()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / weights.url.rpartition("/")[2])
    subject = open_subject(str(checkpoint))
    encoder = against.encoder_of("torchvision:ResNet18_Weights.IMAGENET1K_V1", subject)
    batch = next(iter(encoder.data.evaluation_dataloader("test")))
    image = batch["image"][:2]
    prepared = encoder.data.preprocess.evaluate(image)
    assert_close(prepared, weights.transforms(antialias=True)(image), rtol=0, atol=0.04)  # which rounds to uint8 twice
    network.fc = nn.Identity()
    assert_close(encoder.backbone(prepared), network.eval()(prepared))
    assert subject.data.preprocess.image_size == (32, 32)  # that of the run is as it was


def test_weights_of_timm_see_images_as_timm_prepares_them(checkpoint, monkeypatch):
    """The stand-in for the download is a network with random weights; no weights can be downloaded here."""
    network = timm.create_model("resnet10t.c3_in1k", num_classes=0).eval()
    monkeypatch.setattr(against, "read_weights", lambda name: network.state_dict())
    encoder = against.encoder_of("timm:resnet10t.c3_in1k", open_subject(str(checkpoint)))
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**{**config, "interpolation": "bilinear"})
    batch = next(iter(encoder.data.evaluation_dataloader("test")))["image"][:2]
    prepared = encoder.data.preprocess.evaluate(batch)
    expected = torch.stack([transform(to_pil_image(image)) for image in batch])
    assert prepared.shape == expected.shape
    assert_close(prepared, expected, rtol=0, atol=0.06)  # Pillow rounds to 8 bits once more
    assert_close(encoder.backbone(prepared), network(prepared))


def test_images_of_a_folder_are_read_again_at_the_size_that_weights_want(image_folder, checkpoint):
    data = ImageFolder(str(image_folder), image_size=16, batch_size=2, num_workers=0)
    data.setup()
    wanted = Preprocess((0.5,) * 3, (0.5,) * 3, image_size=(24, 24), resize=24, crop=20)
    other = against.prepared(data, wanted)
    assert next(iter(other.evaluation_dataloader("probe")))["image"].shape[-2:] == (24, 24)
    assert next(iter(data.evaluation_dataloader("probe")))["image"].shape[-2:] == (16, 16)
    assert other.splits["probe"].indices.tolist() == data.splits["probe"].indices.tolist()


def test_a_run_in_python(tmp_path, capsys):
    module = BarlowTwins(backbone=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()))
    data = data_of(images(64), images(24), images(24))
    options = {"max_steps": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = Trainer(**options, default_root_dir=tmp_path, enable_checkpointing=False)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    model = BarlowTwins(backbone=copy.deepcopy(module.backbone))
    larger = data_of(*(images(n, size=12) for n in (64, 24, 24)))
    options = {"draws": 1, "learning_rates": [1e-3], "trainer": {"max_epochs": 1, "accelerator": "cpu"}}
    finetune(str(tmp_path / "last.ckpt"), data=larger, model=model, **options)
    assert "pretrained" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"trainer has max_epoch: expected arguments of lightning\.Trainer"):
        finetune(str(tmp_path / "last.ckpt"), data=larger, model=model, trainer={"max_epoch": 1})
    assert list(tmp_path.glob("finetune*.json"))
    assert list(tmp_path.glob("finetuned*.ckpt"))


@pytest.mark.parametrize("name", ["torchvision:ResNet18_Weights.IMAGENET1K_V1", "timm:resnet10t.c3_in1k"])
def test_weights_for_rgb_are_not_compared_on_images_of_other_channels(name):
    preprocess = Preprocess(mean=(0.5,) * 5, std=(0.25,) * 5, image_size=(32, 32))
    subject = SimpleNamespace(data=SimpleNamespace(preprocess=preprocess))
    with pytest.raises(ValueError, match=rf"against {name}: its images are RGB, and these have 5 channels"):
        against.encoder_of(name, subject)
