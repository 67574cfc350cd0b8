"""What a computation allocates and launches, on any device, and what the machine is called."""

import ctypes
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary


class Tensors(TorchDispatchMode):
    """Counts, inside a `with`, the tensors that operations make and the operations that are not mere views.

    Attributes:
        peak: bytes that were alive together, of those made inside.
        largest: bytes of the largest one.
        launches: operations that compute or copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.largest = self.launches = 0
        self._alive = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count."""
        out = func(*args, **(kwargs or {}))
        self.launches += not func.is_view
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._alive[storage] = storage.nbytes()
                self.largest = max(self.largest, storage.nbytes())
        self.peak = max(self.peak, sum(self._alive.values()))
        return out


def machine(device: str, threads: int) -> str:
    """Name of the processor that was measured."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.is_file() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {threads} thread(s)"


def keep_freed_memory() -> None:
    """Tell glibc not to give freed memory back: page faults would otherwise be half of the time, and vary."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((-3, 2**25), (-1, 2**31 - 1), (-2, 2**28)):  # mmap threshold, trim threshold, top pad
            libc.mallopt(option, value)
