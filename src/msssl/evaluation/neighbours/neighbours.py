"""`msssl neighbours`: writes a page of images beside those whose frozen features are most similar."""

from pathlib import Path

import torch
from torch import Tensor

from msssl.data import MultiViewDataModule
from msssl.data.loaders import EvaluationLoader
from msssl.data.pixels.labels import class_names_of
from msssl.errors import UserError
from msssl.evaluation.nearest import Nearest, nearest_of
from msssl.evaluation.neighbours.page import Header, Picture, Row, page, thumbnail
from msssl.evaluation.probe.features import Split, content_of
from msssl.evaluation.probe.probe import PRETRAINED
from msssl.evaluation.probe.subject import Subject, open_run
from msssl.evaluation.rebuild import epochs_of
from msssl.evaluation.table import print_line
from msssl.methods import MultiViewModule
from msssl.progress import with_bar
from msssl.run.files import check_file_writable, write_text
from msssl.wording import counted

SEARCHED = "probe"  # the training images, without those that are held out


def neighbours(
    ckpt_path: str,
    data: MultiViewDataModule | None = None,
    out: str = "neighbours.html",
    n_images: int = 24,
    n_neighbours: int = 8,
    model: MultiViewModule | None = None,
) -> None:
    """Write a page that shows some images, each beside the training images whose features are nearest to its own.

    The images are spread evenly over the test images; over the validation images where there is no test set; and over
    the training images themselves where there are neither. No labels are needed. The page is one HTML file with all
    pictures in it, which needs no network. The same checkpoint and images give the same file.

    Args:
        ckpt_path: a checkpoint, the folder of a run, or `last` for the newest run.
        data: other images, which are resized and normalised as in the pretraining; by default those of the run.
        out: the page to write. An earlier file is replaced.
        n_images: number of images to show; all of them where there are fewer.
        n_neighbours: number of neighbours to show beside each.
        model: the module, built again as for the run, where the checkpoint does not hold all that this needs.

    Raises:
        FileNotFoundError: no such checkpoint.
        NotWrittenError: the page cannot be written; no image was read then.
        ValueError: an unreadable checkpoint, a number below 1, fewer training images than neighbours, or a file name
            that does not end in `.html`.
    """
    target = Path(out)
    if target.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out is {out}: expected the name of a page, such as neighbours.html")
    for name, number in (("n_images", n_images), ("n_neighbours", n_neighbours)):
        if number < 1:
            raise UserError(f"{name} is {number}: expected at least 1")
    check_file_writable(target)
    subject = open_run(ckpt_path, data, model)
    images = subject.data
    split = next((name for name in ("test", "val") if name in images.splits), SEARCHED)
    n_searched = len(images.splits[SEARCHED]) - (split == SEARCHED)  # an image is not its own neighbour
    if n_searched < n_neighbours:
        raise UserError(
            f"n_neighbours is {n_neighbours}, but {type(images).__name__} in {images.data_dir} has "
            f"{counted(n_searched, 'training image')} to search: lower it"
        )
    features = _features(subject, split)
    nearest = nearest_of(features[split][0], features[SEARCHED][0], n_images, n_neighbours, split == SEARCHED)
    rows = _rows(subject, split, nearest, {name: labels for name, (_, labels) in features.items()})
    write_text(target, page(_header(subject, split, len(features[SEARCHED][1])), rows))
    queries = f"{len(rows)} of {counted(len(features[split][1]), 'image')} of {_named(split)}"
    print_line(f"{queries}, each beside its {counted(n_neighbours, 'nearest training image')}: open {target}")


def _features(subject: Subject, split: str) -> dict[str, Split]:
    """Features and labels of the images that are shown and of those that are searched, kept as those of a probe."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = subject.module.to(device)
    return {
        name: subject.features_of(
            PRETRAINED, encoder, subject.data, device, split=name, content=content_of(subject.data, name)
        )
        for name in dict.fromkeys((split, SEARCHED))
    }


def _rows(subject: Subject, split: str, nearest: Nearest, labels: dict[str, Tensor]) -> list[Row]:
    names = _class_names(subject.data)
    shown, searched = (subject.data.evaluation_dataloader(name) for name in (split, SEARCHED))
    rows = []
    for i, row in enumerate(with_bar(nearest.rows.tolist(), "Pictures", len(nearest.rows))):
        (query,) = _pictures(subject.data, shown, torch.tensor([row]), labels[split], names)
        found = _pictures(subject.data, searched, nearest.neighbours[i], labels[SEARCHED], names)
        rows.append(Row(query, found, nearest.similarity[i].tolist()))
    return rows


def _pictures(
    data: MultiViewDataModule, loader: EvaluationLoader, rows: Tensor, labels: Tensor, names: list[str]
) -> list[Picture]:
    """The images of some rows of a split, with their paths and the names of their classes."""
    paths = [loader.images.describe(index) for index in loader.images.indices[rows].tolist()]
    classes = [names[label] if label >= 0 else None for label in labels[rows].tolist()]
    pixels = data.preprocess.picture(loader.pixels(rows)).cpu()
    return [Picture(*each) for each in zip(map(thumbnail, pixels), paths, classes, strict=True)]


def _class_names(data: MultiViewDataModule) -> list[str]:
    """Names of the classes; their numbers where they have no names, and nothing where there are no classes."""
    names = class_names_of(data.splits[SEARCHED].dataset)
    return [str(name) for name in names or range(data.num_classes or 0)]


def _header(subject: Subject, split: str, n_searched: int) -> Header:
    data = subject.data
    return Header(
        checkpoint=str(subject.path),
        sha256=subject.sha256,
        written=subject.path.stat().st_mtime,
        encoder=type(subject.module).__name__,
        epochs=epochs_of(subject.checkpoint),
        data=f"{type(data).__name__} in {data.data_dir}",
        split=_named(split),
        n_images=len(data.splits[split]),
        n_searched=n_searched,
        itself=split == SEARCHED,
    )


def _named(split: str) -> str:
    return "train" if split == SEARCHED else split
