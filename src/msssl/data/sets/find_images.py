"""Finds the image files below a folder by their extensions, without hidden files and folders of runs."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from msssl.data.pixels.arrays.read import kind_of

# Pillow recognises these, but gives no pixels: it needs a reader of the user's own, Windows or Ghostscript for them.
_WITHOUT_PIXELS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
_OPENED_AS_JPEG = ("MPO",)
_NOT_THE_USERS = {  # in lower case: what macOS, Windows, Synology, QNAP and file systems leave in folders
    *("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "lost+found"),
}
_RUN = re.compile(r"\d{8}-\d{6}(-\d+)?|slurm-.+")  # the names that `msssl fit` gives to the folders of runs
ARRAY_EXTENSIONS = {".npy", ".npz", ".dcm", ".dicom", ".ima"}
N_KINDS = 8  # of files that are left out, named in a message


def image_extensions() -> set[str]:
    """Endings of the files that Pillow reads, those of plugins that have been registered by now included.

    >>> {".jpg", ".jfif", ".jp2", ".mpo", ".tif"} <= image_extensions()
    True
    >>> {".pdf", ".mpg", ".h5", ".eps"} & image_extensions()
    set()
    """
    kinds = Image.registered_extensions()  # which also fills Image.OPEN
    readable = {*Image.OPEN, *_OPENED_AS_JPEG}.difference(_WITHOUT_PIXELS)
    return {extension for extension, kind in kinds.items() if kind in readable}


def is_ignored(name: str) -> bool:
    """Whether a file or folder is hidden, or was left by an operating system or a storage device.

    >>> [is_ignored(name) for name in ("._x.jpg", "@eaDir", "Thumbs.db", "eagle")]
    [True, True, True, False]
    """
    return name.startswith(".") or name.lower() in _NOT_THE_USERS


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a run of msssl, whose pictures are no images to train on; it may just have begun."""
    return bool(_RUN.fullmatch(Path(folder).name)) and (
        Path(folder, "config.yaml").is_file() or not any(Path(folder).iterdir())
    )


def extension_of(name: str) -> str:
    """What a name or path ends with, in lower case and with its dot; empty for none."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  # a third of pathlib's time


def images_among(names: Iterable[str]) -> list[str]:
    """The names, of files or folders, that end like those of images, but for ignored ones."""
    extensions = image_extensions() | ARRAY_EXTENSIONS
    return [name for name in names if extension_of(name) in extensions and not is_ignored(name)]


def list_images(folder: str | Path) -> tuple[list[str], Counter[str]]:
    """Paths of the images below a folder, sorted, and how many other files there are of each extension.

    Links to folders are followed, each folder once. A folder and a dead link that are named like an image count as
    images, which cannot be read.

    Raises:
        OSError: a folder that cannot be listed.
    """
    paths: list[str] = []
    others: Counter[str] = Counter()
    start = Path(folder)
    seen = {_identity(parent) for parent in (*start.absolute().parents, *start.resolve().parents)}  # where loops lead
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        identity = _identity(root)
        if identity in seen or is_run(root):
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not is_ignored(name))
        images = images_among(files)
        images += [name for name in set(files).difference(images) if _is_bare_dicom(root, name)]
        paths += [f"{root}{os.sep}{name}" for name in (*images, *images_among(folders))]
        others.update(extension_of(name) for name in set(files).difference(images) if not is_ignored(name))
    return sorted(paths), others


def describe(others: Counter[str]) -> str:
    """Numbers of files by their extension.

    >>> describe(Counter({".dcm": 12, "": 1, ".txt": 3}))
    '12 .dcm, 3 .txt, 1 without an extension'
    """
    kinds = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{number} {extension or 'without an extension'}" for extension, number in kinds[:N_KINDS]]
    rest = sum(number for _, number in kinds[N_KINDS:])
    return ", ".join([*named, *([f"{rest} others"] if rest else [])])


def _is_bare_dicom(root: str, name: str) -> bool:
    """Whether a file without an extension is DICOM, as archives of hospitals name them."""
    extension = extension_of(name)
    bare = not extension or extension[1:].isdecimal()
    return bare and not is_ignored(name) and kind_of(f"{root}{os.sep}{name}") == "dicom"


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116  # half the time of pathlib's
    return status.st_dev, status.st_ino


def _raise(error: OSError) -> None:
    raise error
