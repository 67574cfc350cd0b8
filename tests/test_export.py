"""`msssl export`: other software loads the file by the printed lines, and nothing but an export is ever written."""

import contextlib
import hashlib
import inspect
import io
import json
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import NARROW, fitted_in
from lightning import Trainer
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from msssl import BarlowTwins, ImageFolder, MultiView, MultiViewDataModule, MultiViewModule, ResNet, Shapes, VICReg
from msssl.backbones import build_backbone
from msssl.cli.errors import user_message
from msssl.evaluation import export
from msssl.evaluation.export import formats
from msssl.evaluation.export.card import model_card
from msssl.methods.weights import load_weights
from msssl.views import RandomResizedCropFlip

LOOPS = {  # of a run of one epoch of one step
    "fit_loop": {
        "epoch_progress": {"current": {"ready": 1, "completed": 1}},
        "epoch_loop.batch_progress": {"is_last_batch": True},
    }
}
CLASSES = [f"class {i}" for i in range(5)]
pytestmark = pytest.mark.long
FIT = ["fit", "--config", "demo.yaml", *NARROW, "--data.views.n_views=3", "--data.views.mean=auto"]
FIT += ["--data.train_images=60", "--data.test_images=20", "--data.batch_size=50", "--data.num_workers=0"]
FIT += ["--trainer.max_epochs=1", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
FIT += ["--online_probe=null", "--rank_monitor=null"]


class Own(nn.Module):
    """An architecture that no library has."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 5, stride=3), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, images):
        return self.layers(images).flatten(2).amax(dim=2)


class Case(NamedTuple):
    backbone: str
    format: formats.FormatName
    head: bool

    @property
    def name(self):
        return "-".join([self.backbone, self.format, *(["head"] if self.head else [])])

    @property
    def needs_msssl(self):
        return self.format == "safetensors" and self.backbone == "narrow"


BACKBONES = {
    "narrow": lambda: ResNet(18, width=8, low_resolution=False),
    "small stem": lambda: ResNet(18),
    "large stem": lambda: ResNet(18, low_resolution=False),
    "test_vit": lambda: build_backbone("timm:test_vit"),
    "test_byobnet": lambda: build_backbone("timm:test_byobnet"),  # its classifier is nested
    "own": Own,
}


class On(BarlowTwins):
    """On one of these backbones, of which a checkpoint holds the name."""

    def __init__(self, name):
        super().__init__(backbone=BACKBONES[name](), proj_dim=8)


CASES = [
    *(
        Case(backbone, name, head)
        for backbone, names in {
            "narrow": ("safetensors",),
            "test_vit": ("timm", "safetensors"),
            "own": ("safetensors",),
        }.items()
        for name in names
        for head in (False, True)
    ),
    Case("small stem", "torchvision", True),
    Case("small stem", "timm", False),
    Case("large stem", "torchvision", False),
    Case("large stem", "timm", True),
    Case("narrow", "onnx", True),
    Case("own", "onnx", False),
    Case("test_byobnet", "timm", True),
]
each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
BATCHES = (5, 1, 2)
SIZE = (16, 32)  # of the images, to tell height from width

OTHER_SOFTWARE = """
import json, os, sys, traceback

import numpy, torch

torch.set_num_threads(1)
torch.set_grad_enabled(False)
jobs, pixels, found = json.loads(open(sys.argv[1]).read()), numpy.load(sys.argv[2]), {}
for folder, code, without_msssl, batches in jobs:
    sys.modules.pop("msssl", None)
    if without_msssl:
        sys.modules["msssl"] = None
    os.chdir(folder)
    with open("config.json") as file:
        config = json.load(file)
    mean, std = (numpy.array(config[name]).reshape(-1, 1, 1) for name in ("mean", "std"))
    images = ((pixels / 255 - mean) / std).astype("float32")
    if config["format"] != "onnx":
        images = torch.from_numpy(images)
    *load, apply = code
    scope = {}
    try:
        exec("\\n".join(load), scope)
        for n in batches:
            scope["images"] = images[:n]
            exec(apply, scope)
            found[f"{folder} {n}"] = numpy.asarray(scope[config["output"]])
    except Exception:
        found[f"{folder} error"] = traceback.format_exc()
    assert not without_msssl or not [name for name in sys.modules if name.startswith("msssl.")]
numpy.savez(sys.argv[3], **found)
"""


def save_head(path, width, seed=3):
    """A head as `msssl probe` leaves it."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(CLASSES), width, generator=generator) / width**0.5
    bias = torch.randn(len(CLASSES), generator=generator)
    torch.save({"weight": weight, "bias": bias, "classes": CLASSES, "protocol": "by hand"}, path)
    return path


def exported(path, name, out, head=None):
    """What an export prints: what it says, and the lines of code."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        export(str(path), name, head=None if head is None else str(head), out=str(out))
    said, code = printed.getvalue().rsplit("\n\n", 1)
    return said.strip(), code.splitlines()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of a run of the command line, with the statistics of its images."""
    return fitted_in(tmp_path_factory.mktemp("trained"), FIT)


@pytest.fixture(scope="module")
def checkpoints(trained, tmp_path_factory):
    """By the name of the backbone: as that run's, on a backbone in which no two numbers are alike."""
    folder, paths = tmp_path_factory.mktemp("checkpoints"), {}
    generator = torch.Generator().manual_seed(1)
    for name in BACKBONES:
        state = On(name).state_dict()
        for value in state.values():
            if value.is_floating_point():
                value += 0.1 * value.std(correction=0) * torch.randn(value.shape, generator=generator)
                value += 0.1 * torch.rand(value.shape, generator=generator) if value.ndim == 1 else 0
        content = torch.load(trained, weights_only=True)
        content["hyper_parameters"] = {"_class_path": f"{__name__}.On", "name": name}
        content["datamodule_hyper_parameters"] = {"_class_path": "msssl.Shapes", "train_images": 60}
        content["preprocess"]["image_size"] = SIZE
        paths[name] = folder / f"{name}.ckpt"
        torch.save(content | {"state_dict": state}, paths[name])
    return paths


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(256, (max(BATCHES), 3, *SIZE), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


@pytest.fixture(scope="module")
def exports(checkpoints, tmp_path_factory):
    """By case: the folder, the lines that were printed, what was said before them, and the head's file."""
    folder, done = tmp_path_factory.mktemp("exports"), {}
    for case in CASES:
        path, head = checkpoints[case.backbone], None
        if case.head:
            width = MultiViewModule.load_from_checkpoint(path).feature_dim
            head = save_head(folder / f"{case.name}.head.pt", width)
        said, code = exported(path, case.format, folder / case.name, head)
        done[case] = (folder / case.name, code, said, head)
    return done


@pytest.fixture(scope="module")
def elsewhere(exports, pixels, tmp_path_factory):
    """What a process without msssl finds in the folders, by folder and number of images."""
    folder, jobs = tmp_path_factory.mktemp("elsewhere"), []
    for case, (place, code, _, _) in sorted(exports.items(), key=lambda item: item[0].needs_msssl):
        if case.backbone == "own":
            built = (
                "Own()"
                if not case.head
                else f"nn.Sequential(OrderedDict(backbone=Own(), fc=nn.Linear(8, {len(CLASSES)})))"
            )
            imports = "from collections import OrderedDict\nfrom torch import nn"
            code = [imports, inspect.getsource(Own), f"model = {built}", *code]
        jobs.append((str(place), code, not case.needs_msssl, BATCHES if case.format == "onnx" else BATCHES[:2]))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    (folder / "elsewhere.py").write_text(OTHER_SOFTWARE)
    np.save(folder / "pixels.npy", pixels.numpy())
    args = [sys.executable, "elsewhere.py", "jobs.json", str(folder / "pixels.npy"), str(folder / "found.npz")]
    done = subprocess.run(args, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "found.npz") as found:
        return dict(found)


@torch.no_grad()
def features_of(path, pixels):
    module = MultiViewModule.load_from_checkpoint(path).eval()
    return module(MultiViewDataModule.load_from_checkpoint(path).views.evaluate(pixels)).numpy()


@pytest.fixture(scope="module")
def features(checkpoints, pixels):
    """Those of the modules themselves, by the name of the backbone."""
    return {name: features_of(path, pixels) for name, path in checkpoints.items()}


@each_case
def test_other_software_finds_the_same_outputs(case, exports, elsewhere, features):
    folder, code, _, head = exports[case]
    assert f"{folder} error" not in elsewhere, str(elsewhere[f"{folder} error"])
    expected = features[case.backbone]
    if head is not None:
        weight, bias = (torch.load(head)[name].double().numpy() for name in ("weight", "bias"))
        expected = expected @ weight.T + bias
    assert np.abs(expected[0] - expected[1]).max() > 1e-3  # outputs tell the images apart
    for n in BATCHES if case.format == "onnx" else BATCHES[:2]:
        found = elsewhere[f"{folder} {n}"]
        assert found.shape == (n, *expected.shape[1:])
        np.testing.assert_allclose(found, expected[:n], rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert any("msssl." in line for line in code) == case.needs_msssl or case.backbone == "own"


@each_case
def test_config_names_what_the_code_alone_does_not_tell(case, exports, features):
    folder, _, said, _ = exports[case]
    config = json.loads((folder / "config.json").read_text())
    images = Shapes(train_images=60).dataset("train").tensors[0]
    statistics = {name: config.pop(name) for name in ("mean", "std")}
    assert config == {
        "format": case.format,
        "output": "logits" if case.head else "features",
        "image_size": list(SIZE),
        "window": None,
        "channels": "RGB",
        "centre_resized_to": list(SIZE),
        "then_short_side": None,
        "then_centre_crop": None,
        "scale": [0, 1],
        "feature_dim": features[case.backbone].shape[1],
        "classes": CLASSES if case.head else None,
    }
    # 10 of the 60 images are held out: their statistics are close to, but not, those of all.
    assert statistics["mean"] == pytest.approx((images / 255).mean(dim=(0, 2, 3)).tolist(), abs=0.02)
    assert statistics["std"] == pytest.approx((images / 255).std(dim=(0, 2, 3)).tolist(), abs=0.02)
    files = {path.name for path in folder.iterdir()}
    (model,) = files - {"config.json", "README.md"}
    assert said == f"written to {folder / model}, outputs compared; in that folder, load it by"


def test_the_card_says_what_the_backbone_is(trained, tmp_path):
    _, code = exported(trained, "safetensors", tmp_path / "out", save_head(tmp_path / "head.pt", 64))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("# msssl.BarlowTwins on Shapes\n")
    assert "on Shapes, 50 images of 32 x 32 pixels\n  for 1 epoch (1 step)." in card
    assert "- 3 views of each image:\n  - `RandomResizedCropFlip(" in card
    steps = ["RandomResizedCropFlip", "ColorJitterGrayscale", "RandomChannelShuffle", "RandomInvert"]
    listed = [line[5:].partition("(")[0] for line in card.splitlines() if line.startswith("  - `")]
    assert listed == steps
    mean, std = (", ".join(f"{value:.4f}" for value in config[name]) for name in ("mean", "std"))
    assert f"RGB, float32, (N, 3, 32, 32), values from 0 to 1, minus mean ({mean}), divided by std ({std})" in card
    assert "Output: logits of class 0, class 1, class 2, class 3, class 4." in card
    assert "```python\n" + "\n".join(code) + "\n```" in card
    assert "Not measured" in card


@each_case
def test_every_card_has_the_size_the_code_and_the_output(case, exports, features):
    folder, code, _, _ = exports[case]
    card = (folder / "README.md").read_text()
    assert "images of 16 x 32 pixels" in card
    assert "(N, 3, 16, 32)" in card
    assert "```python\n" + "\n".join(code) + "\n```" in card
    logits = "logits of class 0, class 1, class 2, class 3, class 4."
    assert f"Output: {logits if case.head else f'{features[case.backbone].shape[1]} features.'}" in card


def test_the_default_folder_is_beside_the_last_checkpoint(msssl, tmp_path, trained):
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    for name in ("last.ckpt", "config.yaml"):
        (run / name).write_bytes(trained.with_name(name).read_bytes())
    code, out, err = msssl("export", "--ckpt_path", "last", "--format", "safetensors")
    assert (code, err) == (0, "")
    folder = Path("runs", "mine", "export-safetensors")
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert f"written to {folder / 'model.safetensors'}" in out
    assert {path.name for path in run.iterdir()} == {"last.ckpt", "config.yaml", "export-safetensors"}


def fit_in_python(path, backbone="timm:test_resnet", **kwargs):
    """A checkpoint of the Python API, after one epoch of one step."""
    options = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", limit_val_batches=0, **options)
    data = Shapes(train_images=4, test_images=4, batch_size=4, num_workers=0, val_fraction=0, **kwargs)
    trainer.fit(BarlowTwins(backbone=backbone, proj_dim=8), datamodule=data)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def of_python(tmp_path_factory):
    return fit_in_python(tmp_path_factory.mktemp("python") / "python.ckpt")


def test_a_checkpoint_of_the_python_api_is_exported_too(of_python, pixels, tmp_path):
    """The lines are run here; the other tests run them elsewhere."""
    _, code = exported(of_python, "timm", tmp_path / "out")
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])  # of CIFAR-10
    scope = {"images": (pixels / 255 - mean[:, None, None]) / std[:, None, None]}
    with contextlib.chdir(tmp_path / "out"), torch.no_grad():
        exec("\n".join(code), scope)
    expected = features_of(of_python, pixels)
    np.testing.assert_allclose(scope["features"], expected, atol=1e-3 * np.abs(expected).max())  # 4 digits of mean
    card = (tmp_path / "out" / "README.md").read_text()
    assert "BarlowTwins on Shapes\n" in card
    assert "RandomResizedCropFlip(size=(32, 32)" in card


def test_the_card_counts_the_epochs_of_the_python_api(of_python, tmp_path):
    exported(of_python, "timm", tmp_path / "out")
    assert "for 1 epoch (1 step)" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["narrow", "small stem", "test_vit", "test_byobnet"])
