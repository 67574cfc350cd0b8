"""A linear head on disk, as `msssl probe` fits it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from msssl.checkpoint.files import read_file, write_file


def write_head(path: Path, head: nn.Module, classes: list[str], **told: Any) -> None:
    """Write a linear head with the names of its classes, and plain data about it."""
    write_file(path, {**{name: value.cpu() for name, value in head.state_dict().items()}, "classes": classes, **told})


def read_head(path: str | Path, feature_dim: int) -> tuple[nn.Linear, list[str]]:
    """A head from features of this width to logits, on the CPU, and the names of its classes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or a head for features of another width.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"head {path} is not a file: msssl probe writes probe.head.pt beside the checkpoint")
    content = read_file(path)
    if not {"weight", "bias", "classes"} <= content.keys():
        raise ValueError(f"head {path} is not one that msssl probe wrote")
    num_classes, width = content["weight"].shape
    if width != feature_dim:
        raise ValueError(f"head {path} is for {width} features, and the backbone has {feature_dim}")
    head: nn.Linear = nn.utils.skip_init(nn.Linear, width, num_classes)
    with torch.no_grad():
        head.weight.copy_(content["weight"])
        head.bias.copy_(content["bias"])
    return head.requires_grad_(False), content["classes"]
