"""Writes a network in the formats of torchvision, timm, ONNX and safetensors, with the lines of code that load it."""

import json
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from msssl.backbones import ResNet
from msssl.errors import MissingPackageError, UserError

FormatName = Literal["torchvision", "timm", "onnx", "safetensors"]
NEEDS = {  # packages
    "torchvision": (),
    "timm": ("timm", "safetensors"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "safetensors": ("safetensors",),
}


@dataclass(frozen=True)
class Network:
    """The network to write.

    Attributes:
        backbone: in evaluation mode, on the CPU.
        head: maps the features to logits, if there is a head.
        images: normalised images (N, C, H, W) of the size of the pretraining, as example inputs.
        classes: names of the head's classes, if there is a head.
    """

    backbone: nn.Module
    head: nn.Linear | None
    images: Tensor
    classes: list[str] | None = None

    @property
    def model(self) -> nn.Module:
        """The backbone, with the head behind it if there is one."""
        if self.head is None:
            return self.backbone
        return nn.Sequential(OrderedDict(backbone=self.backbone, fc=self.head)).eval()

    @property
    def output(self) -> str:
        """Name of what the network returns."""
        return "features" if self.head is None else "logits"

    @property
    def num_classes(self) -> int:
        """Number of logits, 0 without a head."""
        return 0 if self.head is None else self.head.out_features

    @property
    def channels(self) -> int:
        """C, the number of channels of the images."""
        return self.images.shape[1]

    @property
    def state_of_torchvision(self) -> dict[str, Tensor]:
        """Parameters and buffers by the names that torchvision gives them."""
        return {name.removeprefix("backbone."): value for name, value in self.model.state_dict().items()}


def write(network: Network, name: FormatName, path: Path) -> tuple[Path, list[str]]:
    """Write a network to a file, and return the file's path and the lines of code that load it.

    In these lines `{file}` stands for the path.

    Args:
        network: the network to write.
        name: name of the format.
        path: path of the file, without its ending.

    Raises:
        ImportError: the exporter is not installed.
        ValueError: the format does not support the architecture; the message names formats that do.
    """
    for package in NEEDS[name]:
        if find_spec(package) is None:
            raise MissingPackageError(f"format {name} needs {package}: pip install 'msssl[export]'")
    return _WRITERS[name](network, path)


def usage(network: Network, name: FormatName) -> str:
    """The line of code that applies the loaded model to `images`."""
    if name == "onnx":
        return f'({network.output},) = session.run(None, {{"images": images}})  # NumPy, float32'
    return f"{network.output} = model.eval()(images)"


def load(network: Network, lines: list[str], file: Path) -> Callable[[Tensor], Tensor]:
    """The model that the lines of code load from a file; they are run exactly as they are shown to the user."""
    scope: dict[str, Any] = {"model": deepcopy(network.model)}  # with zeros, for a class that the lines cannot build
    for value in scope["model"].state_dict().values():
        value.zero_()
    exec("\n".join(lines).format(file=str(file)), scope)  # all of them are from this file
    if "session" in scope:
        return lambda images: torch.from_numpy(scope["session"].run(None, {"images": images.numpy()})[0])
    model: nn.Module = scope["model"].eval()
    return model


def _torchvision(network: Network, path: Path) -> tuple[Path, list[str]]:
    resnet = _resnet(network.backbone, "torchvision")
    arguments = f"num_classes={network.num_classes}" if network.head else ""
    changes = _other_stem(resnet) | ({} if network.head else {"fc": "torch.nn.Identity()"})
    file = path.with_suffix(".pth")
    torch.save(network.state_of_torchvision, file)
    lines = ["import torch, torchvision", f"model = torchvision.models.resnet{resnet.depth}({arguments})"]
    return file, [*lines, *_assigned(changes), "model.load_state_dict(torch.load({file!r}))"]


def _timm(network: Network, path: Path) -> tuple[Path, list[str]]:
    config, changes = getattr(network.backbone, "pretrained_cfg", None), {}
    if config is None:
        resnet = _resnet(network.backbone, "timm")
        name, options, changes = f"resnet{resnet.depth}", "", _other_stem(resnet)
        state = network.state_of_torchvision
    else:
        name, options = config["architecture"], _timm_options(network)
        state = dict(network.backbone.state_dict())
        if network.head is not None:
            if not isinstance(config["classifier"], str):
                raise UserError(f"timm's {name} has several classifiers: export it as onnx, or without head")
            state |= {f"{config['classifier']}.{key}": value for key, value in network.head.state_dict().items()}
    lines = ["import timm, torch", f'model = timm.create_model("{name}", num_classes={network.num_classes}{options})']
    lines += [*_assigned(changes), "timm.models.load_checkpoint(model, {file!r})"]
    return _save_safetensors(state, path), lines


def _onnx(network: Network, path: Path) -> tuple[Path, list[str]]:
    file = path.with_suffix(".onnx")
    torch.onnx.export(
        network.model,
        (network.images,),
        file,
        input_names=["images"],
        output_names=[network.output],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    if network.classes is not None:
        import onnx

        model = onnx.load(file)
        onnx.helper.set_model_props(model, {"classes": json.dumps(network.classes)})
        onnx.save(model, file)
    return file, ["import onnxruntime", "session = onnxruntime.InferenceSession({file!r})"]


def _safetensors(network: Network, path: Path) -> tuple[Path, list[str]]:
    backbone, imports, head = network.backbone, "", network.head
    if isinstance(backbone, ResNet):
        imports = "msssl, "
        options = "" if backbone.in_channels == 3 else f", in_channels={backbone.in_channels}"
        sizes = f"{backbone.depth}, width={backbone.width}, low_resolution={backbone.low_resolution}{options}"
        built = f"model = msssl.ResNet({sizes})"
    elif (config := getattr(backbone, "pretrained_cfg", None)) is not None:
        imports = "timm, "
        built = f'model = timm.create_model("{config["architecture"]}", num_classes=0{_timm_options(network)})'
    else:
        behind = "" if head is None else ", as `backbone`, and a Linear as `fc`"
        built = f"# model: a {type(backbone).__module__}.{type(backbone).__qualname__}, built as for the run{behind}"
    lines = [f"import {imports}safetensors.torch", built]
    if head is not None and built.startswith("model"):
        lines[0] = f"import collections, {imports}safetensors.torch, torch"
        linear = f"torch.nn.Linear({head.in_features}, {head.out_features})"
        lines.append(f"model = torch.nn.Sequential(collections.OrderedDict(backbone=model, fc={linear}))")
    lines.append("model.load_state_dict(safetensors.torch.load_file({file!r}))")
    return _save_safetensors(dict(network.model.state_dict()), path), lines


_WRITERS = {"torchvision": _torchvision, "timm": _timm, "onnx": _onnx, "safetensors": _safetensors}


def _resnet(backbone: nn.Module, library: str) -> ResNet:
    """The backbone, if this library has such a network; else a ValueError that names other formats."""
    if isinstance(backbone, ResNet) and backbone.width == 64:
        return backbone
    width = f" of width {backbone.width}" if isinstance(backbone, ResNet) else ""
    raise UserError(f"{library} has no {type(backbone).__name__}{width}: export it as onnx or safetensors")


def _other_stem(resnet: ResNet) -> dict[str, str]:
    """Layers that differ from those of the library: of the stem for small images, or for other channels than RGB."""
    if resnet.low_resolution:
        convolution = f"torch.nn.Conv2d({resnet.in_channels}, 64, 3, padding=1, bias=False)"
        return {"conv1": convolution, "maxpool": "torch.nn.Identity()"}
    if resnet.in_channels == 3:
        return {}
    return {"conv1": f"torch.nn.Conv2d({resnet.in_channels}, 64, 7, stride=2, padding=3, bias=False)"}


def _assigned(changes: dict[str, str]) -> list[str]:
    """A line of code that replaces layers of `model`, if there are any to replace."""
    return [", ".join(f"model.{name}" for name in changes) + " = " + ", ".join(changes.values())] if changes else []


def _timm_options(network: Network) -> str:
    options = "" if network.channels == 3 else f", in_chans={network.channels}"
    return options + (", dynamic_img_size=True" if getattr(network.backbone, "dynamic_img_size", False) else "")


def _save_safetensors(state: dict[str, Tensor], path: Path) -> Path:
    from safetensors.torch import save_file

    file = path.with_suffix(".safetensors")
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    return file