def test_features_of_onnxruntime(name, checkpoints, pixels, features, tmp_path):
    import onnxruntime

    exported(checkpoints[name], "onnx", tmp_path / "out")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    images = MultiViewDataModule.load_from_checkpoint(checkpoints[name]).views.evaluate(pixels).numpy()
    for n in BATCHES:
        (found,) = session.run(None, {"images": images[:n]})
        np.testing.assert_allclose(found, features[name][:n], rtol=1e-5, atol=1e-5 * np.abs(features[name]).max())


def write_report(path, checkpoint, **changes):
    """A report as `msssl probe` writes it, as far as the card reads it."""
    rows = [
        {"features": "raw pixels", "test_top1": 0.1234, "val_top1": 0.2, "test_mlp": 0.3, "test_knn": 0.4},
        {"features": "pretrained encoder", "test_top1": 0.8766, "val_top1": 0.75, "test_knn": 0.625},
    ]
    report = {
        "checkpoint": str(checkpoint),
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "data_class": "CIFAR10",
        "protocol": "by hand",
        "rows": rows,
    }
    path.write_text(json.dumps(report | changes))


@pytest.fixture
def own(tmp_path, checkpoints):
    """A small checkpoint in a folder of its own."""
    path = tmp_path / "run" / "last.ckpt"
    path.parent.mkdir()
    path.write_bytes(checkpoints["narrow"].read_bytes())
    return path


