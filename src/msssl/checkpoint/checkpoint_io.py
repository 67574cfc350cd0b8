"""Checkpoints of a trainer, written whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import TorchCheckpointIO
from typing_extensions import override

from msssl.checkpoint.files import PREVIOUS, write_file


class NotWrittenError(OSError):
    """A checkpoint could not be written; what was there before is as it was."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames: a kill or a full disk at any moment leaves a whole file.

    With `storage_options="keep"`, what was there becomes `previous.ckpt`. Paths with a scheme are Lightning's affair.

    Raises:
        NotWrittenError: names the file, and what the system says, such as a full disk.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path)
            return
        path = Path(path)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, checkpoint, keep=path.with_name(PREVIOUS) if storage_options == "keep" else None)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Names the checkpoint that is being written in what goes wrong."""
    try:
        yield
    except (OSError, RuntimeError) as raised:  # torch hides the first behind the second
        error: BaseException | None = raised
        while error is not None and not isinstance(error, OSError):
            error = error.__context__
        if error is None:
            raise
        kept = "; what was there before is as it was" if Path(path).exists() else ""
        raise NotWrittenError(f"{path} cannot be written: {error.strerror or error}{kept}") from error
