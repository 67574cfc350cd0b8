"""`msssl probe` on a tiny run: what it writes, what it reuses, what it refuses; and its heads of Adam."""

import hashlib
import importlib
import json
import logging
import shutil
import sys
import weakref

import numpy as np
import pytest
import torch
import yaml
from conftest import NARROW
from kornia import augmentation as K
from lightning import Trainer
from PIL import Image
from scipy import stats
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import msssl as package
from msssl import BarlowTwins, ImageFolder, MultiView, MultiViewDataModule, MultiViewModule, ResNet, Shapes
from msssl.cli import main
from msssl.cli.errors import user_message
from msssl.data.sets.shapes import FORMS, draw
from msssl.evaluation import probe
from msssl.evaluation.probe import adam, few_labels, heads, protocol, subject
from msssl.evaluation.probe.adam import mlp_probe, paper_probe
from msssl.evaluation.probe.features import extract, joined, load_or_extract
from msssl.evaluation.probe.few_labels import evaluate_few_labels
from msssl.evaluation.probe.heads import evaluate_as_the_paper
from msssl.evaluation.probe.picture import draw_report
from msssl.evaluation.probe.subject import open_subject
from msssl.evaluation.rebuild import data_of
from msssl.metrics import accuracy_interval, linear_probe
from msssl.run import files
from msssl.run.head import read_head
from msssl.views import RandomResizedCropFlip

probing = importlib.import_module("msssl.evaluation.probe.probe")  # its name in the package is the function's
IMAGES = {"train_images": 60, "test_images": 40, "val_fraction": 0.4, "batch_size": 16, "num_workers": 0}
FIT = [
    *("fit", "--config", "demo.yaml", *NARROW, "--model.proj_dim=16", "--trainer.max_epochs=2", "--seed_everything=3"),
    *(f"--data.{name}={value}" for name, value in IMAGES.items()),
    *("--data.views.augmentations=cifar", "--data.views.mean=auto", "--data.views.std=auto"),
    *("--model.optimizer.class_path=torch.optim.SGD", "--model.optimizer.init_args.lr=0.01"),
]
FEATURES = ["raw pixels", "untrained encoder", "pretrained encoder"]
SPLITS = ["probe", "val", "test"]


def quicken(patch):
    """Small pixels, short training of the MLP, no picture."""
    for module, name, value in (
        (probing, "PIXEL_SIZE", 4),
        (heads, "WEIGHT_DECAYS", (1.0, 1e-1)),
        (heads, "ROUNDS", 2),
        (heads, "DEFAULT_ROUNDS", 2),
        (adam, "MIN_STEPS", 2),
        (adam, "PAPER_EPOCHS", 2),
        (few_labels, "DEFAULT", 1.0),
        (probing, "draw_report", lambda *args: None),
    ):
        patch.setattr(module, name, value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of 2 epochs of 2 steps, on 40 images, and of a probe."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["msssl", *FIT])
        patch.setattr(sys, "path", [*sys.path])
        main()
        quicken(patch)
        run = next(folder.glob("runs/*"))
        probe(str(run))
    logging.getLogger("msssl").handlers.clear()
    return run


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    quicken(monkeypatch)
    return tmp_path / "run"


@pytest.fixture
def run(trained, place):
    """A copy of the run's folder in the working directory, not probed."""
    return shutil.copytree(trained, place, ignore=shutil.ignore_patterns("probe*", "features"))


@pytest.fixture
def kept(trained, place):
    """A copy of the folder with the report and features of a probe."""
    return shutil.copytree(trained, place)


@pytest.fixture
def extracted(monkeypatch):
    """Records each extraction: (what of, split, what the encoder saw, features)."""
    calls = []

    def recording(encoder, data, split, *args):
        seen = []

        def watched(images):
            seen.append(images)
            return encoder(images)

        x, y = extract(watched, data, split, *args)
        calls.append(("encoder" if isinstance(encoder, nn.Module) else "pixels", split, torch.cat(seen).cpu(), x.cpu()))
        return x, y

    monkeypatch.setattr(subject, "extract", recording)
    return calls


def probed(run, name="probe", ckpt="", **kwargs):
    """The report of a probe, as strict JSON."""
    probe(str(run / ckpt), **kwargs)
    (found,) = run.glob(f"{name}.json")
    return read(found)


def read(path):
    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}, which is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_random_weights_are_not_called_untrained_where_the_run_began_from_others(run):
    """Before a run that began from weights, its encoder was these."""
    change(run, lambda checkpoint: checkpoint["hyper_parameters"].update(weights="start.pt"))
    assert [row["features"] for row in probed(run)["rows"]] == ["raw pixels", "random encoder", "pretrained encoder"]


def change(run, edit, name="last.ckpt"):
    """Another checkpoint, after an edit of its content."""
    checkpoint = torch.load(run / name, weights_only=True)
    edit(checkpoint)
    torch.save(checkpoint, run / name)


def left_over(folder):
    return [path for path in folder.rglob("*") if ".tmp" in path.name]


def pictures(n, size=32, classes=10):
    labels = torch.arange(n) % classes
    return TensorDataset(draw(labels, size, torch.Generator().manual_seed(1)), labels)


def accuracy(head, split):
    return float((head(split[0]).argmax(dim=1) == split[1]).double().mean())


def made_of(*sets, **kwargs):
    return MultiViewDataModule.from_datasets(*sets, **{"batch_size": 8, "num_workers": 0, **kwargs})


def check_line(error, *expected):
    """One line with these parts, which the command line shows instead of a traceback."""
    message = str(error)
    assert message.splitlines() == [message]
    assert user_message(error) == " ".join(message.split())
    for part in expected:
        assert part in message


# The command.


