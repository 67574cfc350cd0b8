"""`msssl predict`: features, or classes by a head, of every image with its path."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NARROW, fitted_in
from lightning import Trainer
from pyarrow import parquet

from msssl import ImageFolder, MultiViewDataModule, MultiViewModule, Shapes
from msssl.callbacks import FeaturesWriter, features_writer

CLASSES = ["disc", "ring", "Kreuz ✚", "d", "e", "f", "g", "h", "i", "a longer name"]
QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
FIT = ["fit", "--config", "demo.yaml", *NARROW, *QUIET, "--trainer.max_steps=1", "--data.views.n_views=2"]
FIT += ["--online_probe=null", "--rank_monitor=null", "--data.batch_size=8", "--data.num_workers=0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on drawn images, 21 of them to predict: its folder."""
    images = ["--data.train_images=40", "--data.test_images=21"]
    return fitted_in(tmp_path_factory.mktemp("trained"), [*FIT, *images]).parent


@pytest.fixture
def run(trained, tmp_path):
    """The run alone in a folder of its own."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("last.ckpt", "config.yaml"):
        (folder / name).write_bytes((trained / name).read_bytes())
    return folder


def save_head(path, width=64, seed=3):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(CLASSES), width, generator=generator) / 2
    bias = torch.randn(len(CLASSES), generator=generator)
    torch.save({"weight": weight, "bias": bias, "classes": CLASSES, "protocol": "by hand"}, path)
    return weight.double().numpy(), bias.double().numpy()


def read(path):
    """The columns of a file, in arrays."""
    if path.suffix == ".npz":
        with np.load(path) as content:  # which unpickles nothing
            return dict(content)
    table = parquet.read_table(path)
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


@torch.no_grad()
def own_features(run, images):
    """The module's own features of uint8 images (n, 3, H, W), normalised by ImageNet's statistics."""
    module = MultiViewModule.load_from_checkpoint(run / "last.ckpt").eval()
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return module((images / 255 - mean) / std).numpy()


def names_in(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_features_are_those_of_the_module(ending, msssl, run):
    (run / f"features.{ending}").write_bytes(b"of another time")
    (run / f"features.{ending}.tmp").write_bytes(b"of one that was interrupted")
    args = [] if ending == "npz" else ["--format", ending]
    code, out, err = msssl("predict", "--ckpt_path=run", *args)
    assert (code, out) == (0, ""), err
    assert f"features of 21 images: run/features.{ending}" in err
    assert names_in(run) == {"last.ckpt", "config.yaml", f"features.{ending}"}
    written = read(run / f"features.{ending}")
    assert set(written) == {"features", "label", "index", "path"}
    images, labels = Shapes(test_images=21).dataset("test").tensors
    expected = own_features(run, images)
    assert np.ptp(expected, axis=0).max() > 0.01
    np.testing.assert_allclose(written["features"], expected, atol=1e-5 * np.abs(expected).max())
    assert written["label"].tolist() == labels.tolist()
    assert written["index"].tolist() == list(range(21))
    assert written["path"].tolist() == [f"image {i} of test" for i in range(21)]
    if ending == "parquet":
        types = {field.name: str(field.type) for field in parquet.read_schema(run / "features.parquet")}
        assert types["features"] in ("list<element: float>", "list<item: float>")  # as float32 was
        assert (types["label"], types["index"], types["path"]) == ("int64", "int64", "string")
    else:
        assert (written["features"].dtype, written["label"].dtype, written["index"].dtype) == ("f4", "i8", "i8")


def test_classes_are_those_of_the_head(msssl, run):
    weight, bias = save_head(run.parent / "head.pt")
    code, _, err = msssl("predict", "--ckpt_path=run", "--head=head.pt")
    assert code == 0, err
    assert "classes of 21 images: run/classes.npz" in err
    assert names_in(run) == {"last.ckpt", "config.yaml", "classes.npz"}
    written = read(run / "classes.npz")
    assert set(written) == {"class", "probability", "label", "index", "path"}
    images, labels = Shapes(test_images=21).dataset("test").tensors
    logits = own_features(run, images).astype(np.float64) @ weight.T + bias
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert len(set(probabilities.argmax(axis=1))) > 1
    assert written["class"].tolist() == [CLASSES[i] for i in probabilities.argmax(axis=1)]
    np.testing.assert_allclose(written["probability"], probabilities.max(axis=1), rtol=1e-4)
    assert written["label"].tolist() == labels.tolist()
    assert written["path"].tolist() == [f"image {i} of test" for i in range(21)]


def pixels_of(files):
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image, _ in files])


@pytest.mark.parametrize("storage", ["auto", "stream"])
def test_paths_are_those_of_the_images(storage, msssl, run, image_folder):
    """Wherever decoded images are kept; also of images of another set than the run's."""
    args = ["--data=msssl.ImageFolder", "--data.data_dir=images", "--data.image_size=24", f"--data.storage={storage}"]
    code, _, err = msssl("predict", "--ckpt_path=run", *args)
    assert code == 0, err
    written = read(run / "features.npz")
    assert written["path"].tolist() == [f"images/test/{name}/{i}.png" for name in ("cat", "dog") for i in range(4)]
    assert written["label"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    expected = own_features(run, pixels_of(ImageFolder("images", image_size=24).dataset("test")))
    np.testing.assert_allclose(written["features"], expected, atol=1e-5 * np.abs(expected).max())


def test_paths_of_images_that_are_not_all_of_the_set(msssl, tmp_path, image_folder):
    """Without test images it is those to probe on: all but the ones that are held out."""
    (image_folder / "test").rename(tmp_path / "elsewhere")
    args = ["--data=msssl.ImageFolder", "--data.data_dir=images", "--data.image_size=24", "--data.val_fraction=0.25"]
    code, _, err = msssl(*FIT, *args)
    assert code == 0, err
    code, _, err = msssl("predict", "--ckpt_path=last", "--format=parquet")
    assert code == 0, err
    (run,) = Path("runs").iterdir()
    written = read(run / "features.parquet")
    data = MultiViewDataModule.load_from_checkpoint(run / "last.ckpt")
    data.setup()
    shown = sorted(data.splits["probe"].indices.tolist())
    assert len(shown) == 18
    assert written["index"].tolist() == shown
    in_order = [f"images/train/{name}/{i}.png" for name in ("cat", "dog") for i in sorted(range(12), key=str)]
    assert written["path"].tolist() == [in_order[index] for index in shown]
    assert written["label"].tolist() == [index // 12 for index in shown]
    expected = own_features(run, pixels_of(data.dataset("train")))[shown]
    np.testing.assert_allclose(written["features"], expected, atol=1e-5 * np.abs(expected).max())


TWO_RANKS = """
import sys

from msssl import MultiViewModule
from msssl.cli import main

predict_step = MultiViewModule.predict_step


def recorded(self, batch, batch_idx):
    with open(f"rank{self.global_rank}", "a") as file:
        print(*batch["index"].tolist(), file=file)
    return predict_step(self, batch, batch_idx)


MultiViewModule.predict_step = recorded
main()
"""


@pytest.mark.slow
def test_two_ranks_write_what_one_process_does(msssl, run, tmp_path):
    """The shares are of 11 and 10 images; ranks that are forked import once."""
    args = ["predict", "--ckpt_path=run", "--data.batch_size=4"]
    code, _, err = msssl(*args)
    assert code == 0, err
    one = read(run / "features.npz")
    (run / "features.npz").unlink()
    args += ["--trainer.devices=2", "--trainer.strategy=ddp_fork"]
    done = subprocess.run([sys.executable, "-c", TWO_RANKS, *args], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shares = [[int(index) for index in (tmp_path / f"rank{rank}").read_text().split()] for rank in (0, 1)]
    assert sorted(map(len, shares)) == [10, 11]
    assert sorted(shares[0] + shares[1]) == list(range(21))
    assert names_in(run) == {"last.ckpt", "config.yaml", "features.npz"}
    two = read(run / "features.npz")
    assert two.keys() == one.keys()
    for name in ("label", "index", "path"):
        assert two[name].tolist() == one[name].tolist()
    np.testing.assert_allclose(two["features"], one["features"], atol=1e-6 * np.abs(one["features"]).max())


# Bad input.


def parquet_without_pyarrow(root, monkeypatch):
    found = {"pyarrow": None}
    monkeypatch.setattr(features_writer, "find_spec", lambda name: found.get(name, find_spec(name)))
    return ["--format=parquet"], "format parquet needs pyarrow: pip install 'msssl[parquet]'"


def another_format(root, monkeypatch):
    return ["--format=csv"], "format: expected"


def no_head(root, monkeypatch):
    return ["--head=gone.pt"], "head gone.pt is not a file"


def head_of_another_width(root, monkeypatch):
    save_head(root / "wide.pt", 65)
    return ["--head=wide.pt"], "head wide.pt is for 65 features, and the backbone has 64"


WRONG = [
    parquet_without_pyarrow,
    another_format,
    no_head,
    head_of_another_width,
]


@pytest.mark.parametrize("wrong", WRONG, ids=[wrong.__name__ for wrong in WRONG])
def test_wrong_input_gets_one_line_before_the_work(wrong, msssl, run, tmp_path, monkeypatch):
    def work(*args):
        raise AssertionError("an image was predicted")

    monkeypatch.setattr(MultiViewModule, "predict_step", work)
    args, part = wrong(tmp_path, monkeypatch)
    before = set(tmp_path.rglob("*"))
    code, out, err = msssl("predict", "--ckpt_path=run", *args)
    last = err.strip().splitlines()[-1]
    assert (code, out) == (2, ""), err
    assert last.startswith("msssl: error: ")
    assert part in last
    assert "Traceback" not in err
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_a_full_disk_leaves_an_earlier_prediction(ending, tmp_path, monkeypatch):
    def full(file, columns):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / f"features.{ending}").write_bytes(b"earlier")
    monkeypatch.setitem(features_writer._WRITERS, ending, full)
    writer = FeaturesWriter(tmp_path, ending)
    writer._head = None
    prediction = {"features": torch.ones(1, 2), "label": torch.tensor([0]), "index": torch.tensor([5])}
    with pytest.raises(OSError, match="No space left"):
        writer.write_on_epoch_end(Trainer(accelerator="cpu", logger=False), None, [prediction], [])
    assert (tmp_path / f"features.{ending}").read_bytes() == b"earlier"
    assert names_in(tmp_path) == {f"features.{ending}"}
