"""`msssl export`: writes a pretrained backbone so that software without msssl can load it."""

import copy
import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from msssl.errors import UserError
from msssl.evaluation.export.card import model_card
from msssl.evaluation.export.formats import FormatName, Network, load, usage, write
from msssl.evaluation.export.preparation import settings
from msssl.evaluation.rebuild import module_of, preprocess_of
from msssl.evaluation.table import print_line
from msssl.methods import MultiViewModule
from msssl.run.files import atomic_write, read, writing
from msssl.run.find import find
from msssl.run.head import head_of, read_head

TOLERANCE = 1e-5  # of outputs, relative to the largest


def export(
    ckpt_path: str,
    format: FormatName = "safetensors",
    head: str | None = None,
    out: str | None = None,
    model: MultiViewModule | None = None,
) -> None:
    """Write a checkpoint's backbone so that torchvision, timm, onnxruntime or safetensors loads it.

    It needs the checkpoint only, neither the folder of the run nor its images. It prints the lines of code that load
    the file, runs them, and compares the outputs with those of the checkpoint. It also writes a model card,
    `README.md`, and `config.json`, which says how an image is prepared for the backbone, and the names of the classes.

    Args:
        ckpt_path: a checkpoint, the folder of a run, or `last` for the newest run.
        format: torchvision and timm take only architectures that they have, onnx and safetensors take any.
        head: file of a linear head to put behind the backbone, `probe.head.pt` as `msssl probe` writes it; by default
            that of `finetuned.ckpt`, and none for another checkpoint.
        out: folder to write; by default `export-<format>` beside the checkpoint.
        model: the module, built again as for the run, where the checkpoint does not hold all that this needs.

    Raises:
        FileNotFoundError: no such checkpoint or head.
        ImportError: the exporter is not installed.
        ValueError: the format does not support the architecture, the head was fitted on other features, or the weights
            do not fit the model.
        FileExistsError: the folder holds something else than an earlier export.
        RuntimeError: the written file gives other outputs than the checkpoint.
    """
    path = find(ckpt_path)
    checkpoint = read(path)
    module = module_of(path, checkpoint, copy.deepcopy(model)).eval()
    preprocess = preprocess_of(path, checkpoint)
    if preprocess.image_size is None:
        raise UserError(f"{path} was written before a training step: it does not say the size of its images")
    shape = (2, len(preprocess.mean), *preprocess.image_size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    head = head or head_of(path)
    linear, classes = (None, None) if head is None else read_head(head, module.feature_dim, path)
    network = Network(module.backbone, linear, preprocess.evaluate(pixels), classes)
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
        _copy_files(Path(building), folder)
    print_line(f"\nwritten to {folder / file.name}, outputs compared; in that folder, load it by\n")
    print_line("\n".join(shown))


def _is_export(folder: Path) -> bool:
    """Whether this is a folder that holds the files of an export only."""
    if not folder.is_dir():
        return False
    return all(path.name in ("config.json", "README.md") or path.name.startswith("model.") for path in folder.iterdir())


def _copy_files(building: Path, folder: Path) -> None:
    """Copy the files of an export into a folder, where they replace an earlier export: all of them or none."""
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    earlier = list(folder.iterdir())
    try:
        with ExitStack() as stack:  # all files get their final names at its end
            for file in building.iterdir():
                shutil.copyfile(file, stack.enter_context(atomic_write(folder / file.name)))
    except OSError:
        for new_folder in new_folders:
            new_folder.rmdir()
        raise
    for file in earlier:
        if not (building / file.name).exists():
            file.unlink()


@torch.no_grad()
def _check(network: Network, lines: list[str], file: Path) -> None:
    """Raise RuntimeError if the lines of code load a model with other outputs."""
    loaded = load(network, lines, file)
    three = torch.cat([network.images] * 2)[:3]
    for images in (network.images, three):  # the number of images must not matter
        expected = network.model(images)
        difference = float((loaded(images) - expected).abs().max() / expected.abs().max().clamp(min=1))
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{file.name}: outputs differ by {difference:.1e} from those of the checkpoint")