def test_everything_is_written_and_told(run, msssl, monkeypatch, extracted):
    monkeypatch.setattr(probing, "draw_report", draw_report)
    before = {path.name for path in run.iterdir()}
    code, out, err = msssl("probe", "--ckpt_path", "run")
    assert code == 0, err
    assert {path.name for path in run.iterdir()} - before == {"probe.json", "probe.png", "probe.head.pt", "features"}
    assert not left_over(run)
    assert [call[:2] for call in extracted] == [
        *(("encoder", split) for split in SPLITS * 2),  # pretrained, untrained
        *(("pixels", split) for split in SPLITS),
    ]
    assert Image.open(run / "probe.png").size == (2250, 750)
    report, path = read(run / "probe.json"), run / "last.ckpt"
    assert report["checkpoint"] == "run/last.ckpt"
    assert report["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report["epoch"] == 1
    told = {name: report["run"][name] for name in ("method", "epochs", "steps", "images", "n_views", "views_seen")}
    expected = {"method": "msssl.BarlowTwins", "epochs": 2, "steps": 4, "images": 40, "n_views": 4}
    assert told == {**expected, "views_seen": 2 * 32 * 4}  # a short batch is dropped
    assert report["run"]["minutes"] > 0
    assert report["run"]["settings"]["model"]["proj_dim"] == 16
    assert report["run"]["settings"]["data"]["train_images"] == 60
    assert report["seeds"] == {"run": 3, "split": 0, "views": 0, "heads": 0}
    assert report["versions"].keys() == {"msssl", "torch", "torchvision", "lightning"}
    assert report["versions"]["torch"] == torch.__version__
    assert report["images"] == {"probe": 40, "val": 20, "test": 40}
    assert report["pretrained_on"] == 40
    assert report["classes"] == list(FORMS)
    assert (report["data_class"], report["transfer"]) == ("Shapes", False)
    assert report["data"].keys() == {"train", "test"}
    assert len(report["data_id"]) == 16
    assert (report["protocol_name"], report["test_patches"]) == ("standard", 1)
    assert (report["chosen_on"], report["reported_on"]) == ("val", "test")
    assert [row["features"] for row in report["rows"]] == FEATURES
    assert [row["dim"] for row in report["rows"]] == [48, 64, 64]
    for row in report["rows"]:
        assert f"{row['test_top1']:.3f}" in out
        assert sum(map(sum, row["test_confusion"])) == 40
    assert "written to run/probe.json, probe.png and probe.head.pt" in out
    # A report of runs takes it.
    code, out, err = msssl("report", "run")
    assert code == 0, err
    assert f"{report['rows'][-1]['test_top1']:.3f}" in (run.parent / "report.md").read_text()


@pytest.mark.parametrize("at_the_end", [True, False])
def test_minutes_and_epochs_are_those_of_the_checkpoint(kept, at_the_end):
    def edit(checkpoint):
        checkpoint["callbacks"]["Timer"]["time_elapsed"]["train"] = 90.0
        loop = checkpoint["loops"]["fit_loop"]
        loop["epoch_progress"]["current"].update(ready=7, completed=6)
        loop["epoch_loop.batch_progress"]["total"]["ready"] = 14
        loop["epoch_loop.batch_progress"]["is_last_batch"] = at_the_end

    change(kept, edit)
    of_run = open_subject(str(kept)).run()
    assert (of_run["minutes"], of_run["epochs"], of_run["views_seen"]) == (1.5, 6 + at_the_end, 14 * 16 * 4)


def test_the_head_and_accuracies_are_those_of_scikit_learn_on_features_by_hand(kept):
    row = read(kept / "probe.json")["rows"][-1]
    data = Shapes(**IMAGES)
    data.setup()
    batches = {name: data.images(name)[range(len(data.splits[name]))] for name in SPLITS}
    x = {name: by_hand(kept, batch["image"]) for name, batch in batches.items()}
    y = {name: batch["label"] for name, batch in batches.items()}
    fitted = torch.cat([x["probe"], x["val"]]).double()
    mean, std = fitted.mean(dim=0), fitted.std(dim=0, correction=0).clamp(min=1e-6)
    model = LogisticRegression(C=1 / (60 * row["weight_decay"]), tol=1e-9, max_iter=5000)
    model.fit(((fitted - mean) / std).numpy(), torch.cat([y["probe"], y["val"]]).numpy())
    expected = model.predict_proba(((x["test"].double() - mean) / std).numpy())
    head, classes = read_head(kept / "probe.head.pt", 64)
    assert classes == list(FORMS)
    assert head(x["test"]).softmax(dim=1).numpy() == pytest.approx(expected, abs=2e-3)
    assert row["test_top1"] == pytest.approx(accuracy(head, (x["test"], y["test"])))


def by_hand(run, images):
    """Features of uint8 images: normalised by the statistics of the 40 images of the pretraining, in float64."""
    data = Shapes(**IMAGES)
    data.setup()
    seen = data.images("train")[range(40)]["image"].double() / 255
    mean, std = (getattr(seen.transpose(0, 1).flatten(1), name)(dim=1).view(-1, 1, 1) for name in ("mean", "std"))
    module = MultiViewModule.load_from_checkpoint(run / "last.ckpt").eval()
    with torch.no_grad():
        return module(((images.double() / 255 - mean) / std).float())


def test_another_checkpoint_has_files_and_numbers_of_its_own(kept):
    last = read(kept / "probe.json")
    best = probed(kept, "probe-best", ckpt="best.ckpt")
    assert best["checkpoint"].endswith("run/best.ckpt")
    assert best["sha256"] == hashlib.sha256((kept / "best.ckpt").read_bytes()).hexdigest() != last["sha256"]
    assert best["run"]["steps"] == 2 * best["run"]["epochs"]
    assert best["data_id"] == last["data_id"]
    assert read(kept / "probe.json") == last
    assert {path.name for path in kept.glob("probe*")} == {
        *("probe.json", "probe.head.pt", "probe-best.json", "probe-best.head.pt")
    }


def test_a_checkpoint_of_weights_only_is_probed_alike(kept):
    """Lightning's `save_weights_only`: without optimizer and callbacks, hence without the run's clock."""
    before = read(kept / "probe.json")

    def edit(checkpoint):
        for name in ("callbacks", "optimizer_states", "lr_schedulers"):
            del checkpoint[name]

    change(kept, edit)
    after = probed(kept)
    assert after["rows"] == before["rows"]
    assert after["run"] == {**before["run"], "minutes": None}


# Features that are kept.


def test_a_second_probe_gives_the_same_and_asks_no_encoder(kept, extracted):
    first = read(kept / "probe.json")
    head = torch.load(kept / "probe.head.pt", weights_only=True)
    assert probed(kept) == {**first, "checkpoint": str(kept / "last.ckpt")}
    assert [call[:2] for call in extracted] == [("pixels", split) for split in SPLITS]
    again = torch.load(kept / "probe.head.pt", weights_only=True)
    assert all(torch.equal(again[name], head[name]) for name in ("weight", "bias"))


def test_damaged_features_are_extracted_anew(kept, extracted, caplog):
    path = sorted(kept.glob("features/*.pt"))[2]
    whole = torch.load(path, weights_only=True)
    path.write_bytes(path.read_bytes()[:1000])
    before = read(kept / "probe.json")["rows"]
    assert probed(kept)["rows"] == before
    assert [kind for kind, *_ in extracted].count("encoder") == 1
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"{path} is damaged: its features are extracted anew"]
    again = torch.load(path, weights_only=True)
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_one_encoders_features_are_in_memory_at_a_time(kept, monkeypatch):
    before = []

    def make(*args):
        assert not any(reference() is not None for reference in before)
        found = load_or_extract(*args)
        made.append(weakref.ref(found[0].untyped_storage()))
        return found

    def join(*args):
        before.extend(made[-3:])
        found = joined(*args)
        before.append(weakref.ref(found["probe"][0].untyped_storage()))
        return found

    made = []
    monkeypatch.setattr(subject, "load_or_extract", make)
    monkeypatch.setattr(probing, "joined", join)
    probe(str(kept))
    assert (len(made), len(before)) == (9, 12)  # three splits of three encoders, and each joined


@pytest.mark.parametrize(
    "content", [b"", b"no features", {"labels": torch.zeros(1)}, [1]], ids=["empty", "text", "labels only", "a list"]
)
def test_a_file_that_holds_no_features_is_written_anew(tmp_path, caplog, content):
    made = torch.rand(3, 2), torch.arange(3)
    load_or_extract(tmp_path / "features", "key", lambda: made)
    (path,) = (tmp_path / "features").iterdir()
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    for _ in range(2):
        found = load_or_extract(tmp_path / "features", "key", lambda: made)
        assert all(torch.equal(one, two) for one, two in zip(found, made, strict=True))
        assert [record.getMessage() for record in caplog.records] == [
            f"{path} is damaged: its features are extracted anew"  # once
        ]