def card_of(path, tmp_path):
    exported(path, "safetensors", tmp_path / "out")
    return (tmp_path / "out" / "README.md").read_text().partition("## Accuracy\n")[2]


def test_the_card_quotes_the_probe(own, tmp_path):
    write_report(own.with_name("probe.json"), own)
    accuracy = card_of(own, tmp_path)
    assert "On CIFAR10: by hand." in accuracy
    columns = "| features | test top-1 | val top-1 | cross-validated top-1 | test, MLP | test, kNN |"
    assert f"{columns}\n|---|---|---|---|---|---|\n" in accuracy
    assert "\n| raw pixels | 0.123 | 0.200 | - | 0.300 | 0.400 |\n" in accuracy
    assert "\n| pretrained encoder | 0.877 | 0.750 | - | - | 0.625 |\n" in accuracy
    assert "Not measured" not in accuracy


def test_the_card_quotes_every_probe_of_this_checkpoint_and_of_no_other(own, tmp_path):
    write_report(own.with_name("probe.json"), own)
    write_report(own.with_name("probe-STL10-data.json"), own, data_class="STL10")
    (own.with_name("best.ckpt")).write_bytes(b"another")
    write_report(own.with_name("probe-best.json"), own.with_name("best.ckpt"), data_class="CIFAR100")
    accuracy = card_of(own, tmp_path)
    assert ("On CIFAR10" in accuracy, "On STL10" in accuracy, "On CIFAR100" in accuracy) == (True, True, False)


