"""The speedrun: minutes to a linear probe of 90 % on CIFAR-10 without labels, on one GPU.

    python benchmarks/speedrun.py DIR --minutes 3 --seeds '[0, 1, 2, 3, 4]'          # GPU class
    python benchmarks/speedrun.py DIR --minutes 10 --device cpu --seeds '[0, 1, 2]'  # accuracy after 10 minutes

DIR has CIFAR-10's images in `{train,test}/<class>/*`. The clock is that of the whole process of `msssl fit`: imports,
reading the images and checkpoints count. Compilation does not: a first, short run fills the compiler's cache, and its
time is printed. The pace is measured before, so that the schedule of the learning rate ends where the minutes do. The
probe is that of `msssl probe`, on test images that nothing was chosen by.

On a GPU a minute is one of the clock on the wall. On a CPU it is two minutes of processor time, as two cores have in a
minute, so that other work on the machine does not count: a run has one thread and lasts up to twice as long.
"""

import json
import os
import resource
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

CORES = 2  # of the CPU class
SLACK = 0.95  # share of the minutes that is planned, since paces vary
FEW, MORE = 20, 40  # steps of the short runs
IN_EPOCH = 20  # steps of their epochs at most, so that what changes from epoch to epoch is measured too
MEASURED = 0.05  # share of the minutes that the steps of a short run take, so that noise does not count


def main(
    data: str,
    minutes: float = 3.0,
    fit_config: str = "cifar.yaml",
    seeds: Sequence[int] = (0,),
    device: str = "cuda",
    flags: Sequence[str] = (),
    n_steps: int | None = None,
    root: str = "runs/speedrun",
    out: str = "benchmarks/results/speedrun",
) -> None:
    """Train and probe each seed, print the table and write it.

    Args:
        data: folder of the images.
        minutes: of each run.
        fit_config: of `msssl fit`; its data are replaced by the folder.
        seeds: one run for each.
        device: cuda or cpu.
        flags: more flags of `msssl fit`.
        n_steps: of each run, instead of as many as the minutes have time for; nothing is measured before then.
        root: folder of the runs.
        out: of the files, without device and ending.
    """
    accelerator = "gpu" if device == "cuda" else device
    folder = ["--data=msssl.ImageFolder", f"--data.data_dir={Path(data).resolve()}", "--data.image_size=32"]
    fit = [f"--config={fit_config}", *folder, f"--trainer.accelerator={accelerator}", *flags]
    fit += ["--trainer.limit_val_batches=0"]  # nothing is chosen in a run
    if n_steps is None:
        first, fixed, step = measure(fit, device, 60 * minutes * MEASURED)
        n_steps = max(1, int((60 * minutes * SLACK - fixed) / step))
        print(  # noqa: T201
            f"first run, with compilation: {first:.0f} s; start and end of a run: {fixed:.0f} s; "
            f"a step: {1e3 * step:.1f} ms; so {n_steps} steps",
            flush=True,
        )
        compilation = f"; a first run with compilation took {first:.0f} s and is not counted"
    else:
        compilation = "; compilation may be part of it"
    settings = " ".join([fit_config, *flags, f"for {minutes:g} minutes"])
    for seed in seeds:
        row = {"seed": seed, **run([*fit, *steps(n_steps), f"--seed_everything={seed}"], Path(root), device)}
        print(f"seed {seed}: {row['linear']:.4f} in {row['minutes']:.2f} minutes", flush=True)  # noqa: T201
        write(row, settings, compilation, device, out)


def steps(n_steps: int) -> list[str]:
    """Flags of a run of so many steps."""
    return [f"--trainer.max_steps={n_steps}", "--trainer.max_epochs=-1"]


def measure(fit: list[str], device: str, enough: float) -> tuple[float, float, float]:
    """Seconds of a first run, of what a run needs beside its steps, and of a step."""
    with TemporaryDirectory() as folder:

        def of(n_steps: int) -> float:
            length = [
                *steps(n_steps),
                f"--trainer.limit_train_batches={IN_EPOCH}",
                "--last_checkpoint.every_n_epochs=1000",
            ]
            return seconds_of(["fit", *fit, *length, f"--trainer.default_root_dir={folder}"], device)

        first, short, n_steps = of(FEW), of(FEW), MORE
        longer = of(n_steps)
        if (seconds := longer - short) < enough:
            n_steps = round(n_steps * min(100, enough / max(seconds, 0.01)))
            longer = of(n_steps)
    step = max(1e-4, (longer - short) / (n_steps - FEW))
    return first, short - FEW * step, step


def run(args: list[str], root: Path, device: str) -> dict[str, Any]:
    """Train and probe once: minutes and accuracies."""
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=root) as folder:
        seconds = seconds_of(["fit", *args, f"--trainer.default_root_dir={folder}"], device)
        (checkpoint,) = Path(folder).glob("*/last.ckpt")
        seconds_of(["probe", "--ckpt_path", str(checkpoint), "--baselines=false"], device)
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


def seconds_of(words: list[str], device: str) -> float:
    """Seconds that an `msssl` command takes; its output is shown if it fails."""
    on_cpu = device == "cpu"
    threads = {"OMP_NUM_THREADS": "1"} if on_cpu else {}  # more would wait for each other in processor time
    start = seconds_now(on_cpu)
    command = [sys.executable, "-m", "msssl", *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads})
    if done.returncode:
        sys.exit(f"msssl {' '.join(words[:3])} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return seconds_now(on_cpu) - start


def seconds_now(of_processor: bool) -> float:
    """Of the clock on the wall; or of processor time of all commands so far, divided by the cores."""
    if not of_processor:
        return time.monotonic()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) / CORES


def write(row: dict[str, Any], settings: str, compilation: str, device: str, out: str) -> None:
    """The table, in markdown, and all numbers as JSON; seeds that were written there with these settings stay."""
    path = Path(f"{out}-{device}.json")
    before = json.loads(path.read_text()) if path.is_file() else {}
    rows = [other for other in before.get("rows", []) if other["seed"] != row["seed"]]
    rows = sorted([*(rows if before.get("settings") == settings else []), row], key=lambda row: row["seed"])
    lines = ["| seed | minutes | epochs | steps | linear probe, test | MLP | kNN |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {row['seed']} | {row['minutes']:.2f} | {row['epochs']} | {row['steps']} | {row['linear']:.4f} | "
        f"{row['mlp']:.4f} | {row['knn']:.4f} |"
        for row in rows
    ]
    mean, low, high = mean_interval([row["linear"] for row in rows])
    interval = f", 95 % interval over seeds {low:.4f} to {high:.4f}" if len(rows) > 3 else ""  # no less says something
    clock = f", in processor time of {CORES} cores" if device == "cpu" else ""
    about = (
        f"Mean {mean:.4f}{interval}. `{settings}`; {machine(device, 1)}; torch {torch.__version__}; {date.today()}; "
        f"`benchmarks/speedrun.py`. The clock is that of the whole `msssl fit`{clock}{compilation}. "
        f"{row['n']:,} test images, copy {row['data']}: {row['protocol']}."
    )
    print(*lines, "", about, sep="\n")  # noqa: T201
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text("\n".join([*lines, "", about]) + "\n")
    path.write_text(json.dumps({"settings": settings, "about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    auto_cli(main)