def test_features_are_kept_by_their_key(tmp_path):
    made = []

    def make():
        made.append(len(made))
        return torch.full((2, 3), float(made[-1])), torch.arange(2)

    keys = ["a", "b", "a", "b", None, None]
    values = [float(load_or_extract(tmp_path / "features", key, make)[0][0, 0]) for key in keys]
    assert values == [0, 1, 0, 1, 2, 3]
    assert len(list(tmp_path.glob("features/*"))) == 2


def weight_name(checkpoint):
    return next(name for name, value in checkpoint["state_dict"].items() if value.ndim == 4)


def flip(run):
    change(run, lambda checkpoint: checkpoint["state_dict"][weight_name(checkpoint)].mul_(-1))


OTHERS = {  # what changes, and which splits are then extracted anew
    "weights": (flip, SPLITS),
    "val_fraction": (lambda run: Shapes(**IMAGES | {"val_fraction": 0.2}), ["probe", "val"]),
    "images": (lambda run: Shapes(**IMAGES, data_seed=1), SPLITS),
}


@pytest.mark.parametrize("other", OTHERS)
def test_features_of_something_else_are_not_taken(kept, extracted, other):
    edit, splits = OTHERS[other]
    before = read(kept / "probe.json")["rows"][-1]
    data = edit(kept)
    after = probed(kept, "probe-Shapes-*" if data else "probe", data=data)["rows"][-1]
    assert (after["alpha"], after["rankme"]) != (before["alpha"], before["rankme"])
    assert [split for kind, split, *_ in extracted if kind == "encoder"] == splits * 2


def test_features_of_images_decoded_at_another_size_are_not_taken(run, image_folder, extracted):
    """The same files, 8 and 32 pixels a side, both resized to the 32 of the pretraining."""
    for size in (8, 32):
        data = ImageFolder(str(image_folder), image_size=size, batch_size=8, num_workers=0, val_fraction=0.0)
        probe(str(run), data=data)
    assert [split for kind, split, *_ in extracted if kind == "encoder"] == ["probe", "test"] * 4


def test_images_decoded_at_another_size_are_other_images(run, image_folder):
    """Reports of the two must not stand in one table."""
    found = set()
    for size in (8, 32):
        data = ImageFolder(str(image_folder), image_size=size, batch_size=8, num_workers=0, val_fraction=0.0)
        found.add(open_subject(str(run), data).provenance()["data_id"])
    assert len(found) == 2


@pytest.mark.parametrize(
    ("stop", "error"),
    [("evaluate", KeyboardInterrupt), ("draw_report", RuntimeError)],
)
def test_a_probe_that_stops_leaves_no_report(run, monkeypatch, stop, error):
    def stopped(*args, **kwargs):
        raise error

    monkeypatch.setattr(probing, stop, stopped)
    with pytest.raises(error):
        probe(str(run))
    assert not list(run.glob("probe*.json"))
    assert not left_over(run)
    if stop == "evaluate":
        assert not list(run.glob("probe*"))
        assert len(list(run.glob("features/*.pt"))) == 3  # of the pretrained encoder: of use next time


