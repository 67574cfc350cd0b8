"""The machine that a benchmark runs on: its name, and what its memory must not do."""

import ctypes
import os
import platform
import re
from pathlib import Path

import torch


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
