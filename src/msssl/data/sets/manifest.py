"""Reads a manifest, a CSV file that lists images with their labels, splits and groups."""

import csv
import difflib
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from msssl.data.splits import SPLITS, Split, split_of
from msssl.errors import UserError

COLUMNS = ("path", "label", "split", "group")


class Row(NamedTuple):
    """An image: its path, the name of its class, and what it must not be separated from; empty for none.

    Names of classes and groups are in Unicode's form NFC (`composed`), so that equal ones are equal strings.
    """

    path: str
    label: str = ""
    group: str = ""


def composed(name: str) -> str:
    """A name in Unicode's form NFC: macOS writes "é" as two characters, other systems as one."""
    return unicodedata.normalize("NFC", name)


def read_manifest(manifest: str, data_dir: str, classes: list[str] | None) -> dict[str, list[Row]]:
    """The images of each split, in the order of the file.

    Args:
        manifest: the file; label -1 is none; without a column `split`, or where it is empty, an image is for training.
            A split has one name throughout, such as `val` or `validation`.
        data_dir: folder of the paths.
        classes: labels of the images to read; None for all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the row (the header is row 1) or the column.
    """
    if not Path(manifest).is_file():
        raise FileNotFoundError(f"manifest {manifest} is not a file")
    splits: dict[str, list[Row]] = {}
    names_on_disk = _NamesOnDisk(data_dir)
    row_of_path: dict[str, int] = {}
    place_of_group: dict[str, tuple[str, int]] = {}
    name_of_split: dict[Split, tuple[str, int]] = {}
    for line, record in _records(manifest):
        where = f"{manifest}, row {line}"
        values = {name: (record.get(name) or "").strip() for name in COLUMNS}
        label, group = composed(values["label"]), composed(values["group"])
        label = "" if label == "-1" else label
        path = _path(values["path"], data_dir, where)
        if not values["path"].isascii():
            path = names_on_disk.path_of(path)
        if path in row_of_path:
            raise UserError(f"{where}: {values['path']} is also in row {row_of_path[path]}")
        row_of_path[path] = line
        split = _split(values["split"], line, where, name_of_split) if values["split"] else "train"
        place = place_of_group.setdefault(group, (split, line)) if group else (split, 0)
        if place[0] != split:
            raise UserError(f"{where}: group {group!r} is in {split} and, in row {place[1]}, in {place[0]}")
        if classes is None or label in classes:
            splits.setdefault(split, []).append(Row(path, label, group))
    if "train" not in splits:
        raise UserError(f"{manifest} lists no training images{' of these classes' if classes else ''}")
    return splits


def _split(given: str, line: int, where: str, name_of_split: dict[Split, tuple[str, int]]) -> Split:
    name = given.lower()
    split = split_of(name)
    if split is None:
        raise UserError(f"{where}: split is {given!r}, expected one of {', '.join(SPLITS)}")
    first, its_line = name_of_split.setdefault(split, (name, line))
    if first != name:
        raise UserError(
            f"{where}: split is {name!r} and, in row {its_line}, {first!r}: expected one name for the split"
        )
    return split


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
        raise UserError(f"{manifest} is not a text in UTF-8: {error}") from error
    except csv.Error as error:
        raise UserError(f"{manifest}, after row {line}: {error}") from error


def _check_columns(manifest: str, columns: Sequence[str]) -> None:
    if not columns:
        raise UserError(f"{manifest} is empty: expected the columns {', '.join(COLUMNS)}")
    for name in COLUMNS:
        if columns.count(name) > 1:
            raise UserError(f"{manifest} has {columns.count(name)} columns {name!r}")
        if name in columns:
            continue
        near = difflib.get_close_matches(name, [name for name in columns if name not in COLUMNS], n=1)
        if name == "path" or near:
            hint = f"; is {near[0]!r} meant?" if near else ""
            raise UserError(f"{manifest} has no column {name!r}, but {', '.join(map(repr, columns))}{hint}")


def _path(given: str, data_dir: str, where: str) -> str:
    if not given:
        raise UserError(f"{where}: path is empty")
    path = os.path.normpath(Path(data_dir, given))
    if Path(os.path.relpath(path, data_dir)).parts[:1] == (os.pardir,):
        raise UserError(f"{where}: {given} is outside {data_dir}")
    return path


class _NamesOnDisk:
    """Finds files whose names have another Unicode form on the disk than in a table.

    Args:
        data_dir: folder of the files.
    """

    def __init__(self, data_dir: str) -> None:
        self.data_dir = data_dir
        self._names: dict[str, dict[str, str]] = {}  # of the entries of a folder, by their composed form

    def path_of(self, path: str) -> str:
        """The path as it is on the disk; as it was given where there is no such file."""
        if os.path.lexists(path):
            return path
        on_disk = os.path.normpath(self.data_dir)
        for part in Path(os.path.relpath(path, self.data_dir)).parts:
            if on_disk not in self._names:
                entries = os.listdir(on_disk) if os.path.isdir(on_disk) else []  # noqa: PTH112, PTH208  # no pathlib here
                self._names[on_disk] = {composed(entry): entry for entry in entries}
            on_disk = f"{on_disk}{os.sep}{self._names[on_disk].get(composed(part), part)}"
        return on_disk