def test_the_card_does_not_quote_a_probe_of_earlier_weights(own, tmp_path):
    """The run went on after it was probed: the file has the same name and another content."""
    write_report(own.with_name("probe.json"), own, sha256="0" * 64)
    assert "Not measured" in card_of(own, tmp_path)


# Bad input.


def one_line(message, *parts):
    """One line that holds these."""
    assert message is not None, "a traceback"
    assert message.splitlines() == [message]
    for part in parts:
        assert part in message


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ("--ckpt_path run --format onx", ["format: expected torchvision, timm, onnx, safetensors, got onx"]),
        ("--format onnx", ["ckpt_path"]),
        ("--ckpt_path gone.ckpt --format onnx", ["ckpt_path gone.ckpt", "is not a file"]),
        ("--ckpt_path run --format timm", ["timm has no ResNet of width 8: export it as onnx or safetensors"]),
    ],
)
def test_wrong_arguments_get_one_line_and_exit_code_2(args, parts, msssl, own, tmp_path):
    before = tree(tmp_path)
    code, out, err = msssl("export", *args.split())
    assert (code, out) == (2, "")
    one_line(err.removesuffix("\n"), "msssl: error: ", *parts)
    assert tree(tmp_path) == before


def cut_checkpoint(root):
    whole = (root / "run" / "last.ckpt").read_bytes()
    (root / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    return {"ckpt_path": "cut.ckpt"}, ["cut.ckpt cannot be read as a checkpoint: "]


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("sprung"),))


def code_in_the_checkpoint(root):
    torch.save({"state_dict": {}, "hyper_parameters": Trap()}, root / "trap.ckpt")
    return {"ckpt_path": "trap.ckpt"}, ["trap.ckpt cannot be read as a checkpoint"]


def code_in_the_head(root):
    (root / "trap.pt").write_bytes(pickle.dumps({"weight": Trap(), "bias": 0, "classes": []}, protocol=2))
    return {"head": "trap.pt"}, ["trap.pt cannot be read as a checkpoint"]


def weights_without_a_run(root):
    torch.save(ResNet(18, width=8).state_dict(), root / "weights.pt")
    return {"ckpt_path": "weights.pt"}, ["weights.pt is not the checkpoint of a training run"]


