import importlib.util
import logging
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

torch.set_num_threads(1)  # the tests share the cores, and sums do not depend on their number
os.environ["OMP_NUM_THREADS"] = "1"  # nor in the processes that they start
TINY_IMAGES = [f"--data.{option}" for option in ("train_images=60", "test_images=20", "batch_size=16", "num_workers=0")]
NARROW = [f"--model.backbone.{option}" for option in ("class_path=msssl.ResNet", "width=8", "low_resolution=false")]


def load(path):
    """A module from a file that is not on the path, under its own name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fitted_in(folder, args):
    """The checkpoint of a run of the command line in an empty folder."""
    from msssl.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(sys, "argv", ["msssl", *args])
        main()
    logging.getLogger("msssl").handlers.clear()
    (path,) = folder.glob("runs/*/last.ckpt")
    return path


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def msssl(monkeypatch, tmp_path, capfd):
    """Runs a command line in an empty directory: (exit code, stdout, stderr)."""
    from msssl.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["msssl", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            logging.getLogger("msssl").handlers.clear()
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def image_folder(tmp_path):
    """Two classes in train and test, of 12 and 4 images each, of mixed sizes."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(256, size=(20 + i, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def imagenet_folder(tmp_path):
    """A stand-in for the classes of imagenet100.yaml, and one more: 2 training images and 1 test image each."""
    config = yaml.safe_load((Path(__file__).parents[1] / "configs" / "imagenet100.yaml").read_text())
    generator = np.random.default_rng(0)
    for split, count in (("train", 2), ("test", 1)):
        for name in [*config["data"]["init_args"]["classes"], "n99999999"]:
            folder = tmp_path / "imagenet" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(256, size=(20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.JPEG")
    return tmp_path / "imagenet"


def write_cifar10(root, per_file, classes=10):
    """A stand-in for CIFAR-10 in its own file format: five files of training images and one of test images."""
    from torchvision import datasets

    folder = root / datasets.CIFAR10.base_folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, _ in [*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list]:
        pixels = generator.integers(256, size=(per_file, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [i % classes for i in range(per_file)]}))
    names = {"label_names": [f"class{i}" for i in range(10)]}
    (folder / datasets.CIFAR10.meta["filename"]).write_bytes(pickle.dumps(names))


def without_checksums(patch):
    """Has torchvision take the stand-in for CIFAR-10."""
    from torchvision import datasets

    patch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)


@pytest.fixture
def cifar10_folder(tmp_path, monkeypatch):
    """A stand-in for CIFAR-10: 5 x 8 training and 8 test images."""
    write_cifar10(tmp_path / "data", 8)
    without_checksums(monkeypatch)
    return tmp_path / "data"


@pytest.fixture
def cifar100_folder(tmp_path, monkeypatch):
    """A stand-in for CIFAR-100 in its own file format: 40 training and 8 test images."""
    from torchvision import datasets

    folder = tmp_path / "data" / datasets.CIFAR100.base_folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(1)
    for name, count in (("train", 40), ("test", 8)):
        pixels = generator.integers(256, size=(count, 3072), dtype=np.uint8)
        batch = {"data": pixels, "fine_labels": [i % 20 for i in range(count)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = {"fine_label_names": [f"class{i}" for i in range(100)]}
    (folder / datasets.CIFAR100.meta["filename"]).write_bytes(pickle.dumps(names))
    monkeypatch.setattr(datasets.CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    return tmp_path / "data"


@pytest.fixture
def stl10_folder(tmp_path, monkeypatch):
    """A stand-in for STL-10 in its own file format: 40 images without labels, 20 + 10 with; image i is i everywhere."""
    from torchvision import datasets

    folder = tmp_path / "data" / datasets.STL10.base_folder
    folder.mkdir(parents=True)
    for name, count, start in (("unlabeled", 40, 0), ("train", 20, 100), ("test", 10, 200)):
        pixels = np.repeat(np.arange(start, start + count, dtype=np.uint8), 3 * 96 * 96)
        pixels.tofile(folder / f"{name}_X.bin")
        if name != "unlabeled":
            (np.arange(count, dtype=np.uint8) % 10 + 1).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class{i}" for i in range(10)) + "\n")
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    return tmp_path / "data"


@pytest.fixture(scope="session")
def runner(tmp_path_factory):
    """Runs command lines in processes that may die; see `runs.py`."""
    from runner import Runner

    runner = Runner(tmp_path_factory.mktemp("runs"))
    yield runner
    runner.close()


@pytest.fixture
def folder(runner, request):
    return runner.folder(str(abs(hash(request.node.nodeid))))
