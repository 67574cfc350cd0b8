"""Checks that a folder holds exactly the image files that a study names, by their relative paths and sizes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from msssl.data.sets.find_images import list_images
from msssl.errors import UserError
from msssl.wording import counted


@dataclass(frozen=True)
class StudyFolder:
    """What the folder of a study must hold.

    Attributes:
        name: what the images are, for messages.
        files: the number of image files.
        sha256: `content_hash` of the folder.
    """

    name: str
    files: int
    sha256: str

    def check(self, folder: str | Path) -> None:
        """Raise ValueError unless the folder holds exactly these files, by their names and sizes."""
        if not Path(folder).is_dir():
            raise UserError(f"data_dir {folder} is not a folder; the study needs {self.name}")
        n_files, content = content_hash(folder)
        if n_files != self.files:
            there = counted(n_files, "image")
            raise UserError(f"data_dir {folder} holds {there}, not the {self.files:,} of {self.name}")
        if content != self.sha256:
            raise UserError(
                f"data_dir {folder} holds {n_files:,} images, but their names or sizes are not those of {self.name}: "
                f"their hash is {content}, expected {self.sha256}"
            )


def content_hash(folder: str | Path) -> tuple[int, str]:
    """The number of image files below a folder, and a hash of their relative paths and sizes in bytes."""
    paths, _ = list_images(folder)
    content = hashlib.sha256()
    for name, path in sorted((Path(path).relative_to(folder).as_posix(), path) for path in paths):
        content.update(f"{name} {Path(path).stat().st_size}\n".encode())
    return len(paths), content.hexdigest()[:16]
