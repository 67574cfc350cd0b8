"""The way to the fast path of the shipped configs: what each switch was to bring, and what it brings.

    python benchmarks/fast_path.py                                            # CPU, the demonstration: 6 minutes
    python benchmarks/fast_path.py --config cifar.yaml --device cuda          # also with bf16

Each row is `benchmarks/step.py` in a process of its own, with the switches of the rows before. Predicted: the step of
the first row, in proportion to the row's floor (the fused one from the compiled rows on).
"""

import json
import subprocess
import sys
import tempfile
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
    "views of 24 px instead of 32": [f"--data.views.augmentations={json.dumps(SMALL)}"],
}
COMPILED = "compiled backbone, channels last"


def main(
    config: str = "demo.yaml", device: str = "cpu", seconds: float = 10.0, out: str = "benchmarks/results/fast-path"
) -> None:
    """Measure, print the table and write it.

    Args:
        config: of `msssl fit`.
        device: cpu or cuda; bf16 is for cuda.
        seconds: for a whole step, and again for its parts, in each row.
        out: of the files, without `-<device>` and ending.
    """
    flags = [f"--config={config}", f"--device={device}", f"--seconds={seconds}", *EAGER]
    rows: list[dict[str, Any]] = []
    fused = False
    for name, switch in SWITCHES.items():
        if name == "bf16" and device != "cuda":
            continue
        flags += switch
        fused |= name == COMPILED
        found = measured(flags)
        floor = found["fused floor ms" if fused else "floor ms"]
        first = rows[0] if rows else {"ms": found["ms a step"], "floor": floor}
        row = {"name": name, "floor": floor, "predicted": first["ms"] * floor / first["floor"]}
        row |= {"ms": found["ms a step"], "views/s": found["views/s"], "MB": found["peak MB"]}
        rows.append(row)
        print(line(row), flush=True)  # noqa: T201
    head = [
        "| with, in addition | floor ms | predicted ms | measured ms | views/s | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    about = f"`benchmarks/fast_path.py --config {config}`, each row beside: {found['about']}"
    Path(f"{out}-{device}.md").write_text("\n".join([about, "", *head, *map(line, rows)]) + "\n")
    Path(f"{out}-{device}.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


def measured(flags: list[str]) -> dict[str, Any]:
    """What `step.py` finds with some flags."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/step"
        subprocess.run([sys.executable, STEP, *flags, f"--out={out}"], check=True, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(Path(f"{out}.json").read_text())
    return found


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [row["name"], *(f"{row[name]:,.1f}" for name in ("floor", "predicted", "ms"))]
    return "| " + " | ".join([*cells, f"{row['views/s']:,.0f}", f"{row['MB']:,.0f}"]) + " |"


if __name__ == "__main__":
    auto_cli(main)
