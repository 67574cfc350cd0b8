import re
import sys

import pytest
import torch
import torchvision
import yaml
from conftest import TINY_IMAGES
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import msssl
from msssl import BarlowTwins
from msssl.backbones import ConvNet, ViT, build_backbone, check_features, find_feature_dim


class Small(nn.Module):
    """A user's network, without `num_features`."""

    def __init__(self):
        super().__init__()
        self.stem = nn.BatchNorm2d(3)
        self.layers = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images):
        return self.layers(self.stem(images))


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, images):
        return self.value


def torchvision_resnet(depth):
    return getattr(torchvision.models, f"resnet{depth}")()


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


def input_of_layer1(model, images):
    seen = []
    model.layer1.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    model(images)
    return seen[0]


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_parameters_are_torchvisions(depth):
    with torch.device("meta"):  # names and shapes alone
        expected, found = torchvision_resnet(depth), msssl.ResNet(depth, width=64, low_resolution=False)
    del expected.fc
    shapes = {name: value.shape for name, value in found.state_dict().items()}
    assert shapes == {name: value.shape for name, value in expected.state_dict().items()}


@pytest.mark.parametrize("depth", [18, 50])
def test_features_are_torchvisions(depth):
    expected = torchvision_resnet(depth)
    expected.fc = nn.Identity()
    with torch.device("meta"):
        found = msssl.ResNet(depth, width=64, low_resolution=False)
    found.load_state_dict(expected.state_dict(), assign=True)
    image = torch.randn(1, 3, 64, 64)
    for training in (True, False):  # first, so that the statistics of evaluation are not the initial ones
        with torch.no_grad():
            assert_close(found.train(training)(image), expected.train(training)(image))


def test_initialisation_is_torchvisions():
    torch.manual_seed(0)
    found, expected = msssl.ResNet(18, low_resolution=False), torchvision_resnet(18)
    for name in ("conv1", "layer1.0.conv1", "layer2.0.downsample.0", "layer3.1.conv2"):
        std = expected.get_submodule(name).weight.std().item()
        assert found.get_submodule(name).weight.std().item() == pytest.approx(std, rel=0.05), name


def test_low_resolution_stem_keeps_the_resolution_and_has_its_relu():
    found = input_of_layer1(msssl.ResNet(18, width=8), torch.randn(2, 3, 32, 32))
    assert found.shape == (2, 8, 32, 32)
    assert found.min() == 0


def test_default_stem_of_torchvision_quarters_the_resolution():
    found = input_of_layer1(msssl.ResNet(18, width=8, low_resolution=False), torch.randn(2, 3, 64, 64))
    assert found.shape == (2, 8, 16, 16)


@pytest.mark.parametrize(("depth", "num_features"), [(18, 64), (34, 64), (50, 256)])
def test_num_features_is_the_width_of_the_features(depth, num_features):
    model = msssl.ResNet(depth, width=8)
    assert model.num_features == num_features
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, num_features)


def test_unknown_depth_is_an_error():
    with pytest.raises(ValueError, match="depth is 101"):
        msssl.ResNet(101)


def test_name_builds_a_resnet_for_small_images():
    with torch.device("meta"):
        model = build_backbone("resnet50")
    assert isinstance(model, msssl.ResNet)
    assert model.num_features == 2048
    assert model.conv1.weight.shape == (64, 3, 3, 3)


def test_module_is_taken_as_it_is():
    model = Small()
    assert build_backbone(model) is model


def test_unknown_name_is_an_error():
    with pytest.raises(ValueError, match=r"'resnet19'.*resnet18, resnet34, resnet50"):
        build_backbone("resnet19")


@pytest.mark.parametrize("name", ["num_features", "feature_dim"])
def test_declared_width_spares_the_dry_run(name):
    model = Returns(None)  # would fail in it
    setattr(model, name, 7)
    assert find_feature_dim(model) == 7


def test_dry_run_finds_the_width_of_the_features():
    assert find_feature_dim(Small()) == 5


@pytest.mark.parametrize("training", [True, False])
def test_dry_run_leaves_the_backbone_as_it_was(training):
    model = Small().train(training)
    state, before = {name: value.clone() for name, value in model.state_dict().items()}, modes(model)
    find_feature_dim(model)
    assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert modes(model) == before