def a_step_too_early(root):
    content = torch.load(root / "run" / "last.ckpt", weights_only=True)
    content["preprocess"]["image_size"] = None
    torch.save(content, root / "early.ckpt")
    return {"ckpt_path": "early.ckpt"}, ["early.ckpt was written before a training step"]


def narrow_in_torchvision(root):
    return {"format": "torchvision"}, ["torchvision has no ResNet of width 8: export it as onnx or safetensors"]


def no_head(root):
    return {"head": "gone.pt"}, ["head gone.pt is not a file"]


def head_of_another_width(root):
    save_head(root / "wide.pt", 65)
    return {"head": "wide.pt"}, ["head wide.pt is for 65 features, and the backbone has 64"]


def checkpoint_for_a_head(root):
    return {"head": "run/last.ckpt"}, ["head run/last.ckpt is not one that msssl probe wrote"]


def list_for_a_head(root):
    torch.save([1, 2], root / "list.pt")
    return {"head": "list.pt"}, ["list.pt", "holds a list"]


def text_for_a_head(root):
    (root / "text.pt").write_text("not a head")
    return {"head": "text.pt"}, ["text.pt cannot be read as a checkpoint"]


def vector_for_a_head(root):
    torch.save({"weight": torch.zeros(64), "bias": torch.zeros(1), "classes": ["a"]}, root / "vector.pt")
    return {"head": "vector.pt"}, ["head vector.pt"]


def head_with_fewer_names_than_rows(root):
    torch.save({"weight": torch.zeros(5, 64), "bias": torch.zeros(5), "classes": ["a", "b"]}, root / "names.pt")
    return {"head": "names.pt"}, ["head names.pt"]


def head_with_fewer_biases_than_rows(root):
    torch.save({"weight": torch.zeros(5, 64), "bias": torch.zeros(1), "classes": CLASSES}, root / "bias.pt")
    return {"head": "bias.pt"}, ["head bias.pt"]


def folder_with_something_else(root):
    (root / "mine").mkdir()
    (root / "mine" / "notes.txt").write_text("mine")
    return {"out": "mine"}, ["mine is there and no earlier export", "out"]


def file_instead_of_a_folder(root):
    (root / "mine.txt").write_text("mine")
    return {"out": "mine.txt"}, ["mine.txt"]


def folder_with_a_config_of_something_else(root):
    (root / "mine").mkdir()
    (root / "mine" / "config.json").write_text('{"name": "mine"}')
    (root / "mine" / "results.csv").write_text("years of work")
    return {"out": "mine"}, ["mine is there and no earlier export", "out"]


def deep_folder(root):
    return {"format": "torchvision", "out": "some/where/new"}, ["torchvision has no ResNet of width 8"]


WRONG = [
    cut_checkpoint,
    code_in_the_checkpoint,
    code_in_the_head,
    weights_without_a_run,
    a_step_too_early,
    narrow_in_torchvision,
    no_head,
    head_of_another_width,
    checkpoint_for_a_head,
    list_for_a_head,
    text_for_a_head,
    vector_for_a_head,
    head_with_fewer_names_than_rows,
    head_with_fewer_biases_than_rows,
    folder_with_something_else,
    file_instead_of_a_folder,
    folder_with_a_config_of_something_else,
    deep_folder,
]


@pytest.mark.parametrize("wrong", WRONG, ids=[wrong.__name__ for wrong in WRONG])
def test_wrong_input_gets_one_line_and_leaves_everything_as_it_was(wrong, own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given, parts = wrong(tmp_path)
    before = tree(tmp_path)
    with pytest.raises((ValueError, OSError)) as raised:
        export(**{"ckpt_path": "run", "format": "safetensors", **given})
    one_line(user_message(raised.value), *parts)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("timm", "timm"),
        ("timm", "safetensors"),
        ("onnx", "onnx"),
        ("onnx", "onnxscript"),
        ("onnx", "onnxruntime"),
        ("safetensors", "safetensors"),
    ],
)
def test_an_exporter_that_is_not_installed_is_named(name, package, own, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda each: None if each == package else find_spec(each))
    before = tree(tmp_path)
    with pytest.raises(ImportError) as raised:
        exported(own, name, tmp_path / "out")
    assert user_message(raised.value) == f"format {name} needs {package}: pip install 'msssl[export]'"
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("backbone", "kind"), [("test_vit", "VisionTransformer"), ("own", "Own")])
def test_an_architecture_that_torchvision_has_not_is_named(backbone, kind, checkpoints, tmp_path):
    message = f"^torchvision has no {kind}: export it as onnx or safetensors$"
    with pytest.raises(ValueError, match=message):
        exported(checkpoints[backbone], "torchvision", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_architecture_that_timm_has_not_is_named(checkpoints, tmp_path):
    with pytest.raises(ValueError, match=r"^timm has no Own: export it as onnx or safetensors$"):
        exported(checkpoints["own"], "timm", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_backbone_that_no_checkpoint_can_hold_is_named_and_given_again(tmp_path, pixels):
    trained = Own()
    path = fit_in_python(tmp_path / "python.ckpt", backbone=trained)
    with pytest.raises(ValueError, match=r"python\.ckpt does not hold the backbone that BarlowTwins was built with"):
        exported(path, "safetensors", tmp_path / "out")
    with pytest.raises(ValueError, match=r"python\.ckpt: the weights do not fit VICReg: projector\.\S+ is \(8, 8\) in"):
        export(str(path), out=str(tmp_path / "out"), model=VICReg(backbone=Own(), proj_dim=16))
    assert list(tmp_path.iterdir()) == [path]
    given = BarlowTwins(backbone=Own(), proj_dim=8)
    before = {name: value.clone() for name, value in given.state_dict().items()}
    export(str(path), out=str(tmp_path / "out"), model=given)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], value) for name, value in trained.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())  # left as it was


