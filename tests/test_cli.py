import re
import shlex
import subprocess
import sys
from inspect import signature
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import NARROW, TINY_IMAGES
from lightning.pytorch.callbacks import ProgressBar
from PIL import Image

from msssl import BarlowTwins, ImageFolder, MultiView, MultiViewDataModule, MultiViewModule, Shapes, __version__
from msssl.cli import help
from msssl.cli.arguments import expand
from msssl.cli.epoch_lines import EpochLines
from msssl.cli.parser import Parser
from msssl.cli.summary import print_summary
from msssl.data.inspect import inspect
from msssl.run.files import NotWrittenError
from msssl.run.loggers import ShortEpochs
from msssl.run.run_folder import clean_up_failed_run

SHAPES = [
    "fit",
    "--config",
    "demo.yaml",
    *NARROW,
    *TINY_IMAGES,
    "--trainer.max_epochs=1",
    "--trainer.log_every_n_steps=1",
]
CONFIGS = sorted(path.name for path in Path(__file__).parents[1].glob("configs/*.yaml"))
OVERLAYS = {
    "resnet50.yaml",
    "ddp.yaml",
    "simclr.yaml",
    "spectral_contrastive.yaml",
    "mmcr.yaml",
    "multicrop.yaml",
    "ffcv.yaml",
    "lars.yaml",
    "large_projector.yaml",
    "lejepa.yaml",
    "frossl.yaml",
    "logdet.yaml",
    "visreg.yaml",
    "mvdhel.yaml",
    "byol.yaml",
    "simsiam.yaml",
    "vit.yaml",
}
BASES = {"multicrop.yaml": "demo.yaml"}  # its views are larger than CIFAR's images
STAND_INS = {
    "cifar.yaml": "cifar10_folder",
    "speedrun.yaml": "cifar10_folder",
    "cifar100.yaml": "cifar100_folder",
    "stl10.yaml": "stl10_folder",
    "imagefolder.yaml": "image_folder",
    "imagenet100.yaml": "imagenet_folder",
}
EXTRA = {
    "logdet.yaml": ["--model.proj_dim=3"],
    "vit.yaml": ["--data.views.n_views=2", "--model.backbone.width=48"],
    "multicrop.yaml": ["--data.image_size=64", *TINY_IMAGES[:2], *NARROW],
    "stl10.yaml": ["--data.views.n_views=2", *NARROW],
    "imagenet100.yaml": ["--data.views.n_views=2", "--data.val_fraction=0.5", *NARROW],
    "ddp.yaml": ["--data.views.n_views=2", "--trainer.devices=1", "--trainer.strategy=auto"],  # two have their own test
}
THREE_STEPS = ["--trainer.fast_dev_run=3", "--data.batch_size=4", "--data.num_workers=0"]