def test_dry_run_leaves_a_frozen_part_frozen():
    model = Small()
    model.stem.eval()
    before = modes(model)
    find_feature_dim(model)
    assert modes(model) == before


def test_backbone_that_fails_in_the_dry_run_is_asked_for_its_width():
    model = nn.Sequential(nn.Flatten(), nn.Linear(7, 2)).train()
    with pytest.raises(ValueError, match=r"Sequential failed .* give feature_dim"):
        find_feature_dim(model)
    assert model.training


@pytest.mark.parametrize(
    ("value", "found"),
    [(torch.zeros(2, 5, 1, 1), "(2, 5, 1, 1)"), (torch.zeros(5), "(5,)"), ((torch.zeros(2, 5),), "tuple")],
)
def test_features_of_another_shape_are_named(value, found):
    model = Returns(value)
    message = re.escape(f"backbone Returns returned {found}: expected features of shape (N, F)")
    with pytest.raises(ValueError, match=message):
        check_features(value, model)
    with pytest.raises(ValueError, match=message):
        find_feature_dim(model)


def test_features_pass_the_check_unchanged():
    features = torch.zeros(2, 5)
    assert check_features(features, Small()) is features


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "mobilenetv3_small_050"])
@pytest.mark.parametrize("size", [32, 64])
def test_models_of_timm_give_features_of_the_width_they_say(name, size):
    torch.manual_seed(0)
    model = build_backbone(f"timm:{name}").eval()
    features = check_features(model(torch.rand(2, 3, size, size)), model)
    assert features.shape[1] == find_feature_dim(model)
    assert not torch.equal(features[0], features[1])


def test_a_vision_transformer_trains_and_comes_back_from_its_checkpoint(msssl, tmp_path):
    small = [*TINY_IMAGES, "--trainer.max_epochs=1", "--model.backbone=timm:test_vit"]
    code, _, err = msssl("fit", "--config", "demo.yaml", *small)
    assert code == 0, err
    module = BarlowTwins.load_from_checkpoint(next(tmp_path.glob("runs/*/last.ckpt"))).eval()
    assert type(module.backbone).__module__.startswith("timm.")
    assert module(torch.rand(2, 3, 32, 32)).shape == (2, module.feature_dim)


def test_a_name_that_timm_does_not_know_gets_the_nearest():
    with pytest.raises(ValueError, match=r"no model 'resnet5O'; did you mean timm:resnet50\?"):
        build_backbone("timm:resnet5O")


def test_a_missing_timm_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"timm:resnet18 needs timm: pip install 'msssl\[timm\]'"):
        build_backbone("timm:resnet18")


def test_a_model_of_one_size_names_it():
    backbone = build_backbone("timm:mixer_s32_224")
    with pytest.raises(ValueError, match=r"timm:mixer_s32_224 takes images of 224 x 224 pixels only.* 32 x 32"):
        backbone(torch.zeros(1, 3, 32, 32))


def test_convnet_is_as_small_as_it_says():
    net = ConvNet().eval()
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 32, 32))
    # 2 * kernel * channels in * channels out * positions: 8 x 8, 8 x 8, 4 x 4 and 2 x 2 of them
    flops = 2 * (16 * 3 * 32 * 64 + 9 * 32 * 64 * 64 + 9 * 64 * 128 * 16 + 9 * 128 * 1024 * 4)
    assert counter.get_total_flops() == flops
    assert f"{flops / 1e9:.3f} GFLOP" in ConvNet.__doc__
    assert find_feature_dim(net) == net.num_features == net(torch.zeros(2, 3, 96, 64)).shape[1] == 1024


@pytest.mark.parametrize("channels", [[], [8], [8, 0]])
def test_convnet_needs_two_convolutions(channels):
    with pytest.raises(ValueError, match="expected two numbers or more"):
        ConvNet(channels)


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("name", ["resnet18", "timm:test_vit", "timm:test_resnet", "timm:mobilenetv3_small_050"])
def test_a_backbone_given_by_name_takes_images_of_any_number_of_channels(name, channels):
    module = BarlowTwins(backbone=name, in_channels=channels, proj_dim=8).eval()
    assert module(torch.rand(2, channels, 32, 32)).shape == (2, module.feature_dim)
    with pytest.raises(ValueError, match=rf"images have 3 channels, and the backbone \w+ takes {channels}: "):
        module(torch.rand(2, 3, 32, 32))


