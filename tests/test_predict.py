"""`msssl predict`: features, or classes by a head, of every image with its path."""

import contextlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import NARROW, fitted_in
from lightning import Trainer
from PIL import Image
from pyarrow import parquet
from torch.utils.data import TensorDataset
from torchvision.transforms.v2.functional import resize

from msssl import (
    STL10,
    BarlowTwins,
    ImageFolder,
    MultiView,
    MultiViewDataModule,
    MultiViewModule,
    ResNet,
    Shapes,
)
from msssl.callbacks import FeaturesWriter, features_writer
from msssl.views import Preprocess

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
    (run / f"features.{ending}.tmp").write_bytes(b"of one that was interrupted")
    args = [] if ending == "npz" else ["--format", ending]
    code, out, err = msssl("predict", "--ckpt_path=run", *args)
    assert (code, out) == (0, ""), err
    assert "predict: 21 of the 61 images of Shapes in data: its test split" in err
    assert f"features of 21 images: run/features.{ending}\n" in err
    assert names_in(run) == {"last.ckpt", "config.yaml", f"features.{ending}"}
    written = read(run / f"features.{ending}")
    assert set(written) == {"features", "label", "path", "dataset", "index"}
    assert set(written["dataset"]) == {"test"}
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
        assert [types[name] for name in ("label", "index", "path", "dataset")] == ["int64", "int64", "string", "string"]
    else:
        assert (written["features"].dtype, written["label"].dtype, written["index"].dtype) == ("f4", "i8", "i8")


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_classes_are_those_of_the_head(ending, msssl, run):
    weight, bias = save_head(run.parent / "head.pt")
    code, _, err = msssl("predict", "--ckpt_path=run", "--head=head.pt", f"--format={ending}")
    assert code == 0, err
    assert f"classes of 21 images: run/classes.{ending}\n" in err
    assert names_in(run) == {"last.ckpt", "config.yaml", f"classes.{ending}"}
    written = read(run / f"classes.{ending}")
    if ending == "parquet":
        written["classes"] = json.loads(parquet.read_schema(run / "classes.parquet").metadata[b"classes"])
    assert set(written) == {"class", "probability", "probabilities", "classes", "label", "path", "dataset", "index"}
    images, labels = Shapes(test_images=21).dataset("test").tensors
    logits = own_features(run, images).astype(np.float64) @ weight.T + bias
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert len(set(probabilities.argmax(axis=1))) > 1
    assert list(written["classes"]) == CLASSES
    assert written["class"].tolist() == [CLASSES[i] for i in probabilities.argmax(axis=1)]
    np.testing.assert_allclose(written["probability"], probabilities.max(axis=1), rtol=1e-4)
    np.testing.assert_allclose(written["probabilities"], probabilities, rtol=1e-4, atol=1e-7)
    assert written["label"].tolist() == labels.tolist()
    assert written["path"].tolist() == [f"image {i} of test" for i in range(21)]


def pixels_of(files):
    return torch.stack([image for image, _ in files])


def resized(images):
    """Images of the size that the run was trained on."""
    return resize(images, [32, 32], antialias=True)