def readme_block(text):
    """The Python block of the README that holds this text."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    return next(block for block in re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL) if text in block)


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            name, marks={"demo.yaml": [], "large_projector.yaml": [pytest.mark.slow]}.get(name, [pytest.mark.long])
        )
        for name in CONFIGS
    ],
)
def test_every_shipped_config_takes_three_steps(config, msssl, request):
    base = BASES.get(config, "cifar.yaml") if config in OVERLAYS else config
    data_dir = request.getfixturevalue(STAND_INS[base]) if base in STAND_INS else "data"
    args = ["--config", base, *(["--config", config] if config in OVERLAYS else [])]
    if config == "ffcv.yaml":
        pytest.importorskip("ffcv")
        assert msssl("write-beton", *args[:2], "--data.num_workers=0")[0] == 0
        data_dir = "beton"
    on_cpu = ["--trainer.accelerator=cpu", "--data.data_dir", data_dir]
    code, _, err = msssl("fit", *args, *on_cpu, *THREE_STEPS, *EXTRA.get(config, ["--data.views.n_views=2"]))
    assert code == 0, err


@pytest.mark.parametrize("config", CONFIGS)
def test_every_shipped_config_says_what_it_is_for(config):
    lines = (Path(__file__).parents[1] / "configs" / config).read_text().splitlines()
    header = " ".join(takewhile(lambda line: line.startswith("#"), lines))
    assert re.search(r"\b(GPU|CPU)", header)
    assert re.search(r"\b(minutes|hours|time|s on)\b", header)


@pytest.mark.parametrize("config", sorted(set(CONFIGS) - OVERLAYS - {"demo.yaml"}))
def test_every_config_for_a_gpu_lets_it_choose_the_fastest_convolutions(config):
    path = Path(__file__).parents[1] / "configs" / config
    assert yaml.safe_load(path.read_text())["trainer"]["benchmark"] is True


def test_a_run_leaves_everything_in_its_folder(msssl, tmp_path):
    code, out, err = msssl(*SHAPES)
    assert code == 0, err
    (run,) = (tmp_path / "runs").iterdir()
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "last.ckpt", "best.ckpt", "views.png", "metrics.csv"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    assert {"train/loss", "train/invariance", "train/redundancy", "val/probe_top1", "lr-Adam"} <= set(header.split(","))
    assert rows
    assert f"msssl probe --ckpt_path runs/{run.name}/last.ckpt" in out
    assert re.search(r"0\.\d\d\d top-1 on validation images \(online linear probe", out)
    assert "loss of BarlowTwins: beta 0.0195312, form mean" in err
    assert "Tip" not in err + out
    # The saved config is the whole run.
    saved = run / "config.yaml"
    code, printed, _ = msssl("fit", "--config", saved, "--print_config")
    ours, again = yaml.safe_load(saved.read_text()), yaml.safe_load(printed)
    assert again == ours


def test_two_runs_have_two_folders_and_equal_weights(msssl, tmp_path):
    for _ in range(2):
        assert msssl(*SHAPES)[0] == 0
    first, second = (torch.load(path, weights_only=True) for path in sorted(tmp_path.glob("runs/*/last.ckpt")))
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name


def test_overlays_change_one_value(msssl, tmp_path):
    overlay = write(tmp_path / "more.yaml", "data: {views: {n_views: 8}}\nonline_probe: {lr: 0.5}\n")
    code, out, err = msssl(
        "fit", "--config", "cifar.yaml", "--config", overlay, "--model.proj_dim", 128, "--print_config"
    )
    assert code == 0, err
    config = yaml.safe_load(out)
    assert config["data"]["class_path"] == "msssl.CIFAR10"
    assert config["data"]["init_args"]["views"]["init_args"]["n_views"] == 8
    assert config["data"]["init_args"]["views"]["init_args"]["augmentations"] == "cifar"
    assert config["online_probe"]["init_args"]["lr"] == 0.5
    assert config["model"]["init_args"]["proj_dim"] == 128
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-3


def test_overlay_of_callbacks_keeps_checkpoints_and_probe(msssl, tmp_path):
    overlay = write(
        tmp_path / "timer.yaml",
        "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: train/loss}}]}\n",
    )
    code, out, err = msssl(*SHAPES, "--config", overlay)
    assert code == 0, err
    assert "val/probe_top1" in out or "top-1 on validation" in out
    assert len(list(tmp_path.glob("runs/*/last.ckpt"))) == 1


def test_the_key_on_of_a_config_is_a_word(msssl, tmp_path):
    overlay = write(tmp_path / "on.yaml", "online_probe: {class_path: OnlineProbe, init_args: {on: projector.0}}\n")
    code, out, err = msssl(*SHAPES, "--config", overlay, "--print_config")
    assert code == 0, err
    assert yaml.safe_load(out)["online_probe"]["init_args"]["on"] == "projector.0"


def test_a_loss_of_ones_own(msssl, tmp_path):
    write(tmp_path / "my_losses.py", readme_block("class Alignment"))
    code, _, err = msssl(*SHAPES, "--model", "my_losses.Alignment", "--model.weight", 2)
    assert code == 0, err
    assert "train/uniformity" in next(tmp_path.glob("runs/*/metrics.csv")).read_text()
    checkpoint = next(tmp_path.glob("runs/*/last.ckpt"))
    from msssl import MultiViewModule

    loaded = MultiViewModule.load_from_checkpoint(checkpoint)
    assert (type(loaded).__name__, loaded.weight) == ("Alignment", 2)


def test_probe_off(msssl, tmp_path):
    code, _, err = msssl(*SHAPES, "--online_probe", "null")
    assert code == 0, err
    assert "probe" not in next(tmp_path.glob("runs/*/metrics.csv")).read_text()
    assert "best checkpoint: that of the highest val/rankme" in err
    assert list(tmp_path.glob("runs/*/best.ckpt"))


WANDB = """
from lightning.pytorch.loggers import Logger