def test_an_earlier_report_outlives_a_probe_that_stops(kept, monkeypatch):
    before = {path.name: path.read_bytes() for path in kept.glob("probe*")}
    monkeypatch.setattr(probing, "evaluate", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        probe(str(kept))
    assert {path.name: path.read_bytes() for path in kept.glob("probe*")} == before


# The paper's protocol.


def set_of(n, seed, classes=3, width=5):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = 2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    return centres[labels] + torch.randn(n, width, generator=generator), labels


def paper_by_hand(x, y, classes, weight_decay=1e-6):
    """200 steps of Adam on all rows, in float64, of cross-entropy with label smoothing 0.1."""
    torch.manual_seed(0)
    parameters = [each.detach().double().numpy() for each in nn.Linear(x.shape[1], classes).parameters()]
    x, y = x.double().numpy(), y.numpy()
    target = 0.9 * np.eye(classes)[y] + 0.1 / classes
    first, second = ([np.zeros_like(each) for each in parameters] for _ in range(2))
    for step in range(1, 201):
        logits = x @ parameters[0].T + parameters[1]
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = (p / p.sum(axis=1, keepdims=True) - target) / len(x)
        for i, gradient in enumerate((error.T @ x, error.sum(axis=0))):
            gradient = gradient + weight_decay * parameters[i]
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            root = np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8
            parameters[i] = parameters[i] - 1e-3 * first[i] / (1 - 0.9**step) / root
    return parameters


@pytest.mark.parametrize("weight_decay", [None, 1.0], ids=["its own", "a strong one"])
def test_the_papers_head_is_that_of_adam_by_hand(monkeypatch, weight_decay):
    if weight_decay is not None:
        monkeypatch.setattr(adam, "PAPER_WEIGHT_DECAY", weight_decay)
    x, y = set_of(60, 1)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    head = paper_probe((x, y), num_classes=3)
    assert torch.equal(torch.get_rng_state(), before)
    weight, bias = paper_by_hand(x, y, 3, weight_decay or 1e-6)
    assert head.weight.numpy() == pytest.approx(weight, abs=2e-4)
    assert head.bias.numpy() == pytest.approx(bias, abs=2e-4)


def test_the_papers_head_sees_every_row_once_an_epoch_in_batches_of_512(monkeypatch):
    batches, options, adam_of_torch = [], [], torch.optim.Adam

    class Recording(adam_of_torch):
        def __init__(self, parameters, **kwargs):
            options.append(kwargs)
            super().__init__(parameters, **kwargs)

    def recording(logits, labels, **kwargs):
        batches.append((labels, kwargs))
        return cross_entropy(logits, labels, **kwargs)

    monkeypatch.setattr(adam, "PAPER_EPOCHS", 3)
    cross_entropy = adam.F.cross_entropy
    monkeypatch.setattr(adam.F, "cross_entropy", recording)
    monkeypatch.setattr(torch.optim, "Adam", Recording)
    x = torch.randn(600, 2)
    labels = torch.arange(600)
    paper_probe((x, labels), num_classes=600)
    assert options == [{"lr": 1e-3, "weight_decay": 1e-6}]
    assert [len(rows) for rows, _ in batches] == [512, 88] * 3
    assert all(kwargs == {"label_smoothing": 0.1} for _, kwargs in batches)
    epochs = [torch.cat([first, second]) for (first, _), (second, _) in zip(batches[::2], batches[1::2], strict=True)]
    assert all(torch.equal(rows.sort().values, labels) for rows in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_the_papers_head_tells_classes_apart():
    x, y = set_of(90, 1)
    assert accuracy(paper_probe((20 * x, y), num_classes=3), (20 * x, y)) > 0.9


def test_the_papers_head_leaves_unlabelled_rows_out(monkeypatch):
    monkeypatch.setattr(adam, "PAPER_EPOCHS", 3)
    x, y = set_of(90, 1)
    more = torch.cat([x, torch.full((4, 5), 1e6)]), torch.cat([y, torch.full((4,), -1)])
    assert torch.equal(paper_probe(more, num_classes=3).weight, paper_probe((x, y), num_classes=3).weight)


def test_the_papers_head_is_fitted_on_train_and_val_where_there_is_a_test_split(monkeypatch):
    monkeypatch.setattr(adam, "PAPER_EPOCHS", 3)
    features = {"probe": set_of(30, 1), "val": set_of(24, 2), "test": set_of(45, 3)}
    both = tuple(torch.cat(parts) for parts in zip(features["probe"], features["val"], strict=True))
    found, head = evaluate_as_the_paper(features, 3)
    assert torch.equal(head.weight, paper_probe(both, num_classes=3).weight)
    assert found["test_top1"] == pytest.approx(accuracy(head, features["test"]))
    assert all(name.startswith("test_") for name in found)  # nothing is chosen
    del features["test"]
    found, head = evaluate_as_the_paper(features, 3)
    assert torch.equal(head.weight, paper_probe(features["probe"], num_classes=3).weight)
    assert found["val_top1"] == pytest.approx(accuracy(head, features["val"]))


def test_the_papers_protocol_has_16_patches_and_files_of_its_own(run, monkeypatch, msssl, extracted):
    assert protocol.Protocol("paper", None).test_patches == protocol.PAPER_PATCHES == 16
    monkeypatch.setattr(protocol, "PAPER_PATCHES", 3)
    code, out, err = msssl("probe", "--ckpt_path", "run", "--protocol", "paper")
    assert code == 0, err
    assert {path.name for path in run.glob("probe*")} == {"probe-paper.json", "probe-paper.head.pt"}
    report = read(run / "probe-paper.json")
    assert (report["protocol_name"], report["test_patches"], report["chosen_on"]) == ("paper", 3, None)
    assert "clean image and 2 views" in report["protocol"]
    assert not any({"val_top1", "weight_decay", "grid", "test_knn"} & row.keys() for row in report["rows"])
    assert {len(seen) for _, split, seen, _ in extracted if split == "test"} == {3 * 40}
    assert all(f"{row['test_top1']:.3f}" in out for row in report["rows"])


@pytest.mark.parametrize(
    ("of", "patches", "name"),
    [
        ("standard", None, "probe"),
        ("standard", 1, "probe"),
        ("standard", 3, "probe-3-patches"),
        ("paper", None, "probe-paper"),
        ("paper", 16, "probe-paper"),
        ("paper", 1, "probe-paper-1-patches"),
    ],
)
def test_names_tell_protocols_apart(of, patches, name):
    kind = protocol.Protocol(of, patches)
    assert "-".join(["probe", *kind.suffixes()]) == name


def test_patches_have_files_of_their_own_and_other_features(kept, msssl):
    before = read(kept / "probe.json")
    code, _, err = msssl("probe", "--ckpt_path", "run/last.ckpt", "--test_patches", "3")
    assert code == 0, err
    report = read(kept / "probe-3-patches.json")
    assert (report["protocol_name"], report["test_patches"], report["chosen_on"]) == ("standard", 3, "val")
    assert report["rows"][-1]["alpha"] != before["rows"][-1]["alpha"]
    assert read(kept / "probe.json") == before
    assert report["protocol"] != before["protocol"]


# Few labels.


def test_drawn_labels_are_balanced_nested_and_differ_over_seeds():
    labels = torch.randint(-1, 4, (400,), generator=torch.Generator().manual_seed(0))
    for seed in range(5):
        before = set()
        for count in (1, 2, 10, 50):
            rows = few_labels.draw(labels, count, seed)
            assert labels[rows].bincount(minlength=4).tolist() == [count] * 4
            assert len(set(rows.tolist())) == 4 * count
            assert before <= set(rows.tolist())
            before = set(rows.tolist())
    draws = {tuple(few_labels.draw(labels, 10, seed).tolist()) for seed in range(5)}
    assert len(draws) == 5


def students(values):
    """SciPy has no interval where the values are equal."""
    mean, error = np.mean(values), stats.sem(values)
    return stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error) if error else (mean, mean)


def test_few_labels_are_those_of_training_images_and_their_interval_is_students():
    features = {"probe": set_of(60, 1, width=2), "val": set_of(30, 2, width=2), "test": set_of(90, 3, width=2)}
    found = evaluate_few_labels(features, 3, [1, 4])
    poisoned = {**features, "val": (torch.full((30, 2), torch.nan), features["val"][1])}
    assert evaluate_few_labels(poisoned, 3, [1, 4]) == found
    assert list(found) == ["1", "4"]
    x, y = features["probe"]
    test_x, test_y = features["test"]
    for count, of_heads in found.items():
        expected = []
        for seed in range(5):
            rows = few_labels.draw(y, int(count), seed)
            head = linear_probe(x[rows], y[rows], num_classes=3, weight_decay=1e-2)
            expected.append(float((head(test_x).argmax(dim=1) == test_y).double().mean()))
        assert of_heads["linear"]["top1"] == pytest.approx(expected)
        for each in of_heads.values():
            assert len(each["top1"]) == 5
            assert each["mean"] == pytest.approx(np.mean(each["top1"]))
            assert each["interval"] == pytest.approx(students(each["top1"]))
    assert len(set(found["1"]["linear"]["top1"])) > 1


def test_few_labels_are_judged_on_val_without_a_test_split():
    features = {"probe": set_of(60, 1), "val": set_of(30, 2)}
    found = evaluate_few_labels(features, 3, [2])
    as_test = evaluate_few_labels({"probe": features["probe"], "test": features["val"]}, 3, [2])
    assert found == as_test


def test_too_few_images_are_named():
    labels = torch.tensor([0, 0, 1, 1, 2, -1])
    with pytest.raises(ValueError, match=r"labels_per_class is 2, but class 2 has 1 training image$") as error:
        few_labels.draw(labels, 2, 0)
    check_line(error.value)
    with pytest.raises(ValueError, match="labels_per_class is 0: expected one image at least") as error:
        few_labels.draw(labels, 0, 0)
    check_line(error.value)


def test_labels_per_class_on_the_command_line(kept, msssl):
    code, out, err = msssl("probe", "--ckpt_path", "run", "--labels_per_class", "1", "2")
    assert code == 0, err
    for row in read(kept / "probe.json")["rows"]:
        assert list(row["few_labels"]) == ["1", "2"]
        for count, of_heads in row["few_labels"].items():
            assert f"{count} a class, linear" in out
            assert f"{of_heads['linear']['mean']:.3f}" in out
            assert all(round(40 * value, 6) % 1 == 0 for value in of_heads["linear"]["top1"])


def test_few_labels_stay_in_the_report(kept, msssl):
    found = []
    for counts in (["1"], [], ["2"]):
        flags = ["--labels_per_class", *counts] if counts else []
        code, out, err = msssl("probe", "--ckpt_path", "run", *flags)
        assert code == 0, err
        assert "1 a class, linear" in out
        found.append([row["few_labels"] for row in read(kept / "probe.json")["rows"]])
    first, second, third = found
    assert second == first
    assert [list(each) for each in third] == [["1", "2"]] * 3
    assert [{"1": each["1"]} for each in third] == first


def test_few_labels_of_another_checkpoint_do_not_stay(kept, msssl):
    assert msssl("probe", "--ckpt_path", "run", "--labels_per_class", "1")[0] == 0
    report = read(kept / "probe.json")
    (kept / "probe.json").write_text(json.dumps({**report, "sha256": "of another"}))
    assert msssl("probe", "--ckpt_path", "run")[0] == 0
    assert not any("few_labels" in row for row in read(kept / "probe.json")["rows"])


# Other sets.


def test_images_of_another_set_are_resized_and_normalised_as_in_the_pretraining(kept, msssl, extracted):
    own = read(kept / "probe.json")
    before = (kept / "probe.json").read_bytes()
    options = {"image_size": 40, "data_seed": 5, "val_fraction": 0.4, "train_images": 60, "num_workers": 0}
    config = {"data": {"class_path": "Shapes", "init_args": options}, "model": {"class_path": "nowhere.Nothing"}}
    (kept.parent / "other.yaml").write_text(yaml.safe_dump({**config, "trainer": {"absent": 3}}))
    code, _, err = msssl("probe", "--ckpt_path", "run", "--config", "other.yaml", "--data.test_images=30")
    assert code == 0, err
    (other,) = kept.glob("probe-Shapes-*.json")
    names = {"probe.json", "probe.head.pt", other.name, other.with_suffix(".head.pt").name}
    assert {path.name for path in kept.glob("probe*")} == names
    assert (kept / "probe.json").read_bytes() == before
    report = read(next(kept.glob("probe-Shapes-*.json")))
    assert (report["transfer"], report["images"]["test"]) == (True, 30)
    assert report["data_id"] != own["data_id"]
    assert report["run"] == own["run"]
    images = Shapes(train_images=60, test_images=30, image_size=40, data_seed=5).dataset("test").tensors[0]
    resized = torch.stack(
        [torch.from_numpy(np.asarray(Image.fromarray(each).resize((32, 32), Image.Resampling.BILINEAR)).copy())
         for each in images.permute(0, 2, 3, 1).numpy()]
    ).permute(0, 3, 1, 2)  # fmt: skip
    checkpoint = torch.load(kept / "last.ckpt", weights_only=True)
    mean, std = (torch.tensor(checkpoint["Shapes"][name]).view(-1, 1, 1) for name in ("mean", "std"))
    kind, split, seen, features = extracted[2]  # of the pretrained encoder, which comes first
    assert (kind, split) == ("encoder", "test")
    assert seen.shape == (30, 3, 32, 32)
    off = (255 * (seen * std + mean) - resized).abs()  # Pillow rounds after each of two passes
    assert off.max() < 2.01
    assert off.mean() < 0.3
    pixels = ((seen * std + mean) * 255).round().to(torch.uint8)
    assert features.numpy() == pytest.approx(by_hand(kept, pixels).numpy(), rel=1e-4, abs=1e-3)


def test_another_number_of_classes(run, image_folder, extracted):
    data = ImageFolder(str(image_folder), image_size=20, batch_size=8, num_workers=0, val_fraction=0.25)
    report = probed(run, "probe-ImageFolder-*", data=data, labels_per_class=[1])
    assert report["classes"] == ["cat", "dog"]
    assert report["images"] == {"probe": 18, "val": 6, "test": 8, "cv": 24}
    assert report["transfer"]
    assert report["chosen_on"] == "cv"  # val has 6 images
    assert report["run"]["images"] == 40
    assert all(np.shape(row["test_confusion"]) == (2, 2) for row in report["rows"])
    assert all(row["test_top5"] == 1 for row in report["rows"])
    assert read_head(next(run.glob("probe-ImageFolder-*.head.pt")), 64)[0].out_features == 2
    assert {tuple(seen.shape[1:]) for _, _, seen, _ in extracted} == {(3, 32, 32)}


def test_sets_in_folders_of_one_name_have_reports_of_their_own(run, image_folder):
    """Such as pets/images and cars/images: the second must not replace the first."""
    for parent in ("pets", "cars"):
        folder = shutil.copytree(image_folder, run.parent / parent / "images")
        Image.new("RGB", (40, 40), (parent == "pets" and "red") or "blue").save(folder / "train" / "cat" / "0.png")
        probe(str(run), data=ImageFolder(str(folder), image_size=32, batch_size=8, num_workers=0, val_fraction=0.0))
    assert len(list(run.glob("probe-*.json"))) == 2


@pytest.mark.parametrize("how", [["--config", "cifar.yaml"], ["--data", "CIFAR10"]], ids=["config", "name"])
def test_another_set_by_a_shipped_config_or_its_name(run, msssl, cifar10_folder, how):
    options = ["--data.data_dir", cifar10_folder, "--data.num_workers=0", "--data.val_fraction=0.2"]
    code, _, err = msssl("probe", "--ckpt_path", "run", *how, *options)
    assert code == 0, err
    report = read(next(run.glob("probe-CIFAR10-*.json")))
    assert (report["data_class"], report["transfer"]) == ("CIFAR10", True)
    assert report["images"] == {"probe": 32, "val": 8, "test": 8, "cv": 40}
    assert report["classes"] == [f"class{i}" for i in range(10)]
    assert report["run"]["method"] == "msssl.BarlowTwins"


# The MLP.


def xor(n, seed, noise=0.2):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(2, (n, 2), generator=generator)
    return 2 * corner - 1 + noise * torch.randn(n, 2, generator=generator), corner.sum(dim=1) % 2


def test_the_mlp_learns_what_no_linear_head_can():
    train, test = xor(400, 1), xor(400, 2)
    head, rounds, found = mlp_probe(train, num_classes=2, rounds=8)
    assert (rounds, found) == (8, None)
    assert accuracy(head, test) > 0.95
    assert accuracy(linear_probe(*train, num_classes=2), test) < 0.8


def test_the_mlp_is_the_same_each_time_and_draws_nothing_from_the_global_state():
    train = xor(50, 1)
    before = torch.get_rng_state()
    first = mlp_probe(train, num_classes=2, rounds=2)[0].state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    second = mlp_probe(train, num_classes=2, rounds=2)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_rounds_of_the_mlp_are_those_that_were_best_on_val(monkeypatch):
    monkeypatch.setattr(adam, "MIN_STEPS", 10)
    train, val = xor(60, 1, noise=1.0), xor(10, 2, noise=1.0)  # few: there are ties
    _, best, found = mlp_probe(train, num_classes=2, val=val)
    each = [accuracy(mlp_probe(train, num_classes=2, rounds=n)[0], val) for n in range(1, best + 6)]
    assert 1 < best < 35
    assert found == pytest.approx(max(each))
    assert each.index(max(each)) == best - 1  # the first of the best, and none better within the patience


def test_the_mlp_takes_any_scale_of_features():
    """They are standardised by the training rows: a factor and an offset change nothing but rounding."""
    train, test = xor(200, 1), xor(200, 2)
    plain = mlp_probe(train, num_classes=2, rounds=2)[0](test[0])
    scaled = mlp_probe((64 * train[0] + 1024, train[1]), num_classes=2, rounds=2)[0](64 * test[0] + 1024)
    assert scaled.numpy() == pytest.approx(plain.numpy(), abs=0.02)


@pytest.mark.parametrize("n", [1, 257])
def test_a_batch_of_the_mlp_may_have_one_row(n):
    x, y = xor(n, 1)
    head = mlp_probe((x, y), num_classes=2, rounds=4)[0]
    assert head(x).isfinite().all()
    assert accuracy(head, (x, y)) > 0.9


def test_the_mlp_leaves_unlabelled_rows_out():
    (x, y), val = xor(60, 1), xor(30, 2)
    more = torch.cat([torch.full((3, 2), 1e6), x]), torch.cat([torch.full((3,), -1), y])
    val_more = torch.cat([val[0], x]), torch.cat([val[1], torch.full((60,), -1)])
    one, *chosen = mlp_probe((x, y), num_classes=2, rounds=3, val=val)
    two, *chosen_too = mlp_probe(more, num_classes=2, rounds=3, val=val_more)
    assert chosen == chosen_too
    assert torch.equal(one(x), two(x))


# What is wrong is said in one line.


class Plain(Dataset):
    """Images without a fingerprint; without `targets` the labels are not known."""

    def __init__(self, dataset, targets=None):
        self.dataset = dataset
        if targets is not None:
            self.targets = targets

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index][0], -1 if not hasattr(self, "targets") else self.targets[index]


