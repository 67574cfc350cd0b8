"""`msssl export`: a pretrained backbone for software that has never heard of this package."""

import json
import shutil
from pathlib import Path

import torch
from rich.console import Console

from msssl.checkpoint import find, read, read_head
from msssl.data import MultiViewDataModule
from msssl.evaluation.card import model_card
from msssl.evaluation.formats import FormatName, Network, load, usage, write
from msssl.modules import MultiViewModule

TOLERANCE = 1e-5  # of outputs, relative to the largest


def export(ckpt_path: str, format: FormatName, head: str | None = None, out: str | None = None) -> None:
    """Write a checkpoint's backbone so that torchvision, timm, onnxruntime or safetensors loads it.

    The file is loaded again, by the lines that are printed, and its outputs compared. With it come a model card,
    `README.md`, and `config.json`: how images are normalised, their size, and names of classes.

    Args:
        ckpt_path: a checkpoint, the folder of a run, or `last` for the newest run.
        format: torchvision and timm hold networks that they have, onnx and safetensors any.
        head: linear head to put behind it, `probe.head.pt` as `msssl probe` writes it.
        out: folder to write; by default `export-<format>` beside the checkpoint.

    Raises:
        FileNotFoundError: no such checkpoint or head.
        ImportError: the exporter is not installed.
        ValueError: the format cannot hold the architecture, or the head is not for these features.
        FileExistsError: the folder holds something else.
        RuntimeError: what was written does not give the same outputs.
    """
    path = find(ckpt_path)
    checkpoint = read(path)
    module = MultiViewModule.from_checkpoint(checkpoint).eval()
    data = MultiViewDataModule.from_checkpoint(checkpoint)
    size = data.pretrained_size
    if size is None:
        raise ValueError(f"{path} was written before a training step: it does not say the size of its images")
    pixels = torch.randint(256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    linear, classes = (None, None) if head is None else read_head(head, module.feature_dim)
    network = Network(module.backbone, linear, data.views.evaluate(pixels))
    folder = path.with_name(f"export-{format}") if out is None else Path(out)
    if folder.exists() and not (folder / "config.json").is_file():
        raise FileExistsError(f"{folder} is there and no earlier export: name another with out")
    growing = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir(parents=True)
    try:
        file, lines = write(network, format, growing / "model")
        _check(network, lines, file)
        shown = [*(line.format(file=file.name) for line in lines), usage(network, format)]
        config = {
            "format": format,
            "output": network.output,
            "mean": data.views.mean,
            "std": data.views.std,
            "image_size": list(network.images.shape[-2:]),
            "feature_dim": module.feature_dim,
            "classes": classes,
        }
        (growing / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (growing / "README.md").write_text(model_card(path, checkpoint, data, config, shown))
        shutil.rmtree(folder, ignore_errors=True)
        growing.rename(folder)
    finally:
        shutil.rmtree(growing, ignore_errors=True)
    written = ["", f"written to {folder / file.name}, outputs compared; in that folder, load it by", "", *shown]
    for line in written:
        Console(soft_wrap=True, markup=False, highlight=False).print(line)


@torch.no_grad()
def _check(network: Network, lines: list[str], file: Path) -> None:
    loaded = load(network, lines, file)
    more = torch.cat([network.images] * 2)[:3]
    for images in (network.images, more):  # another number of images
        expected, found = network.model(images), loaded(images)
        difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{file.name}: outputs differ by {difference:.1e} from those of the checkpoint")
