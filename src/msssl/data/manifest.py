"""A CSV file that lists images, with their labels, splits and groups."""

import csv
import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from msssl.data.splits import SPLITS

COLUMNS = ("path", "label", "split", "group")


class Row(NamedTuple):
    """An image: its path, the name of its class, and what it must not be separated from; empty for none."""

    path: str
    label: str = ""
    group: str = ""


def read_manifest(manifest: str, data_dir: str, classes: list[str] | None) -> dict[str, list[Row]]:
    """The images of each split, in the order of the file.

    Args:
        manifest: the file; label -1 is none; without a column `split`, or where it is empty, an image is for training.
        data_dir: folder of the paths.
        classes: labels of the images to read; None for all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the row (the header is row 1) or the column.
    """
    if not Path(manifest).is_file():
        raise FileNotFoundError(f"manifest {manifest} is not a file")
    splits: dict[str, list[Row]] = {}
    row_of_path: dict[str, int] = {}
    place_of_group: dict[str, tuple[str, int]] = {}
    for line, record in _records(manifest):
        where = f"{manifest}, row {line}"
        values = {name: (record.get(name) or "").strip() for name in COLUMNS}
        values["label"] = "" if values["label"] == "-1" else values["label"]
        path = _path(values["path"], data_dir, where)
        if path in row_of_path:
            raise ValueError(f"{where}: {values['path']} is also in row {row_of_path[path]}")
        row_of_path[path] = line
        split, group = values["split"] or "train", values["group"]
        if split not in SPLITS:
            raise ValueError(f"{where}: split is {split!r}, expected one of {', '.join(SPLITS)}")
        place = place_of_group.setdefault(group, (split, line)) if group else (split, 0)
        if place[0] != split:
            raise ValueError(f"{where}: group {group!r} is in {split} and, in row {place[1]}, in {place[0]}")
        if classes is None or values["label"] in classes:
            splits.setdefault(split, []).append(Row(path, values["label"], group))
    if "train" not in splits:
        raise ValueError(f"{manifest} lists no training images{' of these classes' if classes else ''}")
    return splits


def _records(manifest: str) -> Iterator[tuple[int, dict[str, str]]]:
    line = 1
    try:
        with Path(manifest).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            _check_columns(manifest, reader.fieldnames or [])
            for record in reader:
                line = reader.line_num
                yield line, record
    except UnicodeDecodeError as error:
        raise ValueError(f"{manifest} is not a text in UTF-8: {error}") from error
    except csv.Error as error:
        raise ValueError(f"{manifest}, after row {line}: {error}") from error


def _check_columns(manifest: str, found: Sequence[str]) -> None:
    if not found:
        raise ValueError(f"{manifest} is empty: expected the columns {', '.join(COLUMNS)}")
    for name in COLUMNS:
        if found.count(name) > 1:
            raise ValueError(f"{manifest} has {found.count(name)} columns {name!r}")
        if name in found:
            continue
        near = difflib.get_close_matches(name, [each for each in found if each not in COLUMNS], n=1)
        if name == "path" or near:
            hint = f"; is {near[0]!r} meant?" if near else ""
            raise ValueError(f"{manifest} has no column {name!r}, but {', '.join(map(repr, found))}{hint}")


def _path(given: str, data_dir: str, where: str) -> str:
    if not given:
        raise ValueError(f"{where}: path is empty")
    path = os.path.normpath(Path(data_dir, given))
    if Path(os.path.relpath(path, data_dir)).parts[:1] == (os.pardir,):
        raise ValueError(f"{where}: {given} is outside {data_dir}")
    return path
