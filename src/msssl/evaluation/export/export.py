"""`msssl export`: a pretrained backbone for software that has never heard of this package."""

import copy
import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from msssl.errors import UserError
from msssl.evaluation.export.card import model_card
from msssl.evaluation.export.formats import FormatName, Network, load, usage, write
from msssl.evaluation.export.preparation import settings
from msssl.evaluation.rebuild import module_of, preprocess_of
from msssl.methods import MultiViewModule
from msssl.run.files import atomic_write, read, writing
from msssl.run.find import find
from msssl.run.head import read_head

TOLERANCE = 1e-5  # of outputs, relative to the largest


def export(
    ckpt_path: str,
    format: FormatName = "safetensors",
    head: str | None = None,
    out: str | None = None,
    model: MultiViewModule | None = None,
) -> None:
    """Write a checkpoint's backbone so that torchvision, timm, onnxruntime or safetensors loads it.

    The checkpoint is all that is needed: neither the folder of its run nor its images. The file is loaded again, by the
    lines that are printed, and its outputs compared. With it come a model card, `README.md`, and `config.json`: all
    that is done to an image before the backbone sees it, and the names of classes.

    Args:
        ckpt_path: a checkpoint, the folder of a run, or `last` for the newest run.
        format: torchvision and timm hold networks that they have, onnx and safetensors any.
        head: linear head to put behind it, `probe.head.pt` as `msssl probe` writes it.
        out: folder to write; by default `export-<format>` beside the checkpoint.
        model: the module, built again as for the run, where the checkpoint cannot name all that it was built with.

    Raises:
        FileNotFoundError: no such checkpoint or head.
        ImportError: the exporter is not installed.
        ValueError: the format cannot hold the architecture, the head is not for these features, or the weights are not
            for this model.
        FileExistsError: the folder holds something else.
        RuntimeError: what was written does not give the same outputs.
    """
    path = find(ckpt_path)
    checkpoint = read(path)
    module = module_of(path, checkpoint, copy.deepcopy(model)).eval()
    preprocess = preprocess_of(path, checkpoint)
    if preprocess.image_size is None:
        raise UserError(f"{path} was written before a training step: it does not say the size of its images")
    shape = (2, len(preprocess.mean), *preprocess.image_size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    linear, classes = (None, None) if head is None else read_head(head, module.feature_dim, path)
    network = Network(module.backbone, linear, preprocess.evaluate(pixels))
    folder = path.with_name(f"export-{format}") if out is None else Path(out)
    if folder.exists() and not _is_export(folder):
        raise FileExistsError(f"{folder} is there and no earlier export: name another with out")
    with TemporaryDirectory() as building:
        file, lines = write(network, format, Path(building, "model"))
        _check(network, lines, file)
        shown = [*(line.format(file=file.name) for line in lines), usage(network, format)]
        config = {
            "format": format,
            "output": network.output,
            **settings(preprocess),
            "image_size": list(network.images.shape[-2:]),
            "feature_dim": module.feature_dim,
            "classes": classes,
        }
        Path(building, "config.json").write_text(json.dumps(config, indent=2) + "\n")
        Path(building, "README.md").write_text(model_card(path, checkpoint, preprocess, config, shown))
        _put(Path(building), folder)
    written = ["", f"written to {folder / file.name}, outputs compared; in that folder, load it by", "", *shown]
    for line in written:
        Console(soft_wrap=True, markup=False, highlight=False).print(line)


def _is_export(folder: Path) -> bool:
    """Whether nothing is there but an export."""
    names = {each.name for each in folder.iterdir()} if folder.is_dir() else {""}
    return all(name in ("config.json", "README.md") or name.startswith("model.") for name in names)


def _put(building: Path, folder: Path) -> None:
    """Files into a folder, in place of an earlier export; all of them or none."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    earlier = list(folder.iterdir())
    try:
        with ExitStack() as stack:  # each gets its name at the end
            for file in building.iterdir():
                shutil.copyfile(file, stack.enter_context(atomic_write(folder / file.name)))
    except OSError:
        for each in made:
            each.rmdir()
        raise
    for file in earlier:
        if not (building / file.name).exists():
            file.unlink()


@torch.no_grad()
def _check(network: Network, lines: list[str], file: Path) -> None:
    loaded = load(network, lines, file)
    more = torch.cat([network.images] * 2)[:3]
    for images in (network.images, more):  # another number of images
        expected, found = network.model(images), loaded(images)
        difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{file.name}: outputs differ by {difference:.1e} from those of the checkpoint")
