"""The machine that a benchmark runs on: its name, its rates, and what its memory must not do.

python benchmarks/machine.py cuda machine.json
"""

import ctypes
import json
import os
import platform
import re
import sys
from importlib.metadata import version
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


def main(device: str, path: str) -> None:
    """Write the machine's name, versions and rates as JSON."""
    from step import copy_rate, matrix_rate  # imports this file

    place = torch.device(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    packages = ("torch", "torchvision", "lightning", "kornia")
    found = {
        "machine": machine(device, torch.get_num_threads()),
        "versions": ", ".join(
            [*(f"{name} {version(name)}" for name in packages), f"Python {platform.python_version()}"]
        ),
        "copy": f"{copy_rate(place) / 1e9:,.0f} GB/s, read and written",
        "matrix product, bf16": f"{matrix_rate(place, torch.bfloat16) / 1e12:,.2f} TFLOP/s",
        "matrix product, float32 (TF32 on a GPU)": f"{matrix_rate(place, torch.float32) / 1e12:,.2f} TFLOP/s",
    }
    Path(path).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
