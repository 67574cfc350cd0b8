"""Loads the weights from which a backbone starts: of a file, torchvision or timm."""

import difflib
import logging
import pickle
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision import models

from msssl.errors import MissingPackageError, UserError
from msssl.run.files import read_file

HEADS = ("fc.", "head.", "classifier.")  # of models that were trained to classify
log = logging.getLogger(__name__)


def load_weights(backbone: nn.Module, weights: str) -> None:
    """Load the parameters and buffers of a backbone; a classification head among the weights is ignored.

    Weights for RGB images are adapted to a backbone for C channels, see `adapt_stem`.

    Args:
        backbone: network of the same architecture.
        weights: a checkpoint of msssl, whose backbone is taken; a file of a `state_dict`, also `.safetensors`; or such
            as `torchvision:ResNet50_Weights.IMAGENET1K_V2` or `timm:resnet50.a1_in1k`, which are downloaded.

    Raises:
        FileNotFoundError: the file does not exist or cannot be downloaded; the message says where to put it.
        ValueError: the name is unknown, or parameters are missing or have another shape; the message names them.
    """
    own = backbone.state_dict()
    loaded = adapt_stem(read_weights(weights), own)
    for name, value in own.items():
        if name not in loaded:
            raise UserError(f"weights {weights} lack {name} of the backbone {type(backbone).__name__}")
        if loaded[name].shape != value.shape:
            shapes = f"{tuple(loaded[name].shape)} in weights {weights}, {tuple(value.shape)}"
            raise UserError(f"{name} is {shapes} in the backbone {type(backbone).__name__}")
    surplus = [name for name in loaded if name not in own and not name.startswith(HEADS)]
    if surplus:
        raise UserError(f"weights {weights} have {surplus[0]}, which the backbone {type(backbone).__name__} has not")
    backbone.load_state_dict({name: loaded[name] for name in own})
    log.info("weights: the backbone starts from %s", weights)


def adapt_stem(loaded: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights for RGB images, adapted to a network that differs only in the number C of channels of its images.

    Each of the C input channels of the first convolution gets the mean weight over the RGB channels, times 3 / C. So
    an image of C equal channels has the response that the network had to the same image in grey.

    Args:
        loaded: the weights.
        own: parameters and buffers of the network.

    Returns:
        The weights with one tensor replaced; the same weights if anything else differs, or if nothing does.

    >>> stem = torch.tensor([[3.0, 0.0, 6.0]]).view(1, 3, 1, 1)  # of a convolution of 1 x 1 pixel
    >>> adapt_stem({"conv1.weight": stem}, {"conv1.weight": torch.zeros(1, 2, 1, 1)})["conv1.weight"].flatten()
    tensor([4.5000, 4.5000])
    """
    different = [name for name in own if name in loaded and loaded[name].shape != own[name].shape]
    if len(different) != 1:
        return loaded
    (name,) = different
    stem, (*shape,) = loaded[name], own[name].shape
    channels = shape[1] if len(shape) == 4 else 0
    if not channels or [*stem.shape] != [shape[0], 3, *shape[2:]]:
        return loaded
    log.info("weights: %s is for 3 channels; each of %d gets their mean, times 3 / %d", name, channels, channels)
    return loaded | {name: (stem.sum(dim=1, keepdim=True) / channels).expand(shape).contiguous()}


def read_weights(weights: str) -> dict[str, Tensor]:
    """The parameters and buffers that `load_weights` loads, with those of a classification head where there is one."""
    source, name = source_of(weights)
    return {"torchvision": _from_torchvision, "timm": _from_timm, "file": _from_file}[source](name)


def source_of(weights: str) -> tuple[Literal["torchvision", "timm", "file"], str]:
    """Where weights are from, and their name there.

    >>> source_of("timm:resnet50.a1_in1k"), source_of("encoder.pth")
    (('timm', 'resnet50.a1_in1k'), ('file', 'encoder.pth'))
    """
    source, _, name = weights.partition(":")
    if source == "torchvision":
        return "torchvision", name
    return ("timm", name) if source == "timm" else ("file", weights)


def _from_file(weights: str) -> dict[str, Tensor]:
    if not Path(weights).is_file():
        raise FileNotFoundError(f"weights {weights} is not a file")
    content = _read_safetensors(weights) if weights.endswith(".safetensors") else read_file(weights)
    state: dict[str, Tensor] = content.get("state_dict", content)
    of_backbone = {name.removeprefix("backbone."): value for name, value in state.items() if name[:9] == "backbone."}
    return of_backbone or state


def _read_safetensors(path: str) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingPackageError(f"weights {path} need safetensors: pip install 'msssl[export]'") from error
    try:
        return load_file(path)
    except Exception as error:  # a kind of its own, of the Rust library
        raise UserError(f"weights {path} cannot be read as safetensors: {error}") from error


def _from_torchvision(name: str) -> dict[str, Tensor]:
    try:
        entry: Any = models.get_weight(name)
    except (ValueError, KeyError) as error:
        raise UserError(f"torchvision has no weights {name} ({error})") from error
    try:
        state: dict[str, Tensor] = entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:  # no network; a file that is not the weights
        place = Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name)
        raise FileNotFoundError(
            f"weights torchvision:{name} cannot be downloaded ({error}): fetch {entry.url} elsewhere and put it "
            f"there: {place}"
        ) from error
    return state


def _from_timm(name: str) -> dict[str, Tensor]:
    try:
        import timm
    except ImportError as error:
        raise MissingPackageError(f"weights timm:{name} need timm: pip install 'msssl[timm]'") from error
    known = timm.list_pretrained()
    if name not in known and name not in {tagged.partition(".")[0] for tagged in known}:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        raise UserError(f"timm has no weights {name!r}; did you mean timm:{near}?")
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    except OSError as error:
        repository = getattr(timm.models.get_pretrained_cfg(name), "hf_hub_id", name)
        page = f"https://huggingface.co/{repository}/resolve/main/model.safetensors"
        reason = str(error).partition(". ")[0]
        raise FileNotFoundError(
            f"weights timm:{name} cannot be downloaded ({reason}): fetch {page} elsewhere and name the file instead"
        ) from error
    return model.state_dict()
