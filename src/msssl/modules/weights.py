"""Weights that a backbone starts from."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from msssl.checkpoint import read_file

HEADS = ("fc.", "head.", "classifier.")  # of models that were trained to classify
log = logging.getLogger(__name__)


def load_weights(backbone: nn.Module, weights: str) -> None:
    """Load a backbone's parameters and buffers; classification heads in the file are left out.

    Args:
        backbone: of the same architecture.
        weights: a checkpoint of msssl (its backbone is taken), a file of a `state_dict`, or
            `torchvision:ResNet50_Weights.IMAGENET1K_V2` and the like, downloaded by torchvision.

    Raises:
        FileNotFoundError: no such file, or no network; the message says where to put the file.
        ValueError: unknown weights, or parameters that are missing or of another shape, by name.
    """
    found = _from_torchvision(weights) if weights.startswith("torchvision:") else _from_file(weights)
    wanted = backbone.state_dict()
    for name, value in wanted.items():
        if name not in found:
            raise ValueError(f"weights {weights} lack {name} of the backbone {type(backbone).__name__}")
        if found[name].shape != value.shape:
            shapes = f"{tuple(found[name].shape)} in weights {weights}, {tuple(value.shape)}"
            raise ValueError(f"{name} is {shapes} in the backbone {type(backbone).__name__}")
    other = [name for name in found if name not in wanted and not name.startswith(HEADS)]
    if other:
        raise ValueError(f"weights {weights} have {other[0]}, which the backbone {type(backbone).__name__} has not")
    backbone.load_state_dict({name: found[name] for name in wanted})
    log.info("weights: the backbone starts from %s", weights)


def _from_file(weights: str) -> dict[str, Tensor]:
    if not Path(weights).is_file():
        raise FileNotFoundError(f"weights {weights} is not a file")
    content = read_file(weights)
    state: dict[str, Tensor] = content.get("state_dict", content)
    of_backbone = {name.removeprefix("backbone."): value for name, value in state.items() if name[:9] == "backbone."}
    return of_backbone or state


def _from_torchvision(weights: str) -> dict[str, Tensor]:
    try:
        entry: Any = models.get_weight(weights.removeprefix("torchvision:"))
    except (ValueError, KeyError) as error:
        raise ValueError(f"torchvision has no weights {weights.removeprefix('torchvision:')} ({error})") from error
    try:
        state: dict[str, Tensor] = entry.get_state_dict(progress=True)
    except (OSError, RuntimeError) as error:  # no network; a download that is not the file
        place = Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name)
        raise FileNotFoundError(
            f"weights {weights} cannot be downloaded ({error}): fetch {entry.url} elsewhere and put it there: {place}"
        ) from error
    return state
