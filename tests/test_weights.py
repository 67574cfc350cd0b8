"""What a backbone starts from: a checkpoint, a file, or torchvision's weights, once."""

import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from conftest import NARROW, TINY_IMAGES
from lightning import Trainer
from timm.models.vision_transformer import VisionTransformer

from msssl import BarlowTwins, ResNet, Shapes
from msssl.callbacks import LastCheckpoint
from msssl.methods.weights import load_weights

IMAGENET = "torchvision:ResNet18_Weights.IMAGENET1K_V1"
SHAPES = [
    "fit",
    "--config",
    "demo.yaml",
    *NARROW,
    *TINY_IMAGES,
    "--trainer.max_steps=1",
    "--trainer.log_every_n_steps=1",
]


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_starts_from_the_backbone_of_another(msssl, tmp_path):
    assert msssl(*SHAPES, "--seed_everything=1", "--trainer.default_root_dir=first")[0] == 0
    first = next(tmp_path.glob("first/*/last.ckpt"))
    at_rest = ["--model.optimizer.lr=0", "--model.optimizer.weight_decay=0", f"--model.weights={first}"]
    code, _, err = msssl(*SHAPES, *at_rest, "--trainer.default_root_dir=second")
    assert code == 0, err
    assert f"weights: the backbone starts from {first}" in err
    one, two = (BarlowTwins.load_from_checkpoint(path) for path in (first, next(tmp_path.glob("second/*/last.ckpt"))))
    parameters = dict(one.backbone.named_parameters())
    assert all(torch.equal(value, parameters[name]) for name, value in two.backbone.named_parameters())
    assert not torch.equal(one.projector[0].weight, two.projector[0].weight)


def test_a_run_that_goes_on_and_a_loaded_checkpoint_keep_their_own(msssl, tmp_path):
    torch.save(ResNet(18, width=8, low_resolution=False).state_dict(), tmp_path / "start.pt")
    code, _, err = msssl(*SHAPES, "--model.weights=start.pt")
    assert code == 0, err
    (tmp_path / "start.pt").unlink()
    checkpoint = next(tmp_path.glob("runs/*/last.ckpt"))
    before = BarlowTwins.load_from_checkpoint(checkpoint)  # needs the file no more
    code, _, err = msssl(*SHAPES[:1], "--ckpt_path", checkpoint, "--trainer.max_steps=2", "--trainer.max_epochs=-1")
    assert code == 0, err
    assert "weights: the backbone starts from" not in err
    assert before.backbone.conv1.weight.shape == (8, 3, 7, 7)


@pytest.mark.parametrize("limit", [{"max_epochs": 0}, {"max_steps": 0}, {"max_epochs": 1, "limit_train_batches": 0}])
def test_a_run_without_a_step_leaves_a_checkpoint_of_what_it_starts_from(limit, tmp_path):
    start = ResNet(18, width=8)
    torch.save(start.state_dict(), tmp_path / "start.pt")
    module = BarlowTwins(backbone=ResNet(18, width=8), proj_dim=8, weights=str(tmp_path / "start.pt"))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "logger": False}
    callbacks = [LastCheckpoint(dirpath=tmp_path / "run")]
    trainer = Trainer(accelerator="cpu", callbacks=callbacks, default_root_dir=tmp_path, **quiet, **limit)
    trainer.fit(module, Shapes(train_images=60, test_images=20, batch_size=16, num_workers=0))
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 0
    for name, value in start.state_dict().items():
        assert torch.equal(checkpoint["state_dict"][f"backbone.{name}"], value)


def test_starting_weights_are_probed_and_trained_on(msssl, tmp_path):
    torch.save(ResNet(18, width=8, low_resolution=False).state_dict(), tmp_path / "start.pt")
    code, out, err = msssl(*SHAPES, "--model.weights=start.pt", "--trainer.max_steps=0")
    assert code == 0, err
    assert "nothing, as max_steps is 0: the checkpoint holds the weights start.pt" in out
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "config.yaml").is_file()
    code, out, err = msssl("fit", "--ckpt_path", "last", "--trainer.max_steps=1")
    assert code == 0, err
    assert "1 step\n" in out
    assert "nothing" not in out
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 1