@pytest.mark.parametrize("storage", ["auto", "stream"])
def test_paths_are_those_of_the_images(storage, msssl, run, image_folder):
    """Wherever decoded images are kept; also of images of another set than the run's, and of another size."""
    args = ["--data=msssl.ImageFolder", "--data.data_dir=images", "--data.image_size=24", f"--data.storage={storage}"]
    code, _, err = msssl("predict", "--ckpt_path=run", *args)
    assert code == 0, err
    written = read(run / "features.npz")
    assert written["path"].tolist() == [f"images/test/{name}/{i}.png" for name in ("cat", "dog") for i in range(4)]
    assert written["label"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    expected = own_features(run, resized(pixels_of(ImageFolder("images", image_size=24).dataset("test"))))
    np.testing.assert_allclose(written["features"], expected, atol=1e-5 * np.abs(expected).max())


# Which images.


def predicted(data):
    """The data set and the index of each image that would be predicted, in order."""
    data.setup("predict")
    loaders = data.predict_dataloader().loaders
    return [(loader.images.name, index) for loader in loaders for batch in loader for index in batch["index"].tolist()]


@pytest.fixture
def flat_folder(tmp_path):
    """A folder of 30 images without splits and classes."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for i in range(30):
        Image.effect_noise((32, 32), 60).convert("RGB").save(folder / f"{i:02}.png")
    return folder


def test_every_image_of_a_folder_without_splits(msssl, run, flat_folder):
    """None is held out, whatever the run held out; and as there are no labels, they are -1."""
    args = ["--data=msssl.ImageFolder", "--data.data_dir=flat", "--data.fraction=0.5", "--data.val_fraction=0.2"]
    code, _, err = msssl("predict", "--ckpt_path=run", *args)
    assert code == 0, err
    assert "predict: all of ImageFolder in flat, 30 images\n" in err
    written = read(run / "features.npz")
    assert written["path"].tolist() == [f"flat/{i:02}.png" for i in range(30)]
    assert written["label"].tolist() == [-1] * 30
    assert written["index"].tolist() == list(range(30))


def test_the_splits_of_a_folder(tmp_path, image_folder, caplog):
    caplog.set_level("INFO", logger="msssl")

    def images(split, **kwargs):
        data = ImageFolder("images", image_size=8, num_workers=0, val_fraction=0.25, **kwargs)
        data.predict_split = split
        return predicted(data)

    with contextlib.chdir(tmp_path):
        found = {split: images(split) for split in (None, "test", "val", "train", "all")}
        assert images("train", fraction=0.5) == found["train"]
    training, test = [("train", i) for i in range(24)], [("test", i) for i in range(8)]
    assert found[None] == found["test"] == test
    assert (len(found["train"]), len(found["val"])) == (18, 6)
    assert sorted(found["train"] + found["val"]) == training
    assert found["all"] == training + test
    for line in (
        "8 of the 32 images of ImageFolder in images: its test split",
        "6 of the 32 images of ImageFolder in images: its val split",
        "18 of the 32 images of ImageFolder in images: its train split",
        "all of ImageFolder in images, 32 images (24 of train, 8 of test)",
    ):
        assert f"predict: {line}" in caplog.messages


def test_the_splits_are_those_of_the_run():
    """What was held out of a run is what `val` names later."""
    data = Shapes(train_images=40, test_images=10, num_workers=0, val_fraction=0.3)
    data.setup("fit")
    held_out = data.splits["val"].indices.tolist()
    again = Shapes(train_images=40, test_images=10, num_workers=0, val_fraction=0.3)
    again.predict_split = "val"
    assert predicted(again) == [("train", i) for i in held_out]
    assert len(held_out) > 0


def test_every_set_of_stl10(stl10_folder):
    """The labelled images are a set of their own; images to validate on are held out of them."""
    sets = {}
    for split in ("all", "train", "val", "test"):
        data = STL10(str(stl10_folder), num_workers=0, batch_size=8, val_fraction=0.5)
        data.predict_split = split
        sets[split] = predicted(data)
    numbers = {"train": 40, "test": 10, "probe": 20}
    assert sets["all"] == [(name, i) for name in ("train", "test", "probe") for i in range(numbers[name])]
    assert sets["train"] == [("train", i) for i in range(40)]
    assert sets["test"] == [("test", i) for i in range(10)]
    assert {name for name, _ in sets["val"]} == {"probe"}
    assert len(sets["val"]) == 10


def test_a_split_that_is_not_there(flat_folder):
    for split in ("test", "val"):
        data = ImageFolder(str(flat_folder), num_workers=0, val_fraction=0.0)
        data.predict_split = split
        with pytest.raises(ValueError, match=f"ImageFolder in .*flat has no {split} images"):
            predicted(data)


def test_unreadable_images_are_counted(tmp_path, flat_folder, caplog):
    caplog.set_level("INFO", logger="msssl")
    for name in ("03.png", "17.png"):
        (flat_folder / name).write_bytes(b"no image")
    data = ImageFolder(str(flat_folder), num_workers=0, on_error="skip")
    assert predicted(data) == [("train", i) for i in range(30) if i not in (3, 17)]
    assert f"predict: all of ImageFolder in {flat_folder}, 28 images; 2 more cannot be read" in caplog.messages
    with pytest.raises(ValueError, match=r"03\.png cannot be read"):
        predicted(ImageFolder(str(flat_folder), num_workers=0))


def test_only_the_images_that_are_asked_for_are_read(image_folder):
    """A damaged training image does not matter where test images are predicted."""
    (image_folder / "train" / "cat" / "0.png").write_bytes(b"no image")
    data = ImageFolder(str(image_folder), image_size=8, num_workers=0, on_error="skip", storage="memory")
    assert len(predicted(data)) == 8
    assert set(data.skipped) == {"test"}


# How images are prepared.


def test_images_are_prepared_as_in_the_run_that_the_module_is_from(image_folder):
    """In Python too: the data module's own views do not matter, but for a fit."""
    module = BarlowTwins(backbone=ResNet(width=8), proj_dim=16).eval()
    module.preprocess = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), image_size=(12, 12))
    data = ImageFolder(str(image_folder), num_workers=0, views=MultiView(2, mean="auto"))
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    features = torch.cat([batch["features"] for batch in trainer.predict(module, datamodule=data)])
    images = pixels_of(ImageFolder(str(image_folder), image_size=12).dataset("test")) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    with torch.no_grad():
        torch.testing.assert_close(features, module((images - mean) / std))