def test_features_of_images_that_cannot_be_told_apart_are_not_kept(run):
    data = made_of(Plain(pictures(20), [i % 10 for i in range(20)]), pictures(20))
    report = probed(run, "probe-FromDatasets*", data=data)
    assert report["data_id"] is None
    assert report["data"]["train"] is None
    assert len(list(run.glob("features/*.pt"))) == 2  # of val, which can be


def test_a_set_without_labels_cannot_be_probed(run):
    with pytest.raises(ValueError, match="has no labels") as error:
        probe(str(run), data=made_of(Plain(pictures(20))))
    check_line(error.value, "run/last.ckpt cannot be probed: FromDatasets in data has no labels")


def test_a_set_of_one_class_cannot_be_probed(run):
    with pytest.raises(ValueError, match="one class") as error:
        probe(str(run), data=made_of(pictures(20, classes=1)))
    check_line(error.value, "run/last.ckpt cannot be probed: FromDatasets in data has one class")


def test_a_set_with_neither_test_nor_val_cannot_be_probed(run):
    with pytest.raises(ValueError, match="val_fraction is 0") as error:
        probe(str(run), data=made_of(pictures(20), val_fraction=0.0))
    check_line(error.value, "a probe needs labelled test or validation images, and FromDatasets in data has none")
    one_each = made_of(pictures(10))  # none of which can be held out
    with pytest.raises(ValueError, match="there are too few to hold some out") as error:
        probe(str(run), data=one_each)
    check_line(error.value)