class Alone(NamedTuple):
    """A run of a script: parts that were built in Python, none of which a command could give."""

    data: MultiViewDataModule
    module: MultiViewModule
    path: Path


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The file alone, without a folder of its run: its images and its script are gone."""
    images = torch.randint(256, (24, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = MultiViewDataModule.from_datasets(
        TensorDataset(images, torch.arange(24) % 2),
        batch_size=8,
        num_workers=0,
        views=MultiView(2, [RandomResizedCropFlip((16, 24))], mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
    )
    module = BarlowTwins(
        backbone=ResNet(18, width=8),
        proj_dim=8,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer),
    )
    options = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_steps=1, accelerator="cpu", limit_val_batches=0, **options)
    trainer.fit(module, datamodule=data)
    path = tmp_path_factory.mktemp("alone") / "script.ckpt"
    trainer.save_checkpoint(path, weights_only=True)
    return Alone(data, module, path)


def test_a_run_of_a_script_is_exported_from_its_checkpoint_alone(alone, msssl, tmp_path):
    (tmp_path / "script.ckpt").write_bytes(alone.path.read_bytes())
    code, out, err = msssl("export", "--ckpt_path", "script.ckpt")
    assert (code, err) == (0, "")
    folder = tmp_path / "export-safetensors"
    images = torch.randint(256, (3, 3, 16, 24), dtype=torch.uint8)
    config = json.loads((folder / "config.json").read_text())
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    assert_close(mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    scope = {"images": (images / 255 - mean) / std}
    with contextlib.chdir(folder), torch.no_grad():
        exec(out.rsplit("\n\n", 1)[1], scope)
        expected = alone.module.eval()(alone.data.views.evaluate(images))
    assert_close(scope["features"], expected, rtol=1e-4, atol=1e-5)
    card = (folder / "README.md").read_text()
    assert "BarlowTwins on data sets given in Python\n" in card
    assert "22 images of 16 x 24 pixels" in card  # 2 are held out
    assert "- 2 views of each image:\n  - `RandomResizedCropFlip(size=(16, 24)" in card


# What the receiver does to an image file: the lines of the card, in a process of their own.


def prepare(card, folder, file):
    """The lines under "Prepare an image", run in a folder where `image.png` is this file."""
    lines = card.partition("## Prepare an image")[2].split("```python\n")[1].partition("```")[0]
    (folder / "image.png").write_bytes(file.read_bytes())
    scope = {}
    with contextlib.chdir(folder):
        exec(lines, scope)
    assert not [name for name, value in scope.items() if "msssl" in repr(getattr(value, "__module__", ""))]
    return torch.as_tensor(scope["images"])


def picture(mode, size=(40, 28), seed=0):
    """Smooth, so that the filters of two libraries agree; larger than what the run sees, and no square."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(256, size=(5, 7, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    if mode == "I;16":
        values = np.asarray(coarse.convert("L")).astype(np.float64) * 12 + 500
        return Image.fromarray(values.astype(np.uint16))
    return coarse.convert(mode)


