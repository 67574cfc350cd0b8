import copy
import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from kornia import augmentation as K
from lightning import LightningDataModule, Trainer
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

import msssl
from msssl import MultiViewDataModule, MultiViewModule
from msssl.cli.arguments import expand
from msssl.evaluation.rebuild import data_of, preprocess_of
from msssl.recorded import build, describe
from msssl.run.files import read
from msssl.run.find import find
from msssl.run.reloadable import MissingArgumentsError
from msssl.views import BlurSolarize, ColorJitterGrayscale, MultiCrop, Preprocess, RandomResizedCropFlip

CLI = {"_instantiator": "lightning.pytorch.cli.instantiate_module", "_class_path": "msssl.BarlowTwins", "proj_dim": 8}
NARROW = {"class_path": "msssl.ResNet", "init_args": {"width": 8}}


class Energy(MultiViewModule):
    """A user's method; the default of `squash` is no plain data, but need not be given again."""

    def __init__(self, temperature=0.1, squash=torch.tanh, **kwargs):
        super().__init__(**kwargs)
        self.temperature = temperature
        self.squash = squash

    def compute_loss(self, z):
        return self.squash(z).square().mean() / self.temperature


class Narrow(Energy):
    """Another, with a signature of its own."""

    def __init__(self, width=8, dim=16):
        super().__init__(backbone=msssl.ResNet(18, width=width), proj_dim=dim)


def narrow_backbone():
    return msssl.ResNet(18, width=8)


def make_trainer():
    return Trainer(
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def save(module, path):
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


def craft(path, **hyperparameters):
    torch.save({"hyper_parameters": hyperparameters, "state_dict": {}}, path)
    return path


def touch(path, seconds):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({}, path)
    os.utime(path, (seconds, seconds))
    return path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A module after one step, and its checkpoint."""
    torch.manual_seed(7)
    module = msssl.BarlowTwins(beta=0.2, backbone=narrow_backbone(), proj_dim=8)
    data = msssl.Shapes(train_images=40, test_images=10, num_workers=0, batch_size=8)
    trainer = make_trainer()
    trainer.fit(module, datamodule=data)
    path = tmp_path_factory.mktemp("fit") / "fitted.ckpt"
    trainer.save_checkpoint(path)
    return module, path


@pytest.mark.parametrize(
    "make",
    [
        lambda: msssl.BarlowTwins(0.02, proj_dim=8, proj_layers=1),
        lambda: msssl.VICReg(sim_coeff=3.0, proj_dim=8, feature_dim=512),
        lambda: Energy(temperature=0.5, proj_dim=8, proj_hidden_dim=4),
    ],
    ids=["BarlowTwins", "VICReg", "Energy"],
)
def test_abstract_class_loads_the_class_and_weights_that_were_saved(make, tmp_path):
    module = make()
    loaded = MultiViewModule.load_from_checkpoint(save(module, tmp_path / "x.ckpt"))
    assert type(loaded) is type(module)
    assert loaded.hparams == module.hparams
    assert_close(loaded.state_dict(), module.state_dict(), rtol=0, atol=0)
    for name in ("beta", "sim_coeff", "temperature"):
        assert getattr(loaded, name, None) == getattr(module, name, None)


def test_subclass_with_a_signature_of_its_own_loads(tmp_path):
    module = Narrow(width=4)
    loaded = MultiViewModule.load_from_checkpoint(save(module, tmp_path / "x.ckpt"))
    assert type(loaded) is Narrow
    assert_close(loaded.state_dict(), module.state_dict(), rtol=0, atol=0)


class Own(nn.Module):
    """A backbone of the user's own class, whose arguments no checkpoint can know."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)

    def forward(self, images):
        return self.conv(images).mean(dim=(2, 3))


def test_module_given_in_python_is_asked_for_by_name(tmp_path):
    module = msssl.BarlowTwins(beta=0.2, backbone=Own(6), proj_dim=8)
    path = save(module, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"^BarlowTwins was built in Python with backbone: [^\n]*$"):
        MultiViewModule.load_from_checkpoint(path)
    loaded = MultiViewModule.load_from_checkpoint(path, backbone=Own(6))
    assert type(loaded) is msssl.BarlowTwins
    assert loaded.beta == 0.2
    assert_close(loaded.state_dict(), module.state_dict(), rtol=0, atol=0)


def test_function_given_in_python_is_asked_for_too(tmp_path):
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.1)

    path = save(Energy(backbone=Own(6), optimizer=sgd), tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="backbone, optimizer"):
        MultiViewModule.load_from_checkpoint(path)
    with pytest.raises(ValueError, match="with optimizer:"):
        MultiViewModule.load_from_checkpoint(path, backbone=Own(6))
    loaded = MultiViewModule.load_from_checkpoint(path, backbone=Own(6), optimizer=sgd)
    assert isinstance(loaded.configure_optimizers(), torch.optim.SGD)