def test_statistics_that_are_not_known_are_found(image_folder):
    """`mean: auto` with a module that no run has trained."""
    data = ImageFolder(str(image_folder), image_size=8, num_workers=0, views=MultiView(2, mean="auto"))
    of_fit = ImageFolder(str(image_folder), image_size=8, num_workers=0, views=MultiView(2, mean="auto"))
    assert len(predicted(data)) == 8
    of_fit.setup("fit")
    assert data.views.mean == of_fit.views.mean != MultiView(2).mean


@pytest.fixture
def from_script(tmp_path):
    """The checkpoint of a script, outside of a run's folder: data sets, network and views are built in Python."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (24, 3, 16, 16), dtype=torch.uint8, generator=generator)
    views = MultiView(2, mean=(0.2, 0.3, 0.4), std=(0.3, 0.3, 0.3))
    data = MultiViewDataModule.from_datasets(
        TensorDataset(images, torch.zeros(24, dtype=torch.long)), views=views, batch_size=8, num_workers=0
    )
    module = BarlowTwins(backbone=ResNet(width=8), proj_dim=16, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    return tmp_path / "mine.ckpt"


@pytest.mark.parametrize("how", ["config", "class"])
def test_the_checkpoint_of_a_script(how, msssl, tmp_path, monkeypatch, request, image_folder):
    """The network, mean, std and size are those of the checkpoint, and not those of a config that names the images."""
    monkeypatch.chdir(tmp_path)
    path = request.getfixturevalue("from_script")
    args = {"config": ["--config=imagefolder.yaml", "--trainer.accelerator=cpu"], "class": ["--data=msssl.ImageFolder"]}
    code, _, err = msssl("predict", "--ckpt_path=mine.ckpt", *args[how], "--data.data_dir=images", *QUIET)
    assert code == 0, err
    assert ("mine.ckpt brings its own network; ignored of the config: model.backbone" in err) == (how == "config")
    written = read(tmp_path / "features.npz")
    images = pixels_of(ImageFolder("images", image_size=16).dataset("test")) / 255
    module = MultiViewModule.load_from_checkpoint(path, optimizer=torch.optim.SGD).eval()
    mean = torch.tensor((0.2, 0.3, 0.4))[:, None, None]
    with torch.no_grad():
        expected = module((images - mean) / 0.3).numpy()
    np.testing.assert_allclose(written["features"], expected, atol=1e-5 * np.abs(expected).max())


def test_a_checkpoint_that_does_not_say_where_its_images_are(msssl, monkeypatch, tmp_path, request):
    monkeypatch.chdir(tmp_path)
    request.getfixturevalue("from_script")
    code, _, err = msssl("predict", "--ckpt_path=mine.ckpt")
    assert (code, "Traceback" in err) == (2, False)
    assert "or name other images, such as --data msssl.ImageFolder --data.data_dir FOLDER" in err
    code, _, err = msssl("predict", "--ckpt_path=mine.ckpt", "--data.data_dir=images")
    assert (code, "Traceback" in err) == (2, False)
    assert "data.data_dir is an option of a class: name the class first, such as --data msssl.ImageFolder" in err


@pytest.mark.parametrize("command", ["predict", "validate", "test"])
def test_the_config_of_another_network(command, msssl, run):
    """The checkpoint brings its own, in a folder that has no config."""
    (run / "last.ckpt").rename(run.parent / "mine.ckpt")
    args = ["--config=simclr.yaml", "--config=demo.yaml", "--trainer.accelerator=cpu", "--online_probe=null"]
    args += ["--data.train_images=40", "--data.test_images=21", "--data.num_workers=0", "--rank_monitor=null"]
    code, _, err = msssl(command, "--ckpt_path=mine.ckpt", *args, *QUIET)
    assert (code, "Traceback" in err) == (0, False), err
    assert "mine.ckpt brings its own network; ignored of the config: model.backbone" in err


def test_the_data_of_a_checkpoint_without_a_config(msssl, run):
    (run / "last.ckpt").rename(run.parent / "mine.ckpt")
    code, _, err = msssl("predict", "--ckpt_path=mine.ckpt", *QUIET)
    assert code == 0, err
    assert "predict: 21 of the 61 images of Shapes in data: its test split" in err
    assert len(read(run.parent / "features.npz")["features"]) == 21


def test_callbacks_of_a_fit_have_no_say(msssl, run, image_folder):
    """The probe of a run, here of 10 classes, would refuse images of two."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["online_probe"] = {"class_path": "msssl.OnlineProbe"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    code, _, err = msssl("predict", "--ckpt_path=run", "--data=msssl.ImageFolder", "--data.data_dir=images")
    assert code == 0, err