def test_a_stem_of_other_channels_sees_each_of_them():
    """Each channel moves the features, and with equal weights for all of them none more than another."""
    for network in (msssl.ResNet(18, width=8, in_channels=5), ConvNet([8, 16], in_channels=5)):
        stem = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
        stem.weight.data[:] = stem.weight.data[:, :1]
        image = torch.rand(1, 1, 32, 32)
        with torch.no_grad():
            features = torch.cat([network.eval()(image * torch.eye(5)[i].view(1, 5, 1, 1)) for i in range(5)])
            nothing = network(torch.zeros(1, 5, 32, 32))
        assert_close(features, features[:1].expand(5, -1))
        assert not torch.allclose(features[:1], nothing)


class Depth(nn.Module):
    """A user's network that says how many channels it takes, and not how wide its features are."""

    in_channels = 4

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images):
        return self.layers(images)


def test_a_module_may_say_its_channels_itself():
    module = BarlowTwins(backbone=Depth(), proj_dim=8)
    assert (module.in_channels, module.feature_dim) == (4, 6)
    with pytest.raises(ValueError, match=r"have 5 channels, .* Depth takes 4: --model\.backbone\.in_channels 5 "):
        module(torch.rand(2, 5, 32, 32))


def test_the_number_of_channels_beside_a_module_is_an_error():
    with pytest.raises(ValueError, match=r"in_channels is 5, which is for .* --model\.backbone\.in_channels 5"):
        BarlowTwins(backbone=Small(), in_channels=5)


@pytest.mark.parametrize(
    "build", [build_backbone, lambda _, **more: msssl.ResNet(**more), lambda _, **more: ConvNet(**more)]
)
def test_images_without_channels_are_an_error(build):
    with pytest.raises(ValueError, match="in_channels is 0: expected at least 1"):
        build("resnet18", in_channels=0)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"in_channels": 0}, "in_channels is 0: expected at least 1"),
        ({"depth": 0}, "depth is 0: expected at least 1"),
        ({"width": 64}, "width is 64: expected a multiple of the number of heads, 3"),
    ],
)
def test_a_vision_transformer_names_a_wrong_size(argument, message):
    with pytest.raises(ValueError, match=message):
        ViT(**argument)