def test_a_file_that_is_not_there_stops_a_fresh_run(msssl, tmp_path):
    code, _, err = msssl(*SHAPES, "--model.weights=gone.pt")
    assert code == 2
    assert "msssl: error: weights gone.pt is not a file" in err


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty folder of downloads, and no network."""

    def no_network(*_, **__):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    return tmp_path / "hub" / "checkpoints"


def test_torchvisions_weights_give_torchvisions_features(hub):
    torch.manual_seed(0)
    reference = torchvision.models.resnet18()
    hub.mkdir(parents=True)
    torch.save(reference.state_dict(), hub / "resnet18-f37072fd.pth")  # where torchvision looks for its download
    backbone = ResNet(18, low_resolution=False)
    load_weights(backbone, IMAGENET)
    reference.fc = torch.nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(backbone.eval()(images), reference.eval()(images), atol=1e-6)


def test_a_file_in_place_of_torchvisions_weights_runs_no_code(hub, tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    hub.mkdir(parents=True)
    torch.save({"conv1.weight": Payload()}, hub / "resnet18-f37072fd.pth")
    with pytest.raises(FileNotFoundError, match="put it there"):
        load_weights(ResNet(18, low_resolution=False), IMAGENET)
    assert not (tmp_path / "executed").exists()


def test_without_network_the_message_says_what_to_put_where(hub):
    with pytest.raises(FileNotFoundError) as raised:
        load_weights(ResNet(18, low_resolution=False), IMAGENET)
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in str(raised.value)
    assert str(hub / "resnet18-f37072fd.pth") in str(raised.value)
    assert "no network here" in str(raised.value)


def test_timms_weights_give_timms_features(monkeypatch):
    """Its download is replaced by the model that it would have loaded."""
    made = timm.create_model("resnet18", num_classes=0)
    asked = []
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: asked.append((args, kwargs)) or made)
    backbone = ResNet(18, low_resolution=False)
    load_weights(backbone, "timm:resnet18.a1_in1k")
    assert asked == [(("resnet18.a1_in1k",), {"pretrained": True, "num_classes": 0})]
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(backbone.eval()(images), made.eval()(images), atol=1e-5)


def test_timms_weights_without_network_name_the_file_to_fetch(monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network here. And more.")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(FileNotFoundError) as raised:
        load_weights(ResNet(18, low_resolution=False), "timm:resnet18.a1_in1k")
    assert "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors" in str(raised.value)
    assert "(no network here)" in str(raised.value)


def lacking(state):
    del state["layer2.0.conv1.weight"]
    return "lack layer2.0.conv1.weight of the backbone ResNet"


def of_another_stem(state):
    state["conv1.weight"] = torch.zeros(8, 3, 7, 7)
    return re.escape("conv1.weight is (8, 3, 7, 7) in weights") + r".*\(8, 3, 3, 3\) in the backbone"


def with_more(state):
    state["layer5.weight"] = torch.zeros(3)
    return "have layer5.weight, which the backbone ResNet has not"


@pytest.mark.parametrize("change", [lacking, of_another_stem, with_more])
def test_parameters_that_do_not_fit_are_named_and_nothing_is_loaded(tmp_path, change):
    state = ResNet(18, width=8).state_dict()
    message = change(state)
    torch.save(state, tmp_path / "start.pt")
    backbone = ResNet(18, width=8)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_weights(backbone, str(tmp_path / "start.pt"))
    assert same(backbone.state_dict(), before)


def test_a_classifiers_head_is_left_out(tmp_path):
    state = ResNet(18, width=8).state_dict()
    torch.save({**state, "fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)}, tmp_path / "start.pt")
    backbone = ResNet(18, width=8)
    load_weights(backbone, str(tmp_path / "start.pt"))
    assert same(backbone.state_dict(), state)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("torchvision:ResNet18_Weights.V9", "ResNet18_Weights.V9"),
        ("torchvision:Nothing.X", "Nothing"),
        ("timm:resnet18.a1_in2k", "did you mean timm:resnet18.a1_in1k?"),
        ("text.safetensors", "text.safetensors cannot be read as safetensors"),
        ("text.pt", "text.pt"),
    ],
)
def test_weights_that_cannot_be_read_are_named(tmp_path, monkeypatch, weights, message):
    monkeypatch.chdir(tmp_path)
    for name in ("text.pt", "text.safetensors"):
        (tmp_path / name).write_text("not a checkpoint")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_weights(ResNet(18, width=8), weights)


def networks_of(channels):
    """A ResNet of either stem and a vision transformer for so many channels, in float64."""
    small_vit = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 0}
    return {
        "small stem": ResNet(18, width=8, in_channels=channels).double(),
        "large stem": ResNet(18, width=8, low_resolution=False, in_channels=channels).double(),
        "vit": VisionTransformer(in_chans=channels, **small_vit).double(),
    }


STEMS = {"small stem": "conv1.weight", "large stem": "conv1.weight", "vit": "patch_embed.proj.weight"}


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
@pytest.mark.parametrize("name", STEMS)
def test_weights_for_rgb_see_equal_channels_as_they_saw_grey(tmp_path, caplog, name, channels):
    of_rgb, network = networks_of(3)[name].eval(), networks_of(channels)[name].eval()
    torch.save(of_rgb.state_dict(), tmp_path / "rgb.pt")
    with caplog.at_level("INFO", logger="msssl"):
        load_weights(network, str(tmp_path / "rgb.pt"))
    (said,) = [record.message for record in caplog.records if "channels" in record.message]
    assert said == f"weights: {STEMS[name]} is for 3 channels; each of {channels} gets their mean, times 3 / {channels}"
    grey = torch.rand(4, 1, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected, found = of_rgb(grey.expand(-1, 3, -1, -1)), network(grey.expand(-1, channels, -1, -1))
    assert (expected[0] - expected[1]).abs().max() > 1e-6  # features tell the images apart
    assert (found - expected).abs().max() < 1e-10
    stems = [dict(model.named_parameters())[STEMS[name]].detach().numpy() for model in (of_rgb, network)]
    for channel in range(channels):
        by_hand = (stems[0][:, 0] + stems[0][:, 1] + stems[0][:, 2]) / 3 * 3 / channels
        assert abs(stems[1][:, channel] - by_hand).max() < 1e-15


def test_weights_for_rgb_stay_as_they_are_in_a_network_for_rgb(tmp_path, caplog):
    start, backbone = ResNet(18, width=8), ResNet(18, width=8)
    torch.save(start.state_dict(), tmp_path / "rgb.pt")
    with caplog.at_level("INFO", logger="msssl"):
        load_weights(backbone, str(tmp_path / "rgb.pt"))
    assert same(backbone.state_dict(), start.state_dict())
    assert "channels" not in caplog.text


@pytest.mark.parametrize(
    "start",
    [
        {"in_channels": 4},  # neither RGB nor as the network
        {"width": 16},
        {"low_resolution": False},
    ],
)
def test_only_the_channels_of_rgb_may_differ(tmp_path, start):
    torch.save(ResNet(18, **{"width": 8, **start}).state_dict(), tmp_path / "start.pt")
    with pytest.raises(ValueError, match=r"conv1\.weight is \(\d+, \d, \d, \d\) in weights .*\(8, 5, 3, 3\) in the"):
        load_weights(ResNet(18, width=8, in_channels=5), str(tmp_path / "start.pt"))