def test_a_test_split_without_labels_is_left_out_and_said(run, caplog):
    data = made_of(pictures(100), None, Plain(pictures(10)), val_fraction=0.2)
    report = probed(run, "probe-FromDatasets*", data=data, baselines=False)
    assert "FromDatasets in data has no labels in test: nothing is measured there" in caplog.text
    assert report["images"] == {"probe": 80, "val": 20}
    assert (report["chosen_on"], report["reported_on"]) == ("val", "val")


def test_without_a_test_split_val_is_reported(run, monkeypatch):
    monkeypatch.setattr(probing, "draw_report", draw_report)  # without a confusion matrix
    report = probed(run, "probe-FromDatasets*", data=made_of(pictures(40), val_fraction=0.5))
    assert (report["reported_on"], report["chosen_on"]) == ("val", "val")
    assert "there is no test split, and val chose" in report["protocol"]
    assert report["images"] == {"probe": 20, "val": 20}
    assert not [name for row in report["rows"] for name in row if "test" in name]
    assert all(0 <= row["val_top1"] <= 1 for row in report["rows"])
    assert len(list(run.glob("probe-FromDatasets*.png"))) == 1


@pytest.mark.parametrize(
    ("of", "splits", "n_val", "chosen_on", "reported_on"),
    [
        ("standard", SPLITS, 20, "val", "test"),
        ("standard", SPLITS, 19, None, "test"),
        ("standard", ["probe", "test"], 0, None, "test"),
        ("standard", ["probe", "val"], 20, "val", "val"),
        ("standard", ["probe", "val"], 19, None, "val"),
        ("paper", SPLITS, 20, None, "test"),
        ("paper", ["probe", "val"], 20, None, "val"),
    ],
)
def test_the_protocol_tells_what_chose_and_what_is_reported(of, splits, n_val, chosen_on, reported_on):
    val = torch.cat([torch.zeros(n_val, dtype=torch.long), torch.full((9,), -1)])  # and 9 without a label
    features = {name: (torch.zeros(1, 1), val if name == "val" else torch.zeros(30).long()) for name in splits}
    described = protocol.Protocol(of, None).described(features)
    assert (described["chosen_on"], described["reported_on"]) == (chosen_on, reported_on)
    assert ("chosen on val" in described["protocol"]) == (chosen_on == "val")
    assert ("test read once" in described["protocol"]) == (reported_on == "test")
    assert ("train + val" in described["protocol"]) == (splits == SPLITS)
    if chosen_on is None:
        assert "val chose" not in described["protocol"]
        assert "chosen likewise" not in described["protocol"]


def test_where_val_is_too_small_cross_validation_chooses(run, caplog):
    report = probed(run, "probe-FromDatasets*", data=made_of(pictures(40), pictures(3), pictures(20)))
    assert "fewer than 20 labelled validation images: cross-validation chooses the weight decay" in caplog.text
    assert report["images"] == {"probe": 40, "val": 3, "test": 20, "cv": 43}
    assert (report["chosen_on"], report["reported_on"]) == ("cv", "test")
    assert "chosen by cross-validation (5 folds of the labelled images of train + val), refitted" in report["protocol"]
    for row in report["rows"]:
        assert row["mlp_rounds"] == heads.DEFAULT_ROUNDS
        assert row["grid"].keys() == {"1.0", "0.1"}
        assert row["grid"][str(row["weight_decay"])] == row["cv_top1"] == max(row["grid"].values())


