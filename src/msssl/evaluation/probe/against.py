"""Encoders that others trained, to compare with: weights of torchvision, timm or a file, and how they want images."""

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torchvision import models

from msssl.data import MultiViewDataModule
from msssl.errors import UserError
from msssl.evaluation.probe.subject import Subject
from msssl.methods.weights import load_weights, read_weights, source_of
from msssl.views import Preprocess


@dataclass(frozen=True)
class Encoder:
    """A backbone, and the data module that prepares images as its weights want them.

    Attributes:
        name: how tables call it.
        backbone: maps normalised images (N, C, H, W) to features (N, F); in evaluation mode, on the CPU.
        data: set up.
    """

    name: str
    backbone: nn.Module
    data: MultiViewDataModule


def encoder_of(name: str, subject: Subject) -> Encoder:
    """The encoder that a word of `--against` names.

    Images are resized and normalised as the weights want it; those of a folder are read again at that size.

    Args:
        name: such as `torchvision:ResNet50_Weights.IMAGENET1K_V2`, `timm:resnet50.a1_in1k`, or a file with weights of
            the run's architecture, which then sees the images as the run does.
        subject: the checkpoint that is compared, with the images that both are evaluated on.

    Raises:
        FileNotFoundError: there is no such file, or the weights cannot be downloaded; the message says where to put
            them.
        ValueError: the name is unknown, the weights are of another architecture, or the images are not RGB.
    """
    source, weights = source_of(name)
    if source == "file":
        backbone, preprocess = subject.with_random_weights().backbone, subject.data.preprocess
        load_weights(backbone, name)
    else:
        if (channels := len(subject.data.preprocess.mean)) != 3:
            raise UserError(
                f"against {name}: its images are RGB, and these have {channels} channels; a run with these weights, by "
                "--model.weights, adapts them"
            )
        of_source = _of_torchvision if source == "torchvision" else _of_timm
        backbone, preprocess = of_source(weights, read_weights(name))
    return Encoder(name, backbone.eval(), prepared(subject.data, preprocess))


def prepared(data: MultiViewDataModule, preprocess: Preprocess) -> MultiViewDataModule:
    """The same images, prepared as `preprocess` says; images that are resized when they are read are read again."""
    if preprocess == data.preprocess:
        return data
    other = copy.copy(data)
    other.preprocess = preprocess
    if data.image_size is not None and preprocess.image_size is not None:
        side = max(preprocess.image_size)
        if side != data.image_size:
            other.image_size, other.splits, other.datasets = side, {}, {}
            other.setup()
    return other


def _of_torchvision(name: str, state: dict[str, Tensor]) -> tuple[nn.Module, Preprocess]:
    weights: Any = models.get_weight(name)
    network: nn.Module = models.get_model(_architecture(weights))
    network.load_state_dict(state)
    n_classes = len(weights.meta.get("categories", ()))
    linear = [path for path, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    heads = [path for path in linear if network.get_submodule(path).out_features == n_classes]
    if not heads:
        raise UserError(f"torchvision:{name} is not a classifier of images: it has no classification head to take away")
    parent, _, child = heads[-1].rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    crop = weights.transforms()
    return network, _preprocess(crop.mean, crop.std, crop.resize_size[0], crop.crop_size[0])


def _architecture(weights: Any) -> str:
    """The name of the network that weights of torchvision are for."""
    names: list[str] = models.list_models()
    for name in names:
        if models.get_model_weights(name) is type(weights):
            return name
    raise UserError(f"torchvision has no network for the weights {weights}")


def _of_timm(name: str, state: dict[str, Tensor]) -> tuple[nn.Module, Preprocess]:
    import timm

    network: nn.Module = timm.create_model(name, num_classes=0)
    network.load_state_dict(state)
    config: Any = timm.data.resolve_model_data_config(network)  # type: ignore[attr-defined, no-untyped-call]
    side = config["input_size"][-1]
    return network, _preprocess(config["mean"], config["std"], round(side / config["crop_pct"]), side)


def _preprocess(mean: Any, std: Any, resize: int, crop: int) -> Preprocess:
    return Preprocess(tuple(mean), tuple(std), image_size=(resize, resize), resize=resize, crop=crop)
