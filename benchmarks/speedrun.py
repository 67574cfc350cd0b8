"""The speedrun: minutes to a linear probe of 90 % on CIFAR-10 without labels, on one GPU.

    python benchmarks/speedrun.py DIR --minutes 3 --seeds '[0, 1, 2, 3, 4]'          # GPU class
    python benchmarks/speedrun.py DIR --minutes 10 --device cpu --seeds '[0, 1, 2]'  # accuracy after 10 minutes

DIR has CIFAR-10's images in `{train,test}/<class>/*`. The clock starts with the process of `msssl fit` and stops when
it ends: reading the images counts, and so do validations and checkpoints. Compilation does not: a first, short run
fills the compiler's cache, and its time is printed. The pace is measured before, so that the schedule of the learning
rate ends where the minutes do. The probe is that of `msssl probe`, on test images that nothing was chosen by.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jsonargparse import auto_cli
from machine import machine

from msssl.metrics import mean_interval

SLACK = 0.96  # share of the minutes that is planned, since paces vary
VALIDATIONS = 4  # in a run


def main(
    data: str,
    minutes: float = 3.0,
    config: str = "cifar.yaml",
    seeds: Sequence[int] = (0,),
    device: str = "cuda",
    flags: Sequence[str] = (),
    root: str = "runs/speedrun",
    out: str = "benchmarks/results/speedrun",
) -> None:
    """Train and probe each seed, print the table and write it.

    Args:
        data: folder of the images.
        minutes: of each run.
        config: of `msssl fit`; its data are replaced by the folder.
        seeds: one run for each.
        device: cuda or cpu.
        flags: more flags of `msssl fit`.
        root: folder of the runs.
        out: of the files, without device and ending.
    """
    accelerator = "gpu" if device == "cuda" else device
    folder = ["--data=msssl.ImageFolder", f"--data.data_dir={Path(data).resolve()}", "--data.image_size=32"]
    fit = [f"--config={config}", *folder, f"--trainer.accelerator={accelerator}", *flags]
    first, fixed, step, steps_per_epoch = measure(fit, device)
    n_steps = max(1, int((60 * minutes * SLACK - fixed) / step))
    epochs = -(-n_steps // steps_per_epoch)
    length = [f"--trainer.max_steps={n_steps}", f"--trainer.max_epochs={epochs}"]
    length.append(f"--trainer.check_val_every_n_epoch={max(1, epochs // VALIDATIONS)}")
    print(  # noqa: T201
        f"first run, with compilation: {first:.0f} s; start and end of a run: {fixed:.0f} s; "
        f"a step: {1e3 * step:.1f} ms; so {n_steps} steps, {n_steps / steps_per_epoch:.1f} epochs",
        flush=True,
    )
    rows = []
    for seed in seeds:
        rows.append({"seed": seed, **run([*fit, *length, f"--seed_everything={seed}"], Path(root))})
        print(f"seed {seed}: {rows[-1]['linear']:.4f} in {rows[-1]['minutes']:.2f} minutes", flush=True)  # noqa: T201
    write(rows, f"{config} {' '.join(flags)}".strip(), first, device, out)


def measure(fit: list[str], device: str) -> tuple[float, float, float, int]:
    """Seconds of a first run, of what a run needs beside its steps, and of a step; and the steps of an epoch."""
    few = 2
    with TemporaryDirectory() as folder:
        short = [*fit, f"--trainer.default_root_dir={folder}", f"--trainer.max_steps={few}"]
        first, second = (timed(["-m", "msssl", "fit", *short]) for _ in range(2))
        path = Path(folder, "step")
        script = str(Path(__file__).with_name("step.py"))
        timed([script, *fit, f"--device={device}", "--seconds=8", f"--out={path}"])
        found = json.loads(path.with_suffix(".json").read_text())
    step = found["ms a step"] / 1e3
    return first, second - few * step, step, round(found["s an epoch"] / step)


def run(args: list[str], root: Path) -> dict[str, Any]:
    """Train and probe once: minutes and accuracies."""
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=root) as folder:
        seconds = timed(["-m", "msssl", "fit", *args, f"--trainer.default_root_dir={folder}"])
        (checkpoint,) = Path(folder).glob("*/last.ckpt")
        timed(["-m", "msssl", "probe", "--ckpt_path", str(checkpoint), "--baselines=false"])
        report = json.loads(checkpoint.with_name("probe.json").read_text())
    row, split = report["rows"][-1], report["reported_on"]
    return {
        "minutes": seconds / 60,
        "epochs": report["run"]["epochs"],
        "steps": report["run"]["steps"],
        "linear": row[f"{split}_top1"],
        "interval": row[f"{split}_interval"],
        "mlp": row[f"{split}_mlp"],
        "knn": row[f"{split}_knn"],
        "protocol": report["protocol"],
        "data": report["data_id"],
        "n": report["images"][split],
    }


def timed(words: list[str]) -> float:
    """Seconds of a Python command line, whose output is shown if it fails."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words[:3])} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return time.monotonic() - start


def write(rows: list[dict[str, Any]], settings: str, first: float, device: str, out: str) -> None:
    """The table, in markdown, and all numbers as JSON."""
    lines = ["| seed | minutes | epochs | steps | linear probe, test | MLP | kNN |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {row['seed']} | {row['minutes']:.2f} | {row['epochs']} | {row['steps']} | {row['linear']:.4f} | "
        f"{row['mlp']:.4f} | {row['knn']:.4f} |"
        for row in rows
    ]
    mean, low, high = mean_interval([row["linear"] for row in rows])
    interval = f", 95 % interval over seeds {low:.4f} to {high:.4f}" if len(rows) > 1 else ""
    about = (
        f"Mean {mean:.4f}{interval}. `{settings}`; {machine(device, torch.get_num_threads())}; "
        f"torch {torch.__version__}; {date.today()}; `benchmarks/speedrun.py`. The clock is that of the whole "
        f"`msssl fit`; a first run with compilation took {first:.0f} s and is not counted. "
        f"{rows[0]['n']:,} test images, copy {rows[0]['data']}: {rows[0]['protocol']}."
    )
    print(*lines, "", about, sep="\n")  # noqa: T201
    path = Path(f"{out}-{device}.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, "", about]) + "\n")
    path.with_suffix(".json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    auto_cli(main)
