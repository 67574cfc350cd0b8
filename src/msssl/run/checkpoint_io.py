"""Checkpoints of a trainer, written whole or not at all."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import TorchCheckpointIO
from typing_extensions import override

from msssl.run.files import PREVIOUS, write_file


class AtomicCheckpointIO(TorchCheckpointIO):
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
        write_file(path, checkpoint, keep=path.with_name(PREVIOUS) if storage_options == "keep" else None)
