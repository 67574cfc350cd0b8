"""`msssl inspect`: reads all images, reports problems, and draws the first views, before any training."""

import hashlib
from itertools import combinations
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table
from torchvision.utils import save_image

from msssl.callbacks.view_grid import contact_sheet
from msssl.data import MultiViewDataModule
from msssl.data.splits import Part, class_counts
from msssl.data.statistics import N_IMAGES, mean_and_std
from msssl.errors import UserError
from msssl.progress import with_bar
from msssl.run.files import atomic_write, check_file_writable
from msssl.wording import counted

N_ROWS = 8  # of the picture
N_LISTED = 10  # unreadable images


def inspect(data: MultiViewDataModule, out: str = "views.png") -> list[str]:
    """Draw what a run will see, and summarise its data.

    The picture has the first images of the first step with their views.

    The views are drawn on the CPU for one process: on a GPU, or with more processes, the run draws others from the
    same recipe. Reads every image.

    Args:
        data: the data module of the run.
        out: the picture to write.

    Returns:
        What is wrong: images that cannot be read, unless `on_error` is `skip`, and images that are in two splits.

    Raises:
        NotWrittenError: the picture cannot be written; no image was read then.
        ValueError: `out` does not name a picture.
    """
    picture = Path(out)
    picture_format = Image.registered_extensions().get(picture.suffix.lower())
    if picture_format is None:
        raise UserError(f"out is {out}: expected the name of a picture, such as views.png")
    check_file_writable(picture)
    given, data.on_error = data.on_error, "skip"
    data.prepare_data()
    data.setup()
    data.on_error = given
    table = Table("split", "images", "labelled", "classes", "images per class", caption="images that the run reads")
    for name, part in data.splits.items():
        if name == "probe" and data.num_classes is None:
            continue
        table.add_row("train, for the probe" if name == "probe" else name, *_counts(part))
    Console(markup=False).print(table)
    problems = _unreadable(data) if given == "stop" else []
    leaks, copies = _duplicates(data)
    problems += leaks
    for problem in problems:
        _print(f"problem: {problem}")
    for note in copies:
        _print(f"note: {note}")
    batch = next(iter(data.train_dataloader()))
    views: Any = data.make_views(batch)["views"]  # type: ignore[typeddict-item]  # of a training batch
    with atomic_write(picture) as growing:
        save_image(contact_sheet(data.views, views, N_ROWS), growing, format=picture_format)
    kind = data.images("train").kind
    mean, std = mean_and_std(data.images("train"), data.num_workers, data.window)
    lines = {
        "size": str(kind),
        **({"network": _flags(kind.shape[0])} if kind.shape[0] != 3 else {}),
        **{f"storage of {name}": choice for name, choice in data.opened.chosen.items()},
        "mean": f"{_rounded(mean)}, of {min(N_IMAGES, len(data.splits['train'])):,} training images",
        "std": f"{_rounded(std)}; views are normalised by mean {_rounded(data.views.mean)}, "
        f"std {_rounded(data.views.std)}",
        "views": f"{data.views.n_views} for each of {data.batch_size} images a device: {out}",
    }
    for name, text in lines.items():
        _print(f"{name:<18}{text}")
    return problems


def _flags(channels: int) -> str:
    """How a network for so many channels is asked for."""
    flag = f"--model.in_channels {channels}"
    return f"{flag}; of a backbone given by class_path --model.backbone.in_channels {channels}"


def _counts(part: Part) -> tuple[str, str, str, str]:
    counts = class_counts(part)
    if not len(counts):
        return f"{len(part):,}", "0", "-", "-"
    least, most = int(counts.min()), int(counts.max())
    spread = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"{len(part):,}", f"{int(counts.sum()):,}", str(len(counts)), spread


def _unreadable(data: MultiViewDataModule) -> list[str]:
    reasons = [f"{name}: {reason}" for name, reasons_of in data.skipped.items() for reason in reasons_of.values()]
    if len(reasons) > N_LISTED:
        return [*reasons[:N_LISTED], f"{counted(len(reasons) - N_LISTED, 'more image')} cannot be read"]
    return reasons


def _duplicates(data: MultiViewDataModule) -> tuple[list[str], list[str]]:
    """Images whose pixels are also those of an image of another split.

    Returns:
        One line for each pair of splits that share images, and one where the other split was held out of the first
        by the data module itself: copies in one folder are no fault of the splits.
    """
    seen: dict[str, dict[bytes, str]] = {}
    for split, part in data.splits.items():
        if split == "train" and part.dataset is data.splits["probe"].dataset:
            continue  # all of it is in `probe`
        digests = seen.setdefault("train" if split == "probe" else split, {})
        loader = data.evaluation_dataloader(split)
        for batch in with_bar(loader, f"Comparing {split}"):
            for image, index in zip(batch["image"].numpy(), batch["index"].tolist(), strict=True):
                digests[hashlib.blake2b(image.tobytes(), digest_size=16).digest()] = loader.images.describe(index)
    held_out = "val" in data.splits and data.splits["val"].dataset is data.splits["probe"].dataset
    leaks, copies = [], []
    for (one, of_one), (other, of_other) in combinations(seen.items(), 2):
        if both := sorted(of_one.keys() & of_other.keys(), key=of_one.__getitem__):
            line = f"{counted(len(both), f'image of {one} is', f'images of {one} are')} also in {other}"
            such = f"such as {of_one[both[0]]} and {of_other[both[0]]}"
            if {one, other} == {"train", "val"} and held_out:
                copies.append(f"{line}, which was held out of it, {such}: without such copies choices are safer")
            else:
                leaks.append(f"{line}, {such}")
    return leaks, copies


def _rounded(values: list[float] | tuple[float, ...]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _print(line: str) -> None:
    Console(soft_wrap=True, highlight=False, markup=False).print(line)
