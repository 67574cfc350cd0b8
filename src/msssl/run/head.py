"""Reads and writes linear heads: files of their own, by `msssl probe`, or in a checkpoint, by `msssl finetune`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msssl.errors import UserError
from msssl.run.files import read_file, sha256_of, write_file


def write_head(path: Path, head: nn.Module, classes: list[str], **provenance: Any) -> None:
    """Write a linear head with the names of its classes, and plain data that say where it is from."""
    weights = {name: value.cpu() for name, value in head.state_dict().items()}
    write_file(path, {**weights, "classes": classes, **provenance})


def read_head(path: str | Path, feature_dim: int, ckpt_path: str | Path | None = None) -> tuple[nn.Linear, list[str]]:
    """Read a head, which maps features (N, F) to logits (N, C), to the CPU, and the names of its classes.

    Args:
        path: path of the head, or of a checkpoint that holds one.
        feature_dim: F, the width of the features.
        ckpt_path: if given, a checkpoint on whose features the head must have been fitted.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file holds something else, or a head that was fitted on other features.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"head {path} is not a file: msssl probe writes one and says its name")
    content = read_file(path)
    content = content.get("head", content)
    if not _is_head(content):
        raise UserError(f"head {path} is not one that msssl probe wrote")
    num_classes, width = content["weight"].shape
    if width != feature_dim:
        raise UserError(f"head {path} is for {width} features, and the backbone has {feature_dim}")
    if ckpt_path is not None and content.get("sha256") not in (None, sha256_of(ckpt_path)):
        raise UserError(f"head {path} was fitted on features of another checkpoint than {ckpt_path}")
    head: nn.Linear = nn.utils.skip_init(nn.Linear, width, num_classes)
    with torch.no_grad():
        head.weight.copy_(content["weight"])
        head.bias.copy_(content["bias"])
    return head.requires_grad_(False), content["classes"]


def head_of(ckpt_path: str | Path) -> str | None:
    """The path itself, for `read_head`, if the checkpoint there was fine-tuned and holds a head; else None."""
    return str(ckpt_path) if "head" in read_file(ckpt_path) else None


def _is_head(content: dict[str, Any]) -> bool:
    weight, bias = content.get("weight"), content.get("bias")
    if not (isinstance(weight, Tensor) and isinstance(bias, Tensor) and weight.ndim == 2):
        return False
    return bias.shape == weight.shape[:1] and len(content.get("classes", [])) == len(weight)