class Wandb(Logger):  # as that of W&B, without a server
    name, version = "stand-in", 0

    def __init__(self, path):
        super().__init__()
        self.path = path

    def log_metrics(self, metrics, step=None):
        self.write(step, *metrics)

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def log_image(self, key, images, step=None, **kwargs):
        self.write(step, key, *(f"{image.mode} {image.size[0] > 60}" for image in images))

    def write(self, *words):
        with open(self.path, "a") as file:
            print(*words, sep=",", file=file)
"""


def test_another_logger_is_added_to_those_of_the_run(msssl, tmp_path):
    """Ours stay, and one with `log_image` gets the pictures."""
    write(tmp_path / "stand_in.py", WANDB)
    code, _, err = msssl(*SHAPES, "--trainer.logger=stand_in.Wandb", "--trainer.logger.path=said.txt")
    assert code == 0, err
    (run,) = (tmp_path / "runs").iterdir()
    names = {path.name for path in run.iterdir() if "events" not in path.name}
    assert {"config.yaml", "last.ckpt", "best.ckpt", "views.png", "metrics.csv"} <= names
    assert list(run.glob("events.*"))
    said = (tmp_path / "said.txt").read_text().splitlines()
    for name in ("views", "eigenspectrum", "neighbours"):
        assert [line.split(",")[1:] for line in said if f",{name}," in line] == [[name, "RGB True"]]
    assert any("train/loss" in line for line in said)


def test_a_run_without_labels_ends_with_its_embeddings_and_has_a_report(msssl, tmp_path):
    images = tmp_path / "flat"
    images.mkdir()
    for i in range(40):
        pixels = np.random.default_rng(i).integers(256, size=(16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
    options = ["--data.data_dir=flat", "--data.batch_size=8", "--data.num_workers=0", "--trainer.max_epochs=2"]
    options += ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--model.compile=false"]
    code, out, err = msssl("fit", "--config=imagefolder.yaml", *NARROW, *options)
    assert code == 0, err
    assert re.search(r"^embeddings  RankMe [\d.]+, .*spread [\d.]+ \(validation images", out, re.MULTILINE)
    assert "best checkpoint: that of the highest val/rankme" in err
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "best.ckpt").is_file()
    code, out, err = msssl("report", f"runs/{run.name}")
    assert code == 0, err
    assert "RankMe" in out
    assert run.name in (tmp_path / "report.md").read_text()


def test_no_logger_at_all(msssl, tmp_path):
    code, _, err = msssl(*SHAPES, "--trainer.logger=false")
    assert code == 0, err
    (run,) = (tmp_path / "runs").iterdir()
    assert not [path for path in run.iterdir() if "events" in path.name or path.name == "metrics.csv"]


def test_commands_on_the_last_checkpoint(msssl, tmp_path):
    assert msssl(*SHAPES)[0] == 0
    (run,) = (tmp_path / "runs").iterdir()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    code, out, err = msssl("validate", "--ckpt_path", "last")
    assert code == 0, err
    online = float(re.search(r"val/probe_top1\W+([\d.]+)", out)[1])
    saved = torch.load(run / "last.ckpt", weights_only=True)
    (best,) = (state for name, state in saved["callbacks"].items() if name.startswith("BestCheckpoint"))
    assert online == pytest.approx(float(best["best_model_score"]))
    code, out, err = msssl("test", "--ckpt_path", run)
    assert code == 0, err
    assert "test/probe_top1" in out
    code, _, err = msssl("predict", f"--ckpt_path={run / 'last.ckpt'}")
    assert code == 0, err
    features = np.load(run / "features.npz")
    assert features["features"].shape == (20, 64)
    assert features["index"].tolist() == list(range(20))
    # Looking at a run changes nothing in it.
    assert {name: (run / name).read_bytes() for name in before} == before


@pytest.mark.long
def test_probe_table(msssl, tmp_path):
    assert msssl(*SHAPES)[0] == 0
    code, out, err = msssl("probe", "--ckpt_path", "last")
    assert code == 0, err
    report = yaml.safe_load(next(tmp_path.glob("runs/*/probe.json")).read_text())
    assert [row["features"] for row in report["rows"]] == ["raw pixels", "untrained encoder", "pretrained encoder"]
    assert [row["dim"] for row in report["rows"]] == [3072, 64, 64]
    assert report["images"] == {"probe": 50, "val": 10, "test": 20, "cv": 60}  # too few in val to choose by
    assert "refitted on train + val, test read once" in report["protocol"]
    for row in report["rows"]:
        assert f"{row['test_top1']:.3f}" in out


@pytest.mark.long
def test_two_ranks(tmp_path):
    write(
        tmp_path / "recording_module.py",
        "import torch, msssl\n"
        "class Recording(msssl.BarlowTwins):\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        torch.save(batch, f'batch-{self.global_rank}.pt')\n"
        "        return super().training_step(batch, batch_idx)\n",
    )
    args = [*SHAPES, "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
    args += ["--model=recording_module.Recording"]
    done = subprocess.run([sys.executable, "-m", "msssl", *args], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "32 images (16 on each of 2 devices)" in done.stderr
    (run,) = (tmp_path / "runs").iterdir()  # one folder, chosen by rank 0
    assert {"config.yaml", "last.ckpt", "views.png", "metrics.csv"} <= {path.name for path in run.iterdir()}
    assert len(list(run.glob("events.*"))) == 1
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 50 // 32
    assert done.stdout.count("msssl probe --ckpt_path") == 1
    # The ranks share an epoch, and no two views are equal.
    batches = [torch.load(tmp_path / f"batch-{rank}.pt") for rank in (0, 1)]
    assert len(torch.cat([batch["index"] for batch in batches]).unique()) == 32
    views = torch.cat([batch["views"].flatten(0, 1).flatten(1) for batch in batches])
    assert len(views) == 2 * 4 * 16
    assert len(views.unique(dim=0)) == len(views)


def test_inspect_draws_what_the_first_step_sees(msssl, tmp_path):
    """The picture is that of a fit with the same arguments."""
    args = ["--config", "demo.yaml", *NARROW, *TINY_IMAGES, "--data.fraction=0.4", "--seed_everything=3"]
    code, out, err = msssl("inspect", *args, "--out", "seen.png")
    assert code == 0, err
    assert re.search(r"train +│ 20 +│ 20 +│ 10 +│ 2 ", out)  # of 6 a class, 1 held out, then 0.4 of 5
    assert re.search(r"test +│ 20 +│ 20 +│ 10 +│ 2 ", out)
    assert "32 x 32 pixels" in out
    assert "4 for each of 16 images a device: seen.png" in out
    assert {path.name for path in tmp_path.iterdir()} == {"seen.png"}
    assert msssl("fit", *args, "--trainer.max_steps=1")[0] == 0
    assert (tmp_path / "seen.png").read_bytes() == next(tmp_path.glob("runs/*/views.png")).read_bytes()


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("file/seen.png", "file is not a directory"),
        ("folder.png", "it is a folder"),
        ("/proc/nope/seen.png", "No such file or directory"),
    ],
)
def test_inspect_says_that_its_picture_cannot_be_written_before_it_reads_an_image(tmp_path, monkeypatch, out, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    data = Shapes(train_images=20, test_images=10, num_workers=0)
    monkeypatch.setattr(data, "setup", lambda: pytest.fail("images were read"))
    with pytest.raises(NotWrittenError, match=f"^{out} cannot be written: {reason}$"):
        inspect(data, out)


def test_inspect_of_unlabelled_images_and_of_several_sizes(msssl, tmp_path):
    for i in range(20):
        (tmp_path / "plain" / "train").mkdir(parents=True, exist_ok=True)
        pixels = torch.full((70, 66, 3), 10 * i, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "plain" / "train" / f"{i:02}.png")
    args = ["--config", "imagefolder.yaml", "--config", "multicrop.yaml", "--data.data_dir=plain"]
    code, out, err = msssl("inspect", *args, "--data.batch_size=4", "--data.num_workers=0")
    assert code == 0, err
    assert re.search(r"train +│ 18 +│ 0 +│ - +│ - ", out)
    assert "64 x 64 pixels" in out
    assert "8 for each of 4 images a device: views.png" in out
    assert (tmp_path / "views.png").is_file()


def test_stl10_pretrains_without_labels_and_probes_with(msssl, tmp_path, stl10_folder):
    args = ["--config", "stl10.yaml", *NARROW, "--trainer.accelerator=cpu"]
    args += ["--data.batch_size=8", "--data.num_workers=0", "--trainer.max_epochs=1", "--data.val_fraction=0.5"]
    code, out, err = msssl("fit", *args)
    assert code == 0, err
    assert "images: 40 train, 10 probe, 10 val, 10 test" in err
    assert re.search(r"0\.\d\d\d top-1 on validation images \(online linear probe", out)
    code, out, err = msssl("probe", "--ckpt_path", "last", "--baselines=false")
    assert code == 0, err
    report = yaml.safe_load(next(tmp_path.glob("runs/*/probe.json")).read_text())
    assert report["images"] == {"probe": 10, "val": 10, "test": 10, "cv": 20}  # too few in val to choose by


def test_stock_kornia_augmentations_in_yaml_train(msssl, tmp_path):
    write(
        tmp_path / "mine.yaml",
        "data: {views: {augmentations: [\n"
        "  {class_path: kornia.augmentation.RandomAffine, init_args: {degrees: 20.0, translate: [0.1, 0.1]}},\n"
        "  {class_path: kornia.augmentation.RandomErasing, init_args: {p: 0.3}},\n"
        "  {class_path: kornia.augmentation.RandomPlanckianJitter, init_args: {mode: blackbody}}]}}\n",
    )
    code, _, err = msssl(*SHAPES, "--config", "mine.yaml")
    assert code == 0, err


WRONG = {  # arguments after `fit --config demo.yaml`: what the one line says
    "--trainer.max_epoch 3": "no option trainer.max_epoch; did you mean trainer.max_epochs?",
    "--trainer.max_epochs many": "trainer.max_epochs: expected int or null, got many",
    "--modle BarlowTwins": "no option modle; did you mean model?",
    "--model.betta 1": "no option model.betta; did you mean beta?",
    "--model.beta high": "model.beta: expected float or auto, got high",
    "--model BarlowTwin": "model: no class BarlowTwin; did you mean BarlowTwins?",
    "--model nowhere.Loss": "nowhere",
    "--model.optimizer.lrr 1": "no option model.optimizer.lrr; did you mean lr?",
    "--model.backbone msssl.ResNet --model.backbone.depth 19": "depth is 19: a ResNet has depth 18, 34, 50",
    "--model.proj_layers -1": "proj_layers is -1",
    "--model.proj_dim 0": "proj_dim is 0: expected at least 1",
    "--model.beta -1": "beta is -1",
    "--data.views.n_views 0": "n_views is 0: expected at least 1, and 2 for a multi-view loss",
    "--data.views.n_view 3": "no option data.views.n_view; did you mean n_views?",
    "--data.views.augmentations cifra": "augmentations 'cifra' is not a preset; did you mean 'cifar'?",
    "--data.views.augmentations imagenet": "images are 32 x 32, but the preset imagenet makes views of 224",
    "--data.fraction 2": "fraction is 2.0",
    "--data.batch_size 6000": "batch_size is 6000, but train has 4500 images",
    "--data.batch_size 1": "batch_size is 1",
    "--data.data_dir null": "data.data_dir: expected str, got null",
    "--data.batch_size null": "data.batch_size: expected int, got null",
    "--data.fraction null": "data.fraction: expected float, got null",
    "--model.proj_dim null": "model.proj_dim: expected int, got null",
    "--model.beta null": "model.beta: expected float or auto, got null",
    "--model.backbone null": "model.backbone: expected str or Module, got null",
    "--model.optimizer null": "model.optimizer: expected Callable",
    "--model.optimizer.lr null": "model.optimizer.lr: expected a value, got null",
    "--config null.yaml": "data.views.n_views: expected int, got null",
    "--trainer.devices null": "devices",
    "--data null": "data missing: name a config",
    "--model.optimizer standard.json": "model.optimizer: 'standard.json' is not a value that it takes",
    "--trainer.callbacks LearningRateFinder": "LearningRateFinder is not supported",
    "--trainer.callbacks BatchSizeFinder": "BatchSizeFinder is not supported",
    "--online_probe.lr fast": "online_probe.lr: expected float, got fast",
    "--config absent.yaml": "config absent.yaml is neither here nor among those that ship with msssl: byol.yaml,",
    "--config broken.yaml": "Problems parsing config",
    "--ckpt_path absent.ckpt": "absent.ckpt is not a file",
    "--ckpt_path last": "there is no last.ckpt below runs",
    "--trainer.logger WandbLogger --trainer.logger.project x": "WandbLogger': Requirement 'wandb",
    "--trainer.strategy dpp": "strategy='dpp'",
    "--trainer.accelerator gpus": "accelerator",
    "--data ImageFolder --data.data_dir absent": "absent is not a folder",
    "--data ImageFolder --data.data_dir empty": "empty/train holds no images",
    "--data ImageFolder --data.data_dir single": "one class folder, 'cat'",
    "--data ImageFolder --data.data_dir bad --data.batch_size 2": "bad/train/cat/0.png cannot be read as an image",
    "--model.backbone.class_path torch.nn.Conv2d --model.backbone.in_channels 3 --model.backbone.out_channels 4 "
    "--model.backbone.kernel_size 3": "backbone Conv2d returned (1, 4, 30, 30): expected features of shape (N, F)",
}


@pytest.mark.parametrize("args", WRONG)
def test_wrong_input_gets_one_line(args, msssl, tmp_path):
    write(tmp_path / "broken.yaml", "data: [1\n")
    write(tmp_path / "standard.json", '{"a": 1}\n')
    write(tmp_path / "null.yaml", "data: {init_args: {views: {init_args: {n_views: null}}}}\n")
    for folder in ("empty/train", "single/train/cat", "bad/train/cat", "bad/train/dog"):
        (tmp_path / folder).mkdir(parents=True)
    for path in ("single/train/cat/0.png", *(f"bad/train/{name}/{i}.png" for name in ("cat", "dog") for i in (0, 1))):
        write(tmp_path / path, "not an image")
    before = sorted(tmp_path.rglob("*"))
    code, _, err = msssl("fit", "--config", "demo.yaml", *args.split())
    last = err.strip().splitlines()[-1]
    assert code == 2, err
    assert last.startswith("msssl: error: ")
    assert WRONG[args] in last
    assert "Traceback" not in err
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert left == []  # nothing half-written


def test_wrong_keys_in_yaml(msssl, tmp_path):
    overlay = write(tmp_path / "overlay.yaml", "data: {views: {n_view: 3}}\n")
    code, _, err = msssl("fit", "--config", "demo.yaml", "--config", overlay)
    assert (code, err.strip().splitlines()[-1]) == (
        2,
        "msssl: error: no option data.views.n_view; did you mean n_views?",
    )


def test_no_config(msssl):
    code, _, err = msssl("fit")
    assert code == 2
    assert "name a config, such as --config cifar.yaml" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="it has a GPU")
def test_a_config_for_gpus_without_one_is_one_line(msssl, tmp_path):
    code, _, err = msssl("fit", "--config", "demo.yaml", "--config", "ddp.yaml")
    assert code == 2
    assert err.strip().splitlines()[-1].startswith("msssl: error: trainer.accelerator is gpu, but there is none")
    assert not list(tmp_path.glob("runs/*"))


def test_a_bug_in_ones_own_loss_keeps_its_traceback(msssl, tmp_path):
    write(
        tmp_path / "buggy_loss_file.py",
        "from msssl import MultiViewModule\n"
        "class Buggy(MultiViewModule):\n"
        "    def compute_loss(self, z):\n"
        "        raise ValueError('mine')\n",
    )
    with pytest.raises(ValueError, match="mine"):
        msssl(*SHAPES, "--model", "buggy_loss_file.Buggy")


def test_cifar_without_network(msssl, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        from urllib.error import URLError

        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", refuse)
    code, _, err = msssl("fit", "--config", "cifar.yaml")
    assert code == 2
    assert "put cifar-10-python.tar.gz there: data/cifar-10-python.tar.gz" in err
    assert not (tmp_path / "data").exists()


LIGHT = """
import sys, msssl
from msssl.cli import main