def test_what_a_module_learned_by_is_not_needed_to_evaluate_it(tmp_path):
    module = msssl.BarlowTwins(backbone=Own(6), proj_dim=8, optimizer=lambda parameters: torch.optim.SGD(parameters))
    checkpoint = read(save(module, tmp_path / "x.ckpt"))
    with pytest.raises(MissingArgumentsError, match="with backbone:") as raised:
        MultiViewModule.from_checkpoint(checkpoint, without=("optimizer", "lr_scheduler", "proj_dim"))
    assert (raised.value.owner, raised.value.names) == ("BarlowTwins", ["backbone"])
    loaded = MultiViewModule.from_checkpoint(checkpoint, without=("optimizer",), backbone=Own(6))
    assert_close(loaded.state_dict(), module.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"width": 7},
            r"backbone\.conv\.weight is \(6, 3, 3, 3\) in the checkpoint, and \(7, 3, 3, 3\) in the network",
        ),
        ({"proj_layers": 3}, r"projector\.\d\.\w+ is .* in the checkpoint, and .* in the network"),
        ({"proj_layers": 1}, r"projector\.\d\.\w+ is .* in the checkpoint, and .* in the network"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(change, message, tmp_path):
    path = save(msssl.BarlowTwins(backbone=Own(6), feature_dim=6, proj_dim=8), tmp_path / "x.ckpt")
    change = dict(change)
    with pytest.raises(ValueError, match=rf"^the weights do not fit BarlowTwins: {message}$"):
        MultiViewModule.load_from_checkpoint(path, backbone=Own(change.pop("width", 6)), **change)


# Objects of msssl that are given in Python.

MADE = {
    "backbone": lambda: msssl.ResNet(34, width=8, low_resolution=False),
    "preset": lambda: msssl.MultiView(3, "stl10", mean="auto", std="auto"),
    "list": lambda: msssl.MultiView(
        2,
        [
            RandomResizedCropFlip((24, 24), p_flip=0.1),
            ColorJitterGrayscale(0.4, 0.4),
            BlurSolarize(3, p_blur=[1.0, 0.1]),
        ],
    ),
    "several sizes": lambda: MultiCrop([msssl.MultiView(2), msssl.MultiView(3, [RandomResizedCropFlip((8, 8))])]),
}


@pytest.mark.parametrize("name", MADE)
def test_an_object_of_msssl_is_built_again_from_plain_data(name):
    made = MADE[name]()
    state = torch.get_rng_state()
    plain = json.loads(json.dumps(describe(made)))
    assert torch.equal(torch.get_rng_state(), state)  # the random numbers of a run do not depend on it
    for each in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        again = build(describe(each))
        assert type(again) is type(made)
        assert repr(again) == repr(made)
        assert again.state_dict().keys() == made.state_dict().keys()
    assert repr(build(plain)) == repr(made)  # lists for tuples


def test_a_subclass_or_a_changed_object_is_not_taken_for_what_it_was():
    class Mine(msssl.ResNet):
        pass

    changed = msssl.ResNet(18, width=8)
    changed.maxpool = nn.MaxPool2d(2)  # no parameter tells
    of_another_library = msssl.MultiView(2, [K.RandomHorizontalFlip()])
    for made in (Mine(18, width=8), changed, of_another_library, nn.Conv2d(3, 3, 1), len):
        with pytest.raises(TypeError):
            describe(made)


@pytest.mark.parametrize("path", ["os.system", "msssl.BarlowTwins", "msssl.run.files.read", "msssl.views.Preprocess"])
def test_only_recorded_classes_are_built_from_a_checkpoint(path):
    hyperparameters = {
        "views": {"class_path": path, "init_args": {}},
        "_recorded": ["views"],
        "_class_path": "msssl.Shapes",
    }
    with pytest.raises(ValueError, match=rf"names {re.escape(path)}, which is no class that msssl records"):
        MultiViewDataModule.from_hyperparameters({"datamodule_hyper_parameters": hyperparameters})


def test_a_backbone_of_msssl_given_in_python_needs_not_be_given_again(fitted):
    module, path = fitted
    loaded = MultiViewModule.load_from_checkpoint(path)
    assert loaded.backbone.width == 8
    assert loaded.hparams == module.hparams
    assert_close(loaded.state_dict(), module.state_dict(), rtol=0, atol=0)


def test_keyword_replaces_the_saved_argument(fitted):
    loaded = MultiViewModule.load_from_checkpoint(fitted[1], backbone=narrow_backbone(), beta=0.5)
    assert loaded.beta == 0.5


def test_checkpoint_of_a_sibling_is_refused(fitted):
    with pytest.raises(ValueError, match=r"BarlowTwins, not a VICReg"):
        msssl.VICReg.load_from_checkpoint(fitted[1])


def test_checkpoint_loads_without_running_code(fitted):
    module, path = fitted
    checkpoint = torch.load(path, weights_only=True)
    assert_close(checkpoint["state_dict"], module.state_dict(), rtol=0, atol=0)
    assert checkpoint["hyper_parameters"]["beta"] == 0.2
    assert checkpoint["datamodule_hyper_parameters"]["batch_size"] == 8


@pytest.mark.parametrize("weights_only", [False, True])
def test_every_checkpoint_says_what_evaluation_does_to_an_image(weights_only, fitted, tmp_path):
    module, _ = fitted
    module.trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=weights_only)
    preprocess = Preprocess.from_dict(torch.load(tmp_path / "x.ckpt", weights_only=True)["preprocess"])
    views = msssl.MultiView()
    expected = (views.mean, views.std, (32, 32), None, None, None, 4)
    fields = ("mean", "std", "image_size", "resize", "crop", "window", "n_views")
    assert tuple(getattr(preprocess, name) for name in fields) == expected
    assert [line.partition("(")[0] for line in preprocess.recipe] == ["RandomResizedCropFlip", "ColorJitterGrayscale"]
    loaded = MultiViewModule.load_from_checkpoint(tmp_path / "x.ckpt", backbone=narrow_backbone())
    assert loaded.preprocess == preprocess


