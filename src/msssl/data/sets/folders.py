"""Lists the images in folders such as `train/<class>/`, with the split, class and group of each."""

import logging
import os
from collections import Counter
from pathlib import Path

from msssl.data.pixels.files import shown
from msssl.data.sets.find_images import describe, extension_of, images_among, is_ignored, is_run, list_images
from msssl.data.sets.manifest import Row, composed
from msssl.data.splits import SPLITS, Split, split_of
from msssl.errors import UserError
from msssl.wording import counted

LAYOUT = "ImageFolder reads DATA_DIR/train/<class>/* or DATA_DIR/train/*"
log = logging.getLogger(__name__)


def list_folders(
    data_dir: str, classes: list[str] | None, *, labelled: bool = True, group_level: int | None = None
) -> dict[str, list[Row]]:
    """The images of each split in `data_dir/{train,val,test}/<class>/*`, sorted, or of `data_dir` if it has no such.

    Args:
        data_dir: the folder.
        classes: names of the class folders to read; None for all.
        labelled: whether folders are classes.
        group_level: which folder names the group of an image; 1 for those in `train`, 2 for those in these.

    Raises:
        FileNotFoundError: there is no `train`.
        ValueError: no training images, only one class, two folders of one split, an image above `group_level`, or a
            group in two splits.
    """
    if not Path(data_dir).is_dir():
        raise FileNotFoundError(f"{data_dir} is not a folder; {LAYOUT}")
    of_split = _split_folders(data_dir)
    left_out: Counter[str] = Counter()
    splits: dict[str, list[Row]] = {}
    for split, folder in of_split.items():
        of_class = _folders_of_classes(folder, of_split["train"], classes) if labelled else {"": [folder]}
        rows = []
        for name, place in ((name, place) for name, places in of_class.items() for place in places):
            paths, others = list_images(place)
            rows += [Row(path, name, _group(path, folder, group_level)) for path in paths]
            left_out += others
            if not paths and split == "train":
                raise UserError(f"{place} holds no images, but {describe(others) or 'nothing'}; {LAYOUT}")
        if rows:
            splits[split] = rows
            _log_other_places(folder, rows, group_level)
        else:
            log.warning("%s holds no images: it is not read", folder)
    _log_kinds(Counter(extension_of(row.path) for rows in splits.values() for row in rows), left_out)
    check_groups(splits)
    return splits


def _log_kinds(read: Counter[str], left_out: Counter[str]) -> None:
    if len(read) > 1:
        log.info("kinds of image files: %s", describe(read))
    if left_out:
        log.info("left out, as Pillow does not read them: %s", describe(left_out))


def _split_folders(data_dir: str) -> dict[Split, Path]:
    """The folder of each split, by any of its names; `data_dir` itself for training where there is none."""
    folders: dict[Split, Path] = {}
    beside: list[str] = []
    for entry in sorted(Path(data_dir).iterdir()):
        split = split_of(entry.name)
        if is_ignored(entry.name) or not entry.is_dir():
            continue
        if split is None:
            beside.append(entry.name)
        elif split in folders:
            raise UserError(f"{folders[split]} and {entry} are both for {split}: join them, or give one another name")
        else:
            folders[split] = entry
    if not folders:
        log.info("images: %s holds no folder train, so that all of its images are one set, named train", data_dir)
        return {"train": Path(data_dir)}
    if "train" not in folders:
        raise FileNotFoundError(f"{Path(data_dir, 'train')} is not a folder; {LAYOUT}")
    if beside:
        log.info("not read, as they are neither train, val nor test: %s in %s", ", ".join(beside), data_dir)
    return {split: folders[split] for split in SPLITS if split in folders}


def _folders_of_classes(folder: Path, train: Path, classes: list[str] | None) -> dict[str, list[Path]]:
    """The folders to read below that of a split, by the class that they are of; all in one, "", without classes."""
    by_name = _class_folders(folder)
    if folder == train:
        _check_training_classes(folder, set(by_name), classes)
    elif len(by_name) == 1 and not by_name.keys() & _class_folders(train).keys():
        log.warning("%s: %r is no class of train, so that its images have no label", folder, *by_name)
        by_name = {}
    if not by_name:
        return {"": [folder]}
    return {name: places for name, places in by_name.items() if classes is None or name in classes}


def _class_folders(folder: Path) -> dict[str, list[Path]]:
    """Folders by their names; several of one name where these differ in their Unicode form."""
    by_name: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not is_ignored(entry.name) and not images_among([entry.name]) and not _holds_runs(entry):
            by_name.setdefault(composed(entry.name), []).append(entry)
    return by_name


def _holds_runs(folder: Path) -> bool:
    """Whether it is such as `runs`, which `msssl fit` makes in the working directory."""
    return any(is_run(entry) for entry in folder.iterdir() if entry.is_dir())


def _check_training_classes(folder: Path, names: set[str], classes: list[str] | None) -> None:
    if names and classes is not None:
        if missing := sorted(set(classes) - names):
            raise UserError(f"{folder} has no images of the class {missing[0]!r}, which `classes` lists")
        names = names & set(classes)
    if len(names) == 1:
        raise UserError(
            f"{folder} holds one class folder, {names.pop()!r}: labels need two; "
            "to pretrain without labels say labels: none"
        )


def _group(path: str, folder: Path, level: int | None) -> str:
    """Name of the folder at this level above an image."""
    if level is None:
        return ""
    folders = Path(path).relative_to(folder).parts[:-1]
    if len(folders) < level:
        raise UserError(
            f"group_level is {level}, but {shown(path)} is only {counted(len(folders), 'folder')} below {folder}"
        )
    return composed(folders[level - 1])


def _log_other_places(folder: Path, rows: list[Row], group_level: int | None) -> None:
    """Say which images lie beside the class folders, or deeper in them."""
    if not any(row.label for row in rows):
        return
    if beside := images_among(entry.name for entry in folder.iterdir()):
        what = counted(len(beside), "image beside the class folders is", "images beside the class folders are")
        log.warning("%s: %s not read, such as %s", folder, what, shown(beside[0]))
    depth = len(folder.parts) + 2
    nested = [row.path for row in rows if row.path.count(os.sep) >= depth]
    if nested and group_level is None:
        log.info(
            "%s: %s in folders below a class folder, and of its class, such as %s (if the folders are no "
            "classes: labels: none; if they are of one patient or the like: group_level)",
            *(folder, counted(len(nested), "image is", "images are"), shown(nested[0])),
        )


def check_groups(splits: dict[str, list[Row]]) -> None:
    """Raise ValueError where images of one group are in two splits."""
    place: dict[str, tuple[str, str]] = {}
    for split, rows in splits.items():
        for row in rows:
            first, path = place.setdefault(row.group, (split, row.path)) if row.group else (split, "")
            if first != split:
                raise UserError(
                    f"group {row.group!r} is in {first} ({shown(path)}) and in {split} ({shown(row.path)}): "
                    "a group belongs to one split"
                )