try:
    main()
finally:
    assert "torch" not in sys.modules and "lightning" not in sys.modules
"""


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["--version"], 0, f"msssl {__version__}\n"),
        (["--help"], 0, "\n  fit          Pretrain an encoder on images, without labels.\n"),
        (["help", "probe"], 0, "usage: msssl probe [OPTIONS]"),
        (["predict", "--help"], 0, "\n  --head FILE  "),
        (["fti", "--config", "cifar.yaml"], 2, "msssl: error: no command fti; did you mean fit?\n"),
        ([], 2, "usage: msssl COMMAND [OPTIONS]"),
    ],
)
def test_help_and_mistakes_in_the_command_import_neither_torch_nor_lightning(args, code, expected):
    done = subprocess.run([sys.executable, "-c", LIGHT, *args], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert expected in (done.stderr if code else done.stdout)


@pytest.mark.parametrize("command", help.COMMANDS)
def test_a_page_of_help_fits_a_terminal_and_has_three_examples(command):
    text = help.page(command)
    assert text.startswith(help.COMMANDS[command].sentence)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert len(re.findall(r"^  msssl ", text, flags=re.MULTILINE)) == 3


@pytest.mark.parametrize("command", help.COMMANDS)
def test_a_page_of_help_names_flags_that_there_are(command, msssl):
    classes = {"model": BarlowTwins, "data": ImageFolder, "data.views": MultiView, "model.optimizer": torch.optim.Adam}
    text = help.page(command)
    code, full, err = msssl(command, "--help", "all")
    assert code == 0, err
    assert full.startswith(text)
    listed = full.removeprefix(text)
    for flag in set(re.findall(r"(?<!\S)--([\w.]+)", text)) - {"help"}:
        part, _, name = flag.rpartition(".")
        inits = [signature(base.__init__).parameters for base in classes[part].__mro__] if part in classes else []
        expected = (
            command in ("probe", "finetune", "neighbours") and flag == "config"
        )  # which is replaced before it is parsed
        expected = expected or (command == "sweep" and flag == "config") or f"--{flag}" in listed
        assert expected or any(name in parameters for parameters in inits), flag


def test_public_names():
    import msssl

    for name in msssl.__all__:
        assert getattr(msssl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = msssl.Nothing


def test_the_bar_reads_metrics_at_logging_steps_only(msssl, monkeypatch):
    from msssl.cli import lightning_cli

    reads = []
    get_metrics = lightning_cli.Bar.get_metrics

    def count(self, trainer, module):
        if trainer.training:
            reads.append(trainer.global_step)
        return get_metrics(self, trainer, module)

    monkeypatch.setattr(lightning_cli, "has_terminal", lambda: True)
    monkeypatch.setattr(lightning_cli.Bar, "get_metrics", count)
    code, _, err = msssl(*SHAPES, "--trainer.log_every_n_steps=2", "--data.batch_size=4")  # 12 steps
    assert code == 0, err
    assert set(reads) <= {0, 2, 4, 6, 8, 10, 12}
    assert {2, 4, 6} <= set(reads)


@pytest.mark.parametrize("root", ["my runs", "it's", "$HOME", "plain"])
def test_commands_to_type_name_their_files_to_a_shell(root, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    run = Path(root, "20261128-120000")
    run.mkdir(parents=True)
    (run / "last.ckpt").touch()
    (run / "events.out").touch()
    limits = {"limit_train_batches": 1.0, "max_steps": -1, "max_epochs": 2}
    trainer = SimpleNamespace(current_epoch=2, global_step=4, callback_metrics={}, datamodule=None, **limits)
    print_summary(trainer, run, None)
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shlex.split(lines["next"]) == ["msssl", "predict", "--ckpt_path", f"{run}/last.ckpt"]
    assert shlex.split(lines["watch"]) == ["tensorboard", "--logdir", root]
    with caplog.at_level("INFO", "msssl"):
        clean_up_failed_run(run, RuntimeError(), ran=True, keep=False)
    command = caplog.messages[-1].removeprefix("go on with: ")
    assert shlex.split(command) == ["msssl", "fit", "--ckpt_path", str(run)]


def test_a_config_that_fit_takes_is_one_that_probe_takes(tmp_path):
    """Both read a folder that is named like a date."""
    config = write(tmp_path / "c.yaml", "data: {class_path: msssl.ImageFolder, init_args: {data_dir: 2024-01-01}}\n")
    folders = []
    for command in ("fit", "probe"):
        parser = Parser(exit_on_error=False)
        parser.add_argument("--config", action="config")
        parser.add_subclass_arguments(MultiViewDataModule, "data")
        args = expand([command, "--config", str(config)])[1:]
        folders.append(parser.parse_args(args).data.init_args.data_dir)
    assert folders == ["2024-01-01", "2024-01-01"]


@pytest.mark.parametrize(
    ("flags", "monitor"),
    [
        ([], "train/loss"),
        (["--model.lr_scheduler.monitor=val/probe_top1"], "val/probe_top1"),
        (["--config=plateau.yaml"], "val/rankme"),
    ],
)
def test_reduce_on_plateau_by_its_short_name(flags, monitor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path / "plateau.yaml",
        "model: {class_path: BarlowTwins, init_args: {lr_scheduler: "
        "{class_path: ReduceLROnPlateau, init_args: {monitor: val/rankme}}}}\n",
    )
    parser = Parser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(MultiViewModule, "model")
    short = [] if "--config=plateau.yaml" in flags else ["--model.lr_scheduler=ReduceLROnPlateau"]
    args = expand(["fit", "--model=BarlowTwins", *NARROW, *short, *flags])[1:]
    module = parser.instantiate(parser.parse_args(args)).model
    assert module.configure_optimizers()["lr_scheduler"]["monitor"] == monitor


def test_a_run_without_checkpoints(msssl, tmp_path):
    code, out, err = msssl(*SHAPES, "--trainer.enable_checkpointing", "false")
    assert code == 0, err
    assert "none was written" in out
    assert not list(tmp_path.rglob("*.ckpt"))


def test_the_bar_says_the_speed_of_an_epoch_of_one_refresh():
    from rich.progress import Progress

    from msssl.cli.bar import Speed

    seconds = 10.0
    progress = Progress(get_time=lambda: seconds, auto_refresh=False)
    progress.add_task("epoch", total=8)
    seconds = 14.0
    progress.update(progress.task_ids[0], completed=6)
    assert Speed("default").render(progress.tasks[0]).plain == "1.50it/s"


@pytest.mark.parametrize(
    ("given", "options", "every"),
    [
        (50, {"max_epochs": 5}, 1),  # 30 steps
        (50, {"max_epochs": 30}, 6),  # 180: an epoch has a row
        (50, {"max_epochs": 30, "accumulate_grad_batches": 2}, 3),
        (4, {"max_epochs": 30}, 4),  # as it is
        (50, {"max_steps": 40, "max_epochs": -1}, 2),
        (0, {"max_epochs": 2}, 0),  # off
    ],
    ids=str,
)
def test_every_epoch_has_a_row_and_a_short_run_a_curve(given, options, every):
    trainer = SimpleNamespace(
        **{"log_every_n_steps": given, "max_steps": -1, "accumulate_grad_batches": 1, **options},
        num_training_batches=6,
        global_step=0,
        current_epoch=0,
        fit_loop=SimpleNamespace(
            epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=0)))
        ),
    )
    ShortEpochs().on_train_start(trainer, None)
    assert trainer.log_every_n_steps == every


@pytest.mark.parametrize(
    ("terminal", "options", "bars", "lines"),
    [
        (True, (), 1, 0),
        (False, (), 0, 1),
        (True, ("--trainer.enable_progress_bar=false",), 0, 1),
        (False, ("--trainer.callbacks=RichProgressBar",), 1, 0),  # the user's own
    ],
    ids=["terminal", "pipe", "without a bar", "a bar of one's own"],
)
def test_a_run_shows_a_bar_or_says_lines(msssl, monkeypatch, terminal, options, bars, lines):
    found = []

    def construct(self, config, callbacks):
        given = config["callbacks"] or []
        found.extend(callbacks + (given if isinstance(given, list) else [given]))
        raise LookupError("enough")

    monkeypatch.setattr("msssl.cli.lightning_cli.has_terminal", lambda: terminal)
    monkeypatch.setattr("lightning.pytorch.cli.LightningCLI._instantiate_trainer", construct)
    with pytest.raises(LookupError, match="enough"):
        msssl("fit", "--config=demo.yaml", *TINY_IMAGES, *NARROW, *options)
    assert sum(isinstance(each, ProgressBar) for each in found) == bars
    assert sum(isinstance(each, EpochLines) for each in found) == lines


def test_without_a_terminal_epochs_are_lines(monkeypatch, caplog):
    """The first, the last and one every ten seconds: of epochs of 4 seconds each."""
    now = iter(range(0, 100, 4))
    monkeypatch.setattr("msssl.cli.epoch_lines.monotonic", lambda: next(now))
    pace = SimpleNamespace(seconds_left=lambda trainer: 90.0)
    lines = EpochLines(pace)
    metrics = {"train/loss": torch.tensor(1.25), "val/probe_top1": torch.tensor(0.5)}
    with caplog.at_level("INFO", logger="msssl"):
        for epoch in range(8):
            trainer = SimpleNamespace(
                callback_metrics=metrics,
                current_epoch=epoch,
                max_epochs=8,
                should_stop=False,
                max_steps=-1,
                global_step=6 * (epoch + 1),
                is_global_zero=True,
            )
            lines.on_train_epoch_end(trainer, None)
    assert [record.getMessage() for record in caplog.records] == [
        "epoch 1 of 8, step 6: loss 1.25, probe 0.5, 2 min left",
        "epoch 4 of 8, step 24: loss 1.25, probe 0.5, 2 min left",
        "epoch 7 of 8, step 42: loss 1.25, probe 0.5, 2 min left",
        "epoch 8 of 8, step 48: loss 1.25, probe 0.5",
    ]