class OtherData(LightningDataModule):
    """A user's own data module, which knows nothing of msssl."""

    def train_dataloader(self):
        views = torch.randn(3, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        return DataLoader([{"views": views, "label": torch.zeros(4).long()}], batch_size=None)


def test_a_data_module_that_is_not_ours_still_saves(tmp_path):
    module = msssl.BarlowTwins(backbone=narrow_backbone(), proj_dim=8)
    trainer = make_trainer()
    trainer.fit(module, datamodule=OtherData())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = read(tmp_path / "x.ckpt")
    assert "preprocess" not in checkpoint
    with pytest.raises(ValueError, match=r"x\.ckpt does not say how images are normalised: [^\n]*$"):
        preprocess_of(tmp_path / "x.ckpt", checkpoint)


def test_a_checkpoint_of_version_0_1_says_it_by_its_data_module(fitted):
    checkpoint = read(fitted[1])
    expected = Preprocess.from_dict(checkpoint.pop("preprocess"))
    assert preprocess_of(fitted[1], checkpoint) == expected


def test_data_module_is_rebuilt_with_its_seed(fitted):
    loaded = MultiViewDataModule.load_from_checkpoint(fitted[1])
    assert type(loaded) is msssl.Shapes
    assert loaded.batch_size == 8
    assert loaded.counts == {"train": 40, "test": 10}
    assert loaded.seed == 7  # its order and views


def test_views_given_in_python_come_back_or_are_asked_for_by_name():
    data = msssl.Shapes(batch_size=8, views=msssl.MultiView(n_views=2))
    loaded = MultiViewDataModule.from_hyperparameters({"datamodule_hyper_parameters": dict(data.hparams)})
    assert (loaded.views.n_views, loaded.batch_size) == (2, 8)
    data = msssl.Shapes(batch_size=8, views=msssl.MultiView(2, [K.RandomHorizontalFlip()]))
    checkpoint = {"datamodule_hyper_parameters": dict(data.hparams)}
    with pytest.raises(ValueError, match="Shapes was built in Python with views:"):
        MultiViewDataModule.from_hyperparameters(checkpoint)
    views = msssl.MultiView(n_views=3)
    loaded = MultiViewDataModule.from_hyperparameters(checkpoint, views=views)
    assert (loaded.views, loaded.batch_size) == (views, 8)
    loaded = MultiViewDataModule.from_hyperparameters(checkpoint, without=("views",))
    assert (loaded.views.n_views, loaded.batch_size) == (4, 8)


def test_checkpoint_of_the_command_line_names_its_classes():
    module = MultiViewModule.from_hyperparameters({"hyper_parameters": {**CLI, "backbone": NARROW}})
    assert type(module) is msssl.BarlowTwins
    assert module.feature_dim == 64


@pytest.mark.parametrize(
    "hyperparameters",
    [
        {"_class_path": "untrusted_module.X"},
        {"_class_path": "msssl.BarlowTwins", "backbone": {"class_path": "untrusted_module.X"}},
        {**CLI, "backbone": {"class_path": "untrusted_module.X"}},
        {**CLI, "backbone": {"class_path": "msssl.ResNet", "init_args": {"a": [{"class_path": "untrusted_module.X"}]}}},
        # For a class, jsonargparse also takes a bare name, and YAML in a string.
        {**CLI, "backbone": NARROW, "optimizer": "untrusted_module.X"},
        {**CLI, "backbone": NARROW, "optimizer": "class_path: untrusted_module.X"},
    ],
    ids=["class", "argument", "cli argument", "nested", "bare name", "yaml"],
)
def test_untrusted_class_path_is_refused_and_not_imported(hyperparameters, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "untrusted_module.py").write_text("def X(*args, **kwargs): pass")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    path = craft(tmp_path / "x.ckpt", **hyperparameters)
    try:
        with pytest.raises(ValueError, match=r"untrusted_module\.X"):
            MultiViewModule.load_from_checkpoint(path)
        assert "untrusted_module" not in sys.modules
    finally:
        sys.modules.pop("untrusted_module", None)


def test_class_in_a_file_of_the_working_directory_is_trusted(tmp_path, monkeypatch):
    (tmp_path / "my_method.py").write_text("from msssl import BarlowTwins\nclass Mine(BarlowTwins): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = {"hyper_parameters": {"_class_path": "my_method.Mine", "proj_dim": 8}}
    try:
        assert type(MultiViewModule.from_hyperparameters(checkpoint)).__name__ == "Mine"
    finally:
        sys.modules.pop("my_method", None)


@pytest.mark.parametrize("content", ["garbage", "empty", "truncated", "missing", "folder"])
def test_unreadable_file_is_named(content, fitted, tmp_path):
    path = tmp_path / "x.ckpt"
    if content == "folder":
        path.mkdir()
    elif content != "missing":
        whole = fitted[1].read_bytes()
        path.write_bytes({"garbage": b"no checkpoint", "empty": b"", "truncated": whole[: len(whole) // 2]}[content])
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} cannot be read as a checkpoint: [^\n]+$"):
        MultiViewModule.load_from_checkpoint(path)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"state_dict": Trap()}, tmp_path / "zip.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Trap(), protocol=2))
    for name in ("zip.ckpt", "plain.ckpt"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a checkpoint"):
            read(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_find_takes_a_file_or_the_last_checkpoint_of_a_run(tmp_path):
    path = touch(tmp_path / "run" / "best.ckpt", 1)
    last = touch(tmp_path / "run" / "last.ckpt", 0)
    assert find(str(path)) == path
    assert find(str(tmp_path / "run")) == last


def make_run(folder, seconds, written_in=None):
    """A folder as `msssl fit` leaves it, last changed so long after the first."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed_everything: 0\nmodel: {}\ndata: {}\nlast_checkpoint: {}\n")
    state = {"dirpath": str(written_in or folder)}
    torch.save({"callbacks": {"LastCheckpoint{'monitor': None}": state}}, folder / "last.ckpt")
    for name in ("config.yaml", "last.ckpt"):
        os.utime(folder / name, (seconds, seconds))
    return folder / "last.ckpt"


def test_find_last_is_the_newest_run_by_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seconds, run in enumerate("cadb"):  # b is the newest, neither first nor last by name
        newest = make_run(Path("runs", run), seconds)
    touch(Path("runs", "a", "best.ckpt"), 3000)
    elsewhere = make_run(Path("elsewhere", "study", "cell", "run"), 500)
    assert find("last") == newest
    assert find("last", root="elsewhere") == elsewhere
    (tmp_path / "large").mkdir()
    moved = make_run(tmp_path / "large" / "run", 4000, written_in="runs/moved")
    Path("runs", "moved").symlink_to(moved.parent)
    assert find("last") == Path("runs", "moved", "last.ckpt")


@pytest.mark.parametrize(
    "stranger",
    [
        "mine/checkpoints/last.ckpt",  # of a ModelCheckpoint of one's own
        "mine/previous/last.ckpt",
        "mine/wandb/run-1/files/config.yaml",
        "wandb/run-1/files/config.yaml",
        "hydra/.hydra/config.yaml",
        "hydra/config.yaml",
        "lightning/last.ckpt",  # of another program
        ".trash/last.ckpt",
    ],
)
def test_find_last_takes_no_other_file_for_a_run(tmp_path, monkeypatch, stranger):
    monkeypatch.chdir(tmp_path)
    ours = make_run(Path("runs", "mine"), 0)
    path = touch(Path("runs", stranger), 100)
    if path.name == "config.yaml":
        path.write_text("seed: 1\nmodel: {lr: 1}\ntrainer: {}\ndata: {}\n")  # as of a template for Lightning
    elif "mine" in stranger:
        torch.save(
            torch.load(ours, weights_only=True), path
        )  # such a callback writes the same, other callbacks included
    assert find("last") == ours


def test_find_last_passes_over_a_copy_of_a_run(tmp_path, monkeypatch):
    """Not over a run that was renamed, nor over a copy that went on in its own folder."""
    monkeypatch.chdir(tmp_path)
    original = make_run(Path("runs", "a"), 0)
    make_run(Path("runs", "backup-of-a"), 100, written_in="runs/a")
    make_run(Path("runs", "backup", "a"), 200, written_in="runs/a")
    assert find("last") == original
    branch = make_run(Path("runs", "branch-of-a"), 300)
    assert find("last") == branch
    branch.parent.rename("runs/good")
    assert find("last") == Path("runs", "good", "last.ckpt")


def test_find_last_knows_the_run_of_a_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = make_run(Path("runs", "script"), 0)
    (ours.parent / "config.yaml").unlink()
    assert find("last") == ours


def test_find_names_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"ckpt_path last: .* below runs"):
        find("last")
    make_run(Path("runs", "a"), 0).unlink()
    with pytest.raises(FileNotFoundError, match=r"ckpt_path last: .* below runs"):
        find("last")
    with pytest.raises(FileNotFoundError, match=r"ckpt_path runs/a: runs/a/last\.ckpt is not a file"):
        find("runs/a")
    with pytest.raises(FileNotFoundError, match=r"ckpt_path none\.ckpt"):
        find("none.ckpt")


def test_class_defined_in_a_script_loads(monkeypatch):
    class Mine(msssl.BarlowTwins):
        pass

    monkeypatch.setattr(sys.modules["__main__"], "Mine", Mine, raising=False)
    checkpoint = {"hyper_parameters": {"_class_path": "__main__.Mine", "backbone": "resnet18", "proj_dim": 8}}
    assert type(MultiViewModule.from_hyperparameters(checkpoint)) is Mine


# A relative path is meant from where the run began.


@pytest.fixture
def begun(image_folder, monkeypatch):
    """The checkpoint of a run of a script in the folder that has `images` and `names.txt`, and its config's file."""
    place = image_folder.parent
    monkeypatch.chdir(place)
    Path("names.txt").write_text("cat\ndog\n")
    data = msssl.ImageFolder("images", image_size=8, classes="names.txt", batch_size=4, num_workers=0)
    trainer = make_trainer()
    trainer.fit(msssl.BarlowTwins(backbone=Own(6), proj_dim=4), datamodule=data)
    trainer.save_checkpoint("runs/A/last.ckpt")
    arguments = {"data_dir": "images", "classes": "names.txt", "cache_dir": None, "manifest": "/absolute.csv"}
    config = {"data": {"class_path": "msssl.ImageFolder", "init_args": arguments}}
    Path("runs/A/config.yaml").write_text(yaml.safe_dump(config))
    (place / "elsewhere" / "images").mkdir(parents=True)  # others, of the same name
    monkeypatch.chdir(place / "elsewhere")
    return place / "runs" / "A" / "last.ckpt"


def test_relative_paths_of_a_run_are_found_from_another_folder(begun, caplog):
    place = begun.parents[2]
    with caplog.at_level("INFO"):
        data = data_of(begun, read(begun))
    assert f"data_dir: {place / 'images'}, as the run began in {place}" in caplog.text
    data.setup()
    assert data.data_dir == str(place / "images")
    assert len(data.splits["probe"]) + len(data.splits["val"]) == 24


@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
def test_flags_of_the_command_win_over_the_paths_of_a_run(command, begun):
    place = begun.parents[2]
    args = expand([command, "--ckpt_path", str(begun.parent), "--data.data_dir", "mine"])
    saved = ["--config", str(begun.with_name("config.yaml"))]
    paths = ["--data.data_dir", str(place / "images"), "--data.classes", str(place / "names.txt")]
    assert args == [command, *saved, *paths, "--ckpt_path", str(begun), "--data.data_dir", "mine"]


def test_paths_of_a_project_that_was_moved_stay_relative(begun, monkeypatch):
    place = begun.parents[2]
    moved = place.with_name("moved")
    place.rename(moved)
    monkeypatch.chdir(moved)
    data = data_of(Path("runs/A/last.ckpt"), read("runs/A/last.ckpt"))
    assert data.data_dir == "images"
    assert expand(["fit", "--ckpt_path", "runs/A"])[3:] == ["--ckpt_path", "runs/A/last.ckpt"]


def test_a_command_in_the_folder_of_the_run_leaves_paths_as_they_are(begun, monkeypatch):
    monkeypatch.chdir(begun.parents[2])
    assert data_of(begun, read(begun)).data_dir == "images"


def test_the_default_folder_of_images_is_found_too(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    data = msssl.Shapes(batch_size=8)
    checkpoint = {"datamodule_hyper_parameters": dict(data.hparams), "working_dir": str(tmp_path)}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert data_of(tmp_path / "x.ckpt", checkpoint).data_dir == str(tmp_path / "data")


VERSION_0_1 = Path(__file__).with_name("version-0.1")


def test_a_checkpoint_of_version_0_1_that_was_built_in_python_loads():
    module = MultiViewModule.load_from_checkpoint(VERSION_0_1 / "python.ckpt")
    assert type(module) is msssl.BarlowTwins
    assert module.proj_dim == 4
    assert_close(module.state_dict(), read(VERSION_0_1 / "python.ckpt")["state_dict"], rtol=0, atol=0)
    data = MultiViewDataModule.load_from_checkpoint(VERSION_0_1 / "python.ckpt")
    assert (type(data), data.image_size, data.views.n_views) == (msssl.Shapes, 16, 2)


def test_a_run_of_version_0_1_goes_on(msssl, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(VERSION_0_1 / "run", run)
    code, _, err = msssl("fit", "--ckpt_path", run, "--trainer.max_epochs=2")
    assert code == 0, err
    assert read(run / "last.ckpt")["epoch"] == 1
    assert "epoch 2 of 2" in err
    assert "changed: --trainer.max_epochs 1 -> 2\n" in err  # arguments that the classes did not have then are no change
