"""A CSV file that lists images, with their labels, splits and groups."""

import csv
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

COLUMNS = ("path", "label", "split", "group")
SPLIT_NAMES = ("train", "val", "test")


class Row(NamedTuple):
    """An image: its path, the name of its class, and what it must not be separated from; empty for none."""

    path: str
    label: str = ""
    group: str = ""


def read_manifest(manifest: str, data_dir: str) -> dict[str, list[Row]]:
    """The images of each split, in the order of the file.

    Args:
        manifest: the file; without a column `split`, or where it is empty, an image is for training.
        data_dir: folder of the paths.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the row (the header is row 1) or the column.
    """
    if not Path(manifest).is_file():
        raise FileNotFoundError(f"manifest {manifest} is not a file")
    splits: dict[str, list[Row]] = {}
    row_of_path: dict[str, int] = {}
    place_of_group: dict[str, tuple[str, int]] = {}
    with Path(manifest).open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        _check_columns(manifest, reader.fieldnames or [])
        for record in reader:
            where = f"{manifest}, row {reader.line_num}"
            values = {name: (record.get(name) or "").strip() for name in COLUMNS}
            path = _path(values["path"], data_dir, where)
            if path in row_of_path:
                raise ValueError(f"{where}: {values['path']} is also in row {row_of_path[path]}")
            row_of_path[path] = reader.line_num
            split, group = values["split"] or "train", values["group"]
            if split not in SPLIT_NAMES:
                raise ValueError(f"{where}: split is {split!r}, expected one of {', '.join(SPLIT_NAMES)}")
            place = place_of_group.setdefault(group, (split, reader.line_num)) if group else (split, 0)
            if place[0] != split:
                raise ValueError(f"{where}: group {group!r} is in {split} and, in row {place[1]}, in {place[0]}")
            splits.setdefault(split, []).append(Row(path, values["label"], group))
    if "train" not in splits:
        raise ValueError(f"{manifest} lists no training images")
    return splits


def _check_columns(manifest: str, found: Sequence[str]) -> None:
    for name in COLUMNS:
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
    if os.path.relpath(path, data_dir).startswith(os.pardir):
        raise ValueError(f"{where}: {given} is outside {data_dir}")
    return path