class Patients(Dataset):
    """Five images of each of some patients, who are of one class each."""

    def __init__(self, n):
        self.groups = [f"patient {i // 5}" for i in range(n)]
        self.targets = [i // 5 % 2 for i in range(n)]
        self.images = pictures(n)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.images[index][0], self.targets[index]


def test_few_patients_without_a_test_split_are_cross_validated(run, msssl, monkeypatch):
    monkeypatch.setattr(probing, "draw_report", draw_report)
    report = probed(run, "probe-FromDatasets*", data=made_of(Patients(50)), baselines=False)
    assert report["images"] == {"probe": 40, "val": 10, "cv": 50}
    assert (report["chosen_on"], report["reported_on"]) == ("cv", "cv")
    for part in ("no group in two folds", "that of the cross-validation", "95 % interval of 10 groups"):
        assert part in report["protocol"]
    (row,) = report["rows"]
    assert row["cv_interval"] == list(accuracy_interval(round(10 * row["cv_top1"]), 10))
    code, out, err = msssl("report", "run")  # which takes that accuracy
    assert code == 0, err
    assert "cross-validation: 50 images" in out
    assert f"{row['cv_top1']:.3f}" in out


def test_features_that_are_not_finite_stop_the_probe(run):
    def edit(checkpoint):
        checkpoint["state_dict"][weight_name(checkpoint)].view(-1)[0] = torch.nan

    change(run, edit)
    with pytest.raises(ValueError, match="not finite") as error:
        probe(str(run))
    check_line(error.value, "features of 40 of 40 images of probe are not finite")
    assert not list(run.glob("probe*"))
    assert not list(run.glob("features/*"))  # it is the first to be evaluated, before hours with the others


class Trap:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return exec, (f"open({self.path!r}, 'w').close()",)


def break_checkpoint(run, name):
    """A file in the working directory that is no checkpoint to probe."""
    path = run.parent / name
    whole = (run / "last.ckpt").read_bytes()
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    untrusted = {"_class_path": "untrusted_module.X"}
    content = {
        "list.ckpt": [1, 2],
        "weights.ckpt": {"weights": torch.zeros(2)},
        "foreign.ckpt": {"state_dict": checkpoint["state_dict"]},
        "trap.ckpt": {**checkpoint, "more": Trap(run.parent / "sprung")},
        "untrusted_data.ckpt": {**checkpoint, "datamodule_hyper_parameters": untrusted},
        "untrusted_module.ckpt": {**checkpoint, "hyper_parameters": untrusted},
    }
    if name in content:
        torch.save(content[name], path)
    elif name == "empty":
        path.mkdir()
    elif name != "absent.ckpt":
        path.write_bytes(whole[: len(whole) // 2] if name == "cut.ckpt" else b"no checkpoint")


BROKEN = {
    "absent.ckpt": "absent.ckpt is not a file",
    "empty": "empty/last.ckpt is not a file",
    "cut.ckpt": "cut.ckpt cannot be read as a checkpoint: ",
    "text.ckpt": "text.ckpt cannot be read as a checkpoint: ",
    "trap.ckpt": "trap.ckpt cannot be read as a checkpoint: ",
    "list.ckpt": "list.ckpt is not a checkpoint: it holds a list",
    "weights.ckpt": "weights.ckpt is not the checkpoint of a training run: it holds no state_dict",
    "foreign.ckpt": "foreign.ckpt",
    "untrusted_data.ckpt": "the checkpoint names untrusted_module.X, which is not imported",
    "untrusted_module.ckpt": "the checkpoint names untrusted_module.X, which is not imported",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_one_line_and_runs_no_code(run, msssl, monkeypatch, name):
    break_checkpoint(run, name)
    (run.parent / "elsewhere").mkdir()
    (run.parent / "elsewhere" / "untrusted_module.py").write_text("def X(*args, **kwargs): pass")
    monkeypatch.syspath_prepend(run.parent / "elsewhere")
    before = sorted(run.parent.rglob("*"))
    code, _, err = msssl("probe", "--ckpt_path", name)
    check_last_line(code, err, BROKEN[name])
    assert not (run.parent / "sprung").exists()
    assert "untrusted_module" not in sys.modules
    assert sorted(run.parent.rglob("*")) == before


WRONG = {  # arguments after `probe`: what the one line says
    "": "ckpt_path",
    "--ckpt_path last": "there is no last.ckpt below runs",
    "--ckpt_path run --protocol best": "protocol: expected standard, paper, got best",
    "--ckpt_path run --test_patches 0": "test_patches is 0: expected the clean image at least, 1",
    "--ckpt_path run --test_patches many": "test_patches: expected int",
    "--ckpt_path run --test_patch 3": "no option test_patch; did you mean test_patches?",
    "--ckpt_path run --labels_per_class 5": "labels_per_class is 5, but class 0 has 4 training images",
    "--ckpt_path run --labels_per_class two": "two",
    "--ckpt_path run --data Shape": "did you mean Shapes?",
    "--ckpt_path run --data ImageFolder --data.data_dir absent": "absent is not a folder",
    "--ckpt_path run --config nowhere.yaml": "config nowhere.yaml is neither here nor among those that ship",
    "--ckpt_path run --config without.yaml": "config without.yaml names no data",
    "--ckpt_path run --config resnet50.yaml": "resnet50.yaml names no data",
    "--ckpt_path run --config broken.yaml": "broken.yaml",
}


@pytest.mark.parametrize("args", WRONG)
def test_a_wrong_argument_is_one_line(run, msssl, args):
    (run.parent / "without.yaml").write_text("trainer: {max_epochs: 1}\n")
    (run.parent / "broken.yaml").write_text("data: [1\n")
    code, _, err = msssl("probe", *args.split())
    check_last_line(code, err, WRONG[args])
    assert not list(run.glob("probe*"))
    assert not left_over(run)


def check_last_line(code, err, expected):
    last = err.strip().splitlines()[-1]
    assert code == 2, err
    assert last.startswith("msssl: error: ")
    assert expected in last
    assert "Traceback" not in err


# Runs of scripts, whose images and views no command can know.

LABELLED = {"train_images": 40, "test_images": 20, "val_fraction": 0.2, "batch_size": 16, "num_workers": 0}


class Summed(nn.Module):
    """A backbone of the user's own class."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 5, stride=4)

    def forward(self, images):
        return self.conv(images).relu().sum(dim=(2, 3))


def from_script(folder, name, **parts):
    """The checkpoint of a run of a script, and its data sets."""
    images = [Shapes(train_images=40, test_images=20).dataset(split) for split in ("train", "test")]
    views = parts.pop("views", MultiView(2, [RandomResizedCropFlip((32, 32))], mean=(0.1, 0.2, 0.3)))
    own = {"batch_size": 8, "num_workers": 0, "val_fraction": 0.2, "views": views}
    data = MultiViewDataModule.from_datasets(images[0], test_dataset=images[1], **own)
    module = BarlowTwins(proj_dim=8, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1), **parts)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, **quiet)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(folder / name)
    return folder / name


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quicken(monkeypatch)
    return from_script(tmp_path, "script.ckpt", backbone=ResNet(18, width=8))


def test_a_run_of_a_script_says_that_its_images_are_not_known(script, msssl):
    code, out, err = msssl("probe", "--ckpt_path", "script.ckpt")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("msssl: error: script.ckpt does not say where its images are")
    for part in (
        "train_dataset, test_dataset",
        "--config OTHER.yaml",
        "--data",
        "msssl.probe('script.ckpt', data=...)",
    ):
        assert part in line


def test_a_run_of_a_script_is_probed_on_images_that_are_named(script, msssl):
    flags = [f"--data.{name}={value}" for name, value in LABELLED.items()]
    code, _, err = msssl("probe", "--ckpt_path", "script.ckpt", "--data", "Shapes", *flags, "--test_patches", "2")
    assert code == 0, err
    (written,) = script.parent.glob("probe-script-Shapes-*.json")
    of_command = json.loads(written.read_text())
    run = of_command["run"]
    assert (run["n_views"], run["steps"], run["images"], run["views_seen"]) == (
        2,
        1,
        30,
        16,
    )  # one of each class is held out
    assert of_command["transfer"] is True
    written.unlink()
    package.probe("script.ckpt", data=Shapes(**LABELLED), test_patches=2)  # the same from Python
    of_python = json.loads(written.read_text())
    assert of_python["rows"] == of_command["rows"]


def test_a_run_whose_images_and_lists_are_gone(image_folder, monkeypatch, tmp_path):
    """Transfer, export and prediction need its checkpoint alone; a probe on its own images names what is missing."""
    monkeypatch.chdir(tmp_path)
    quicken(monkeypatch)
    rows = [f"{path.relative_to(image_folder)},{path.parent.name}" for path in sorted(image_folder.rglob("*.png"))]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    lists = {"manifest": "list.csv", "classes": "names.txt"}
    data = ImageFolder("images", **lists, batch_size=8, num_workers=0, views=MultiView(2, mean="auto"))
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, **quiet)
    module = BarlowTwins(backbone=ResNet(18, width=8), proj_dim=8)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint("run.ckpt")
    for path in lists.values():
        (tmp_path / path).unlink()
    shutil.rmtree(image_folder)
    with pytest.raises(FileNotFoundError, match=r"classes names\.txt is not a file"):
        package.probe("run.ckpt")
    package.probe("run.ckpt", data=Shapes(**LABELLED), test_patches=2)
    package.export("run.ckpt", out="out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["mean"] == pytest.approx(data.views.mean)
    assert config["mean"] != pytest.approx(MultiView(2).mean)
    assert "ImageFolder" in (tmp_path / "out" / "README.md").read_text()
    other = Shapes(**LABELLED)
    (batch, *_) = trainer.predict(MultiViewModule.load_from_checkpoint("run.ckpt"), datamodule=other)
    images = module.preprocess.evaluate(other.datasets["test"].tensors[0][: len(batch["features"])])
    with torch.no_grad():
        torch.testing.assert_close(batch["features"], module.eval()(images))


def test_images_are_prepared_as_the_run_did(script):
    data = Shapes(**LABELLED, views=MultiView(2, "grayscale", mean="auto", std="auto"))
    subject = open_subject(str(script), data)
    batch = next(iter(data.evaluation_dataloader("test")))
    expected = batch["image"] / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    found = data.on_after_batch_transfer(batch)["image"] * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(found, expected)
    assert subject.preprocess.n_views == 2


def test_a_backbone_of_ones_own_class_is_given_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quicken(monkeypatch)
    views = MultiView(2, [K.RandomHorizontalFlip()])
    path = str(from_script(tmp_path, "own.ckpt", backbone=Summed(), views=views).name)
    with pytest.raises(ValueError, match=r"^own\.ckpt does not hold the backbone .* --model\.backbone\.class_path"):
        probe(path, Shapes(**LABELLED))
    with pytest.raises(ValueError, match=r"^own\.ckpt does not hold the views of its run"):
        probe(path, Shapes(**LABELLED), test_patches=2, model=BarlowTwins(backbone=Summed(), proj_dim=8))
    with pytest.raises(ValueError, match=r"^own\.ckpt: the weights do not fit BarlowTwins: "):
        probe(path, Shapes(**LABELLED), model=BarlowTwins(backbone=Summed(), proj_dim=4))
    loaded = MultiViewModule.load_from_checkpoint(
        path, backbone=Summed(), optimizer=lambda parameters: torch.optim.SGD(parameters)
    )
    for model in (BarlowTwins(backbone=Summed(), proj_dim=8), loaded):  # the weights that it comes with do not matter
        subject = open_subject(path, Shapes(**LABELLED), model)
        expected = files.read(path)["state_dict"]
        assert all(torch.equal(value, expected[name]) for name, value in subject.module.state_dict().items())
        random = subject.with_random_weights().state_dict()
        assert not torch.equal(random["backbone.conv.weight"], expected["backbone.conv.weight"])
    torch.testing.assert_close(loaded.state_dict(), expected, rtol=0, atol=0)


def test_a_run_on_another_library_s_data_module_is_probed_on_images_that_are_named(script, caplog):
    checkpoint = files.read(script)
    kept = {name: value for name, value in checkpoint.items() if name not in ("preprocess", "FromDatasets")}
    del kept["datamodule_hyper_parameters"], kept["datamodule_hparams_name"]
    torch.save(kept, "other.ckpt")
    data = Shapes(**LABELLED, views=MultiView(5, "cifar", mean="auto", std="auto"))
    subject = open_subject("other.ckpt", data)
    assert "other.ckpt does not say how images are normalised: they are as Shapes says" in caplog.text
    assert subject.run()["n_views"] is None
    assert subject.preprocess.mean == pytest.approx(
        data.images("train")[range(30)]["image"].div(255).mean((0, 2, 3)).tolist()
    )
    with pytest.raises(ValueError, match=r"^other\.ckpt does not hold the views of its run"):
        open_subject("other.ckpt", Shapes(**LABELLED), random_views=True)


def test_images_of_another_library_s_data_module_are_named_and_not_known(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {"_class_path": "msssl.BarlowTwins"}}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"x\.ckpt does not say where its images are, .* another library"):
        data_of(tmp_path / "x.ckpt", files.read(tmp_path / "x.ckpt"))


def test_several_data_sets_make_one_table(run, msssl, tmp_path):
    for name, n_images in (("small", 60), ("large", 80)):
        images = {**IMAGES, "train_images": n_images}
        (tmp_path / f"{name}.yaml").write_text(yaml.dump({"data": {"class_path": "msssl.Shapes", "init_args": images}}))
    sets = ["--data", "small.yaml", "--data", "large.yaml"]
    code, out, err = msssl("probe", "--ckpt_path", run, "--baselines=false", *sets)
    assert code == 0, err
    table = out[out.rindex("classes") :]
    reports = [json.loads(path.read_text()) for path in run.glob("probe-Shapes-*.json")]
    assert sorted(report["images"]["probe"] for report in reports) == [40, 50]
    for report in reports:
        assert f"{report['rows'][-1]['test_top1']:.3f}" in table
    assert table.count("Shapes, ") == 2


def test_other_weights_are_a_row_of_the_same_probe(run, msssl, tmp_path):
    """A file with the weights of the run itself has the run's accuracies."""
    state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    torch.save({name: value for name, value in state.items() if name.startswith("backbone.")}, tmp_path / "own.pth")
    code, _, err = msssl("probe", "--ckpt_path", run, "--baselines=false", "--against", "own.pth")
    assert code == 0, err
    report = json.loads((run / "probe.json").read_text())
    other, own = report["rows"]
    assert (other["features"], own["features"]) == ("own.pth", "pretrained encoder")
    assert other["test_confusion"] == own["test_confusion"]
    code, _, err = msssl("probe", "--ckpt_path", run, "--against", "own.pth", "--test_patches", 2)
    assert (code, err.splitlines()[-1][:38]) == (2, "msssl: error: against own.pth: other w")
