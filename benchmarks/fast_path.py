"""The way to the fast path of the shipped configs: what each switch was to bring, and what it brings.

    python benchmarks/fast_path.py                                            # CPU, the demonstration: 6 minutes
    python benchmarks/fast_path.py --fit_config cifar.yaml --device cuda          # also with bf16 and CUDA graphs

Each row is `benchmarks/step.py` in a process of its own, with the switches of the rows before. Predicted: the step of
the first row, in proportion to the row's floor (the fused one from the compiled rows on); each row measures its rates.
The recipe is `cifar`, for images of 32 px.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

STEP = Path(__file__).with_name("step.py")
EAGER = [
    "--data.views.augmentations=cifar",
    "--data.views.compile=false",
    "--model.compile=false",
    "--model.optimizer.fused=false",
    "--trainer.precision=32-true",
]
SMALL = [
    {"class_path": "msssl.views.RandomResizedCropFlip", "init_args": {"size": [24, 24]}},
    {
        "class_path": "msssl.views.ColorJitterGrayscale",
        "init_args": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "p_jitter": 0.8, "p_grayscale": 0.2},
    },
]
SWITCHES = {
    "eager, 32 bit": [],
    "fused optimizer": ["--model.optimizer.fused=true"],
    "compiled views": ["--data.views.compile=true"],
    "compiled backbone, channels last": ["--model.compile=true"],
    "bf16": ["--trainer.precision=bf16-mixed"],
    "cuDNN chooses by trial": ["--trainer.benchmark=true"],
    "CUDA graphs of what is compiled": ["TORCHINDUCTOR_CUDAGRAPHS=1"],  # a variable of the environment
    "views of 24 px instead of 32": [f"--data.views.augmentations={json.dumps(SMALL)}"],
}
COMPILED = "compiled backbone, channels last"
ON_CUDA = ("bf16", "cuDNN chooses by trial", "CUDA graphs of what is compiled")


def main(
    fit_config: str = "demo.yaml",
    device: str = "cpu",
    seconds: float = 8.0,
    repeats: int = 2,
    switches: Sequence[str] = tuple(SWITCHES),
    flags: Sequence[str] = (),
    out: str = "benchmarks/results/fast-path",
) -> None:
    """Measure, print the table and write it.

    Args:
        fit_config: of `msssl fit`.
        device: cpu or cuda, for which bf16 and graphs are.
        seconds: for a whole step, and again for its parts, in each row.
        repeats: of all rows, in turn; the fastest step of each counts, and its floor.
        switches: names of the rows.
        flags: more flags of `msssl fit`.
        out: of the files, without `-<device>` and ending.
    """
    names = [name for name in SWITCHES if name in switches and (name not in ON_CUDA or device == "cuda")]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(repeats):
        switched = [f"--config={fit_config}", *flags, f"--device={device}", f"--seconds={seconds}", *EAGER]
        for name in names:
            switched += SWITCHES[name]
            found[name].append(measured(switched))
            write(found, f"`benchmarks/fast_path.py --fit_config {fit_config} {' '.join(flags)}`", f"{out}-{device}")
    print(Path(f"{out}-{device}.md").read_text())  # noqa: T201


def write(found: dict[str, list[dict[str, Any]]], command: str, out: str) -> None:
    """The table of what was measured so far, in markdown and as JSON."""
    rows: list[dict[str, Any]] = []
    for name, measurements in found.items():
        if not measurements:
            continue
        best = min(measurements, key=lambda each: each["ms a step"])
        is_fused = list(SWITCHES).index(name) >= list(SWITCHES).index(COMPILED)
        floor = best["fused floor ms" if is_fused else "floor ms"]
        first = rows[0] if rows else {"ms": best["ms a step"], "floor": floor}
        row = {"name": name, "floor": floor, "predicted": first["ms"] * floor / first["floor"]}
        rows.append({**row, "ms": best["ms a step"], "views/s": best["views/s"], "MB": best["peak MB"]})
    head = [
        "| with, in addition | floor ms | predicted ms | measured ms | views/s | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    table = "\n".join([*head, *map(line, rows)])
    where = next(iter(found.values()))[-1]["about"].rpartition("--out=")[2].partition("; ")[2]  # without the flags
    about = f"{command}, views of the preset `cifar`, the fastest of the repeats; {where}"
    Path(f"{out}.md").write_text(f"{about}\n\n{table}\n")
    Path(f"{out}.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


def measured(switches: list[str]) -> dict[str, Any]:
    """What `step.py` finds with some flags and variables."""
    flags = [switch for switch in switches if switch.startswith("--")]
    variables = dict(switch.split("=", 1) for switch in switches if switch not in flags)
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/step"
        words = [sys.executable, STEP, *flags, f"--out={out}"]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=os.environ | variables)
        found: dict[str, Any] = json.loads(Path(f"{out}.json").read_text())
    return found


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [row["name"], *(f"{row[name]:,.1f}" for name in ("floor", "predicted", "ms"))]
    return "| " + " | ".join([*cells, f"{row['views/s']:,.0f}", f"{row['MB']:,.0f}"]) + " |"


if __name__ == "__main__":
    auto_cli(main)