def test_a_vision_transformer_is_timms():
    """Of the same parameters, at the sizes of its own ViT-Ti."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0).double().eval()
    ours = ViT(patch_size=16, width=192, depth=12, heads=3, image_size=224).double().eval()
    ours.network.load_state_dict(theirs.state_dict())
    images = torch.rand(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        assert_close(ours(images), theirs(images), rtol=1e-9, atol=1e-9)


def test_a_vision_transformer_built_in_python_comes_back_from_its_checkpoint(tmp_path):
    module = BarlowTwins(backbone=ViT(width=24, depth=1, in_channels=2), proj_dim=8).eval()
    content = {"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}
    torch.save(content | {"pytorch-lightning_version": "2.6"}, tmp_path / "vit.ckpt")
    loaded = BarlowTwins.load_from_checkpoint(tmp_path / "vit.ckpt").eval()
    images = torch.rand(2, 2, 20, 24)
    assert_close(loaded(images), module(images), rtol=0, atol=0)


def test_a_missing_timm_says_how_to_install_it_for_the_vision_transformer(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.models.vision_transformer", None)
    with pytest.raises(ImportError, match=r"backbone ViT needs timm: pip install 'msssl\[timm\]'"):
        ViT()


@pytest.mark.parametrize("method", [BarlowTwins, msssl.BYOL])
def test_a_step_on_images_of_other_channels_names_the_flag(method):
    module = method(backbone="resnet18", proj_dim=8)
    batch = {
        "views": torch.zeros(2, 2, 5, 32, 32),
        "label": torch.zeros(2, dtype=torch.int64),
        "index": torch.arange(2),
    }
    with pytest.raises(ValueError, match=r"have 5 channels, .* ResNet takes 3: --model\.in_channels 5 "):
        module.training_step(batch, 0)


def test_the_flag_of_a_network_of_timm_is_its_own():
    from timm.models.vision_transformer import VisionTransformer

    network = VisionTransformer(img_size=32, patch_size=8, embed_dim=12, depth=1, num_heads=3, num_classes=0)
    with pytest.raises(ValueError, match=r"--model\.backbone\.in_chans 5 "):
        BarlowTwins(backbone=network, proj_dim=8)(torch.zeros(2, 5, 32, 32))


TINY_VIT = [f"--model.backbone.{option}" for option in ("width=24", "depth=2")]


@pytest.fixture
def vit():
    """A vision transformer as `vit.yaml` has it, in small, in float64."""
    return ViT(width=24, depth=2).double()


@pytest.mark.long
def test_a_vision_transformer_goes_from_fit_to_export(msssl, tmp_path):
    """With views of two sizes, one of them no multiple of the patch, that pass one by one."""
    pytest.importorskip("onnxruntime")
    crop = {"class_path": "msssl.views.RandomResizedCropFlip"}
    groups = [
        {"class_path": "msssl.MultiView", "init_args": {"n_views": 2, "augmentations": [crop | {"init_args": size}]}}
        for size in ({"size": [32, 32]}, {"size": [18, 18]})
    ]
    views = {"class_path": "msssl.views.MultiCrop", "init_args": {"groups": groups}}
    (tmp_path / "crops.yaml").write_text(yaml.safe_dump({"data": {"views": views}}))
    flags = [*TINY_IMAGES, "--data.train_images=240", *TINY_VIT, "--trainer.max_steps=2", "--model.chunk_views=1"]
    code, _, err = msssl("fit", "--config", "demo.yaml", "--config", "vit.yaml", "--config", "crops.yaml", *flags)
    assert code == 0, err
    path = next(tmp_path.glob("runs/*/last.ckpt"))
    assert msssl("probe", "--ckpt_path", path, "--baselines=false")[0] == 0
    assert msssl("predict", "--ckpt_path", path)[0] == 0
    code, _, err = msssl("export", "--ckpt_path", path, "--format=onnx")  # which compares the outputs
    assert code == 0, err
    small = ["--labels_per_class=2", "--draws=1", "--learning_rates=0.001", "--trainer.max_epochs=1"]
    code, _, err = msssl("finetune", "--ckpt_path", path, *small, "--trainer.accelerator=cpu")
    assert code == 0, err
    loaded = BarlowTwins.load_from_checkpoint(path)
    assert (type(loaded.backbone).__name__, loaded.in_channels, loaded.feature_dim) == ("ViT", 3, 24)


def test_chunks_of_views_change_nothing_for_a_vision_transformer(vit):
    """It has no BatchNorm, so that each image is computed by itself."""
    views = torch.rand(4, 3, 3, 32, 32, dtype=torch.float64)
    batch = {"views": views, "label": torch.zeros(3, dtype=torch.int64), "index": torch.arange(3)}
    gradients = []
    for chunk_views in (None, 1):
        module = BarlowTwins(backbone=vit, proj_dim=8, proj_layers=1, chunk_views=chunk_views).double()
        with torch.no_grad():
            module.projector[0].weight.copy_(torch.linspace(-1, 1, 8 * 24).view(8, 24).cos())
            module.projector[0].bias.zero_()
        loss = module.training_step(batch, 0)["loss"]
        gradients.append(torch.autograd.grad(loss, [*module.backbone.parameters()]))
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])
    assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("side", [32, 18])
def test_a_vision_transformer_compiles_as_one_graph(vit, side):
    module = BarlowTwins(backbone=vit, proj_dim=8).double().eval()
    images = torch.rand(2, 3, side, side, dtype=torch.float64)
    expected = module(images)
    module.backbone.to(memory_format=torch.channels_last)
    torch.compiler.reset()
    compiled = torch.compile(module.forward, fullgraph=True, dynamic=False, backend="aot_eager")
    assert_close(compiled(images.contiguous(memory_format=torch.channels_last)), expected, rtol=1e-9, atol=1e-12)