@pytest.mark.parametrize("mode", ["I;16", "L", "RGB", "RGBA"])
@pytest.mark.parametrize("augmentations", ["cifar", "stl10", "imagenet100"])
@pytest.mark.parametrize("format", ["safetensors", "onnx"])
def test_the_card_prepares_a_file_as_the_run_read_it(mode, augmentations, format, tmp_path):
    side = {"cifar": 24, "stl10": 64, "imagenet100": 150}[augmentations]
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    for i in range(2):
        picture(mode, (side + 40, side + 9), seed=i).save(folder / f"{i}.png")
    (tmp_path / "out").mkdir()
    data = ImageFolder(
        str(tmp_path / "images"),
        image_size=side,
        window=(600, 3000) if mode == "I;16" else None,
        dtype="uint8",
        views=MultiView(2, augmentations),
        batch_size=2,
        num_workers=0,
        val_fraction=0,
        storage="stream",
    )
    data.setup()
    read = data.on_after_batch_transfer(next(iter(data.evaluation_dataloader("probe"))))["image"]
    checkpoint = {"hyper_parameters": {}, "loops": LOOPS, "global_step": 1, "preprocess": data.preprocess.as_dict()}
    config = {"format": format, "classes": None, "feature_dim": 8, "image_size": data.preprocess.input_size}
    path = tmp_path / "x.ckpt"
    torch.save(checkpoint, path)
    card = model_card(path, checkpoint, data.preprocess, config, [])
    assert ("the values 600 to 3000 become 0 to 1" in card) == (mode == "I;16")
    for i in range(2):
        prepared = prepare(card, tmp_path / "out", folder / f"{i}.png")
        assert prepared.dtype == torch.float32
        assert prepared.shape == (1, 3, *data.preprocess.input_size)
        assert_close(prepared[0], read[i], rtol=0, atol=1.01 / 255 / min(data.views.std))


def test_the_config_and_the_card_of_an_export_name_the_window(checkpoints, tmp_path):
    content = torch.load(checkpoints["narrow"], weights_only=True)
    content["preprocess"] |= {"window": (0.0, 4095.0), "resize": 20, "crop": 16, "image_size": (24, 24)}
    torch.save(content, tmp_path / "deep.ckpt")
    exported(tmp_path / "deep.ckpt", "safetensors", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["window"], config["centre_resized_to"]) == ([0.0, 4095.0], [24, 24])
    assert (config["then_short_side"], config["then_centre_crop"], config["image_size"]) == (20, 16, [16, 16])
    assert "the values 0 to 4095 become 0 to 1" in (tmp_path / "out" / "README.md").read_text()


FIVE = {  # methods on backbones for images of 5 channels
    "small stem": lambda: BarlowTwins(backbone=ResNet(18, in_channels=5), proj_dim=8),
    "large stem": lambda: BarlowTwins(backbone=ResNet(18, low_resolution=False, in_channels=5), proj_dim=8),
    "test_vit": lambda: BarlowTwins(backbone="timm:test_vit", in_channels=5, proj_dim=8),
}


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("small stem", "torchvision"),
        ("large stem", "torchvision"),
        ("large stem", "timm"),
        ("small stem", "safetensors"),
        ("test_vit", "timm"),
        ("test_vit", "safetensors"),
        ("test_vit", "onnx"),
    ],
)
def test_an_encoder_of_five_channels_is_exported(name, format, checkpoints, tmp_path):
    content, module = torch.load(checkpoints["narrow"], weights_only=True), FIVE[name]()
    content |= {"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}
    content["preprocess"] |= {"mean": (0.1, 0.2, 0.3, 0.4, 0.5), "std": (0.5, 0.6, 0.7, 0.8, 0.9)}
    torch.save(content, tmp_path / "five.ckpt")
    _, code = exported(tmp_path / "five.ckpt", format, tmp_path / "out")
    values = np.random.default_rng(0).integers(256, size=(5, *SIZE), dtype=np.uint8)
    np.save(tmp_path / "out" / "image.npy", values)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Input: 5 channels, float32, (N, 5, 16, 32), values from 0 to 1, minus mean (0.1000, " in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["channels"] == 5
    prepare_image = card.partition("## Prepare an image")[2].split("```python\n")[1].partition("```")[0]
    scope = {}
    with contextlib.chdir(tmp_path / "out"), torch.no_grad():
        exec("\n".join([prepare_image, *code]), scope)
    unit = torch.from_numpy(values).float() / 255
    images = torch.stack([(unit[i] - (i + 1) / 10) / ((i + 5) / 10) for i in range(5)])[None]
    with torch.no_grad():
        expected = module.eval()(images)
    assert_close(torch.as_tensor(scope["features"]), expected, rtol=1e-4, atol=1e-5)


# Exports over exports.


def test_an_export_replaces_an_earlier_one_as_a_whole(own, checkpoints, tmp_path):
    head = save_head(tmp_path / "head.pt", 64)
    exported(own, "safetensors", tmp_path / "out", head)
    before = tree(tmp_path / "out")
    exported(checkpoints["small stem"], "torchvision", tmp_path / "out")
    after = tree(tmp_path / "out")
    assert {str(name) for name in after} == {"model.pth", "config.json", "README.md"}
    assert json.loads(after[Path("config.json")])["classes"] is None
    exported(own, "safetensors", tmp_path / "out", head)
    assert tree(tmp_path / "out") == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "head.pt", "out"}


def test_an_export_into_the_folder_where_one_is(own, tmp_path, monkeypatch):
    """Done, or refused in one line."""
    exported(own, "safetensors", tmp_path / "out")
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path / "out")
    try:
        export("../run", "safetensors", out=".")
    except Exception as error:
        one_line(user_message(error), "out")
    assert tree(tmp_path) == before