TWO_RANKS = """
import os
import pickle
import signal
import sys

import torch.distributed as dist
from msssl import MultiViewModule, distributed
from msssl.cli import main

distributed.CHUNK_BYTES = 1000  # of 4 images' features, so that some parts are sent
all_gather, all_gather_object = dist.all_gather, dist.all_gather_object
to_come = int(os.environ.get("PARTS", -1))  # parts that the last rank sends before it dies


def small(values, value):
    assert len(pickle.dumps(value)) < 500, "features are pickled"
    all_gather_object(values, value)


def part(parts, own):
    global to_come
    if to_come == 0 and dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    to_come -= 1
    all_gather(parts, own)


dist.all_gather_object, dist.all_gather = small, part
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
    """The shares are of 11 and 10 images, and of 20 and 20; ranks that are forked import once."""
    args = ["predict", "--ckpt_path=run", "--data.batch_size=4", "--split=all"]
    code, _, err = msssl(*args)
    assert code == 0, err
    one = read(run / "features.npz")
    (run / "features.npz").unlink()
    args += ["--trainer.devices=2", "--trainer.strategy=ddp_fork"]
    done = subprocess.run([sys.executable, "-c", TWO_RANKS, *args], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shares = [[int(index) for index in (tmp_path / f"rank{rank}").read_text().split()] for rank in (0, 1)]
    assert sorted(map(len, shares)) == [30, 31]
    assert sorted(shares[0] + shares[1]) == sorted([*range(40), *range(21)])
    assert names_in(run) == {"last.ckpt", "config.yaml", "features.npz"}
    two = read(run / "features.npz")
    assert two.keys() == one.keys()
    assert one["dataset"].tolist() == ["train"] * 40 + ["test"] * 21
    assert one["index"].tolist() == [*range(40), *range(21)]
    for name in ("label", "index", "path", "dataset"):
        assert two[name].tolist() == one[name].tolist()
    np.testing.assert_allclose(two["features"], one["features"], atol=1e-6 * np.abs(one["features"]).max())


@pytest.mark.slow
def test_a_rank_that_is_killed_while_it_sends_leaves_an_earlier_prediction(run, tmp_path):
    args = ["predict", "--ckpt_path=run", "--data.batch_size=4", "--out=run/features.npz", *QUIET]
    args += ["--trainer.devices=2", "--trainer.strategy=ddp_fork"]
    (run / "features.npz").write_bytes(b"earlier")
    command, env = [sys.executable, "-c", TWO_RANKS, *args], {**os.environ, "PARTS": "4"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "SIGKILL" in done.stderr
    assert (run / "features.npz").read_bytes() == b"earlier"
    assert names_in(run) == {"last.ckpt", "config.yaml", "features.npz"}


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


def an_earlier_prediction(root, monkeypatch):
    (root / "run" / "features.npz").write_bytes(b"earlier")
    return [], "run/features.npz is there, of an earlier prediction: name another file by --out, or this one, to"


def a_name_without_an_ending(root, monkeypatch):
    return ["--out=results"], "out results: expected the name of a file that ends in .npz or .parquet"


def two_formats(root, monkeypatch):
    return ["--out=a.npz", "--format=parquet"], "out is a.npz, but format is parquet: leave one of them"


def a_folder_of_that_name(root, monkeypatch):
    (root / "run" / "features.npz").mkdir()
    return [], "run/features.npz cannot be written: it is a folder"


def a_file_for_a_folder(root, monkeypatch):
    (root / "file").touch()
    return ["--out=file/features.npz"], "file/features.npz cannot be written: file is not a directory"


def a_place_that_is_not_writable(root, monkeypatch):
    return ["--out=/proc/nope/features.npz"], "/proc/nope/features.npz cannot be written: No such file or directory"


def a_split_that_is_unknown(root, monkeypatch):
    return ["--split=everything"], "split: expected"


WRONG = [
    parquet_without_pyarrow,
    another_format,
    no_head,
    head_of_another_width,
    an_earlier_prediction,
    a_name_without_an_ending,
    two_formats,
    a_folder_of_that_name,
    a_file_for_a_folder,
    a_place_that_is_not_writable,
    a_split_that_is_unknown,
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
    assert (code, out) == (1 if "cannot be written" in part else 2, ""), err
    assert last.startswith("msssl: error: ")
    assert part in last
    assert "Traceback" not in err
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_a_full_disk_leaves_an_earlier_prediction(ending, tmp_path, monkeypatch):
    def full(file, columns):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / f"features.{ending}"
    path.write_bytes(b"earlier")
    monkeypatch.setitem(features_writer._WRITERS, f".{ending}", full)
    prediction = {"features": torch.ones(1, 2), "label": torch.tensor([0]), "index": torch.tensor([5])}
    with pytest.raises(
        OSError, match=r"features\.\w+ cannot be written: No space left on device; what was there before"
    ):
        FeaturesWriter(path).write_on_epoch_end(Trainer(accelerator="cpu", logger=False), None, [prediction], [])
    assert path.read_bytes() == b"earlier"
    assert names_in(tmp_path) == {path.name}


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_the_lines_that_are_said_read_the_file(ending, tmp_path, caplog):
    """A file that is named is replaced, which is said; features that are no numbers too."""
    caplog.set_level("INFO", logger="msssl")
    path = tmp_path / f"it's.{ending}"
    path.write_bytes(b"earlier")
    features = torch.arange(6.0).view(3, 2)
    features[1, 0] = torch.nan
    prediction = {"features": features, "label": torch.tensor([0, 1, -1]), "index": torch.tensor([0, 1, 2])}
    FeaturesWriter(path).write_on_epoch_end(Trainer(accelerator="cpu", logger=False), None, [prediction], [])
    assert f"features of 3 images: {path}, in place of an earlier file" in caplog.messages
    assert "features of 1 of 3 images are not finite: is the run diverged?" in caplog.messages
    assert "it holds features (3, 2) and label, path, dataset, index; read it by:" in caplog.messages
    names = {}
    exec("\n".join(line.strip() for line in caplog.messages[-2:]), names)
    found = names["content"]["features"]
    np.testing.assert_array_equal(found if ending == "npz" else np.array(found.to_pylist()), features.numpy())
    assert set(names["content"].files if ending == "npz" else names["content"].column_names) == set(read(path))


def test_out_is_what_is_written(msssl, run, tmp_path):
    """Also over an earlier file, when it is named, and into a folder that is not there yet."""
    (run / "features.npz").write_bytes(b"earlier")
    for path in (Path("new/folder/mine.parquet"), run / "features.npz"):
        code, _, err = msssl("predict", "--ckpt_path=run", f"--out={path}", *QUIET)
        assert code == 0, err
        assert len(read(path)["features"]) == 21
    assert f"{run / 'features.npz'}, in place of an earlier file" in err


def test_a_limit_on_the_batches_is_said(msssl, run):
    args = ["--data.batch_size=8", "--trainer.limit_predict_batches=1", "--split=all"]
    code, _, err = msssl("predict", "--ckpt_path=run", *args, *QUIET)
    assert code == 0, err
    assert "limit_predict_batches leaves out 53 of the 61 images" in err
    assert read(run / "features.npz")["dataset"].tolist() == ["train"] * 8
