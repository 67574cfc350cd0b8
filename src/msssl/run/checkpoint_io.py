"""Has Lightning write each checkpoint completely or not at all."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import TorchCheckpointIO
from typing_extensions import override

from msssl.run.files import PREVIOUS, write_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file and renames it, so that a kill or a full disk never leaves a part of one.

    With `storage_options="keep"`, an earlier file of this name is kept as `previous.ckpt`. Paths with a scheme, such as
    `s3://`, are left to Lightning.

    Raises:
        NotWrittenError: the file cannot be written; the message holds the reason, such as a full disk.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path)
            return
        path = Path(path)
        write_file(path, checkpoint, keep=path.with_name(PREVIOUS) if storage_options == "keep" else None)