def test_a_folder_of_a_similar_name_is_left_alone(own, tmp_path):
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp" / "model.safetensors").write_bytes(b"half")
    exported(own, "safetensors", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out", "out.tmp"}
    assert (tmp_path / "out.tmp" / "model.safetensors").read_bytes() == b"half"


def other_weights(network, path):
    with torch.no_grad():
        network.backbone.layer4[1].conv2.weight.mul_(1.001)
        written = formats._safetensors(network, path)
        network.backbone.layer4[1].conv2.weight.div_(1.001)
    return written


def other_statistics(network, path):
    network.backbone.bn1.running_mean.add_(0.01)
    written = formats._safetensors(network, path)
    network.backbone.bn1.running_mean.sub_(0.01)
    return written


def another_head(network, path):
    bias = network.head.bias.clone()
    network.head.bias.copy_(bias.roll(1))
    written = formats._safetensors(network, path)
    network.head.bias.copy_(bias)
    return written


def weights_that_stay_in_memory(network, path):
    """Lines that load nothing, on a model that was not built by them."""
    file, _ = formats._safetensors(network, path)
    return file, ["import torch"]


def not_a_number(network, path):
    file, lines = formats._safetensors(network, path)
    return file, [*lines, "model.backbone.conv1.weight.data[0] = float('nan')"]


@pytest.mark.parametrize(
    "writer", [other_weights, other_statistics, another_head, weights_that_stay_in_memory, not_a_number]
)
def test_outputs_that_differ_are_noticed_and_an_earlier_export_stays(writer, own, tmp_path, monkeypatch):
    head = save_head(tmp_path / "head.pt", 64)
    exported(own, "safetensors", tmp_path / "out", head)
    before = tree(tmp_path)
    monkeypatch.setitem(formats._WRITERS, "safetensors", writer)
    with pytest.raises(RuntimeError, match=r"model\.safetensors: outputs differ by "):
        exported(own, "safetensors", tmp_path / "out", head)
    assert tree(tmp_path) == before


def test_a_full_disk_leaves_an_earlier_export(own, tmp_path, monkeypatch):
    def full(network, path):
        path.with_suffix(".safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    exported(own, "safetensors", tmp_path / "out")
    before = tree(tmp_path)
    monkeypatch.setitem(formats._WRITERS, "safetensors", full)
    with pytest.raises(OSError, match="No space left"):
        exported(own, "safetensors", tmp_path / "out")
    assert tree(tmp_path) == before


# What is exported is what another run can start from.

STARTS = [case for case in CASES if case.format != "onnx" and case.backbone != "large stem"]


@pytest.mark.parametrize("case", STARTS, ids=[case.name for case in STARTS])
def test_a_module_starts_from_an_export(case, exports, checkpoints):
    (file,) = (path for path in exports[case][0].iterdir() if path.name not in ("config.json", "README.md"))
    content = torch.load(checkpoints[case.backbone], weights_only=True)
    fresh = BarlowTwins(backbone=BACKBONES[case.backbone](), proj_dim=8, weights=str(file))
    fresh.on_fit_start()
    expected = {name[9:]: value for name, value in content["state_dict"].items() if name[:9] == "backbone."}
    found = fresh.backbone.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert not torch.equal(fresh.projector[0].weight, content["state_dict"]["projector.0.weight"])


def test_a_run_starts_from_an_export(msssl, tmp_path, exports, checkpoints):
    at_rest = ["--model.optimizer.lr=0", "--model.optimizer.weight_decay=0", "--data.batch_size=4"]
    file = exports[Case("narrow", "safetensors", True)][0] / "model.safetensors"
    code, _, err = msssl(*FIT, *at_rest, "--trainer.max_steps=1", f"--model.weights={file}")
    assert code == 0, err
    assert f"weights: the backbone starts from {file}" in err
    (path,) = tmp_path.glob("runs/*/last.ckpt")
    one, two = (MultiViewModule.load_from_checkpoint(each).backbone for each in (checkpoints["narrow"], path))
    for (name, value), found in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(found, value), name


def test_a_cut_safetensors_file_is_named(tmp_path, exports):
    whole = (exports[Case("narrow", "safetensors", False)][0] / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.safetensors"):
        load_weights(ResNet(18, width=8, low_resolution=False), str(tmp_path / "cut.safetensors"))


def test_an_export_of_another_architecture_is_refused(exports):
    file = exports[Case("large stem", "torchvision", False)][0] / "model.pth"
    with pytest.raises(ValueError, match=r"conv1\.weight is \(64, 3, 7, 7\) in weights .*model\.pth"):
        load_weights(build_backbone("resnet18"), str(file))
