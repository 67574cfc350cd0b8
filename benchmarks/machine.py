"""The machine that a benchmark runs on: its name, its rates, and what its memory must not do.

python benchmarks/machine.py cuda machine.json
"""

import ctypes
import json
import os
import platform
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

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


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy larger than any cache."""
    x = torch.empty(2**28 if device.type == "cpu" else 2**30, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    return 2 * len(x) / fastest(lambda: y.copy_(x), device)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of a large matrix product; on a GPU by TF32 where convolutions may take it."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    n = 1024 if device.type == "cpu" else 8192
    x = torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / fastest(lambda: x @ x, device)


def fastest(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of a few runs."""
    times = []
    for _ in range(8):
        start = perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter() - start)
    return min(times)


def main(device: str, path: str) -> None:
    """Write the machine's name, versions and rates as JSON."""
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
