"""Everything that a GPU can tell about msssl, in one command for a machine that is at hand for a few minutes.

    python benchmarks/gpu.py --data DIR --minutes 8 --out benchmarks/results/gpu
    python benchmarks/gpu.py --data DIR --minutes 3 --stages step-k2,step-k8      # a second call
    python benchmarks/gpu.py --smoke --device cpu                                 # every stage in miniature

DIR has images in `{train,test}/<class>/*`, such as CIFAR-10. The stages run in the order of their worth, each in a
process of its own with its own time limit. After each stage `<out>/gpu.json` and `<out>/gpu.md` are written again, so
that whatever is cut short keeps all finished stages; a second call adds its stages to them. What a stage prints is in
`<out>/<stage>.log`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parent
RESERVE = 3.0  # seconds that are kept for writing the last results
MAX_ROWS = 40
FIT_CONFIG = "cifar.yaml"
SMALL = [  # flags that make a network and a batch small enough for a CPU
    "--model.backbone.class_path=msssl.ResNet",
    "--model.backbone.width=4",
    "--model.backbone.low_resolution=false",
    "--model.proj_dim=16",
    "--data.batch_size=16",
    "--data.num_workers=0",
]
Rows = list[tuple[str, str]]  # what was measured, and its value with its unit


@dataclass(frozen=True)
class Call:
    """What all stages of one call share."""

    data: str
    device: str
    smoke: bool
    out: Path
    deadline: float  # of `time.monotonic()`

    def fit(self, *flags: str) -> list[str]:
        """Flags of `msssl fit` for the shipped recipe of CIFAR-10 on the images of the folder."""
        return [f"--config={FIT_CONFIG}", *self.beside_config(*flags)]

    def beside_config(self, *flags: str) -> list[str]:
        """Those of `fit` without the config, for benchmarks that take it by an option of its own."""
        images = ["--data=msssl.ImageFolder", f"--data.data_dir={self.data}", "--data.image_size=32"]
        accelerator = f"--trainer.accelerator={'gpu' if self.device == 'cuda' else self.device}"
        return [*images, *(SMALL if self.smoke else []), accelerator, *flags]

    def script(self, name: str, *flags: str) -> list[str]:
        """Command line of one of the other benchmarks."""
        return [sys.executable, str(BENCHMARKS / name), *flags]


@dataclass(frozen=True)
class Stage:
    """One measurement.

    Attributes:
        seconds: its time limit.
        command: its command line.
        rows: reads what the command wrote, and makes rows of it.
    """

    seconds: float
    command: Callable[[Call], list[str]]
    rows: Callable[[Call], Rows]


def main() -> None:
    """Run the stages one after the other, and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="folder of the images; drawn ones for --smoke without it")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing runs any more")
    parser.add_argument("--out", default="benchmarks/results/gpu", help="folder of the results")
    parser.add_argument(
        "--stages", default="", help=f"with commas between them, of {', '.join(STAGES)}; by default all"
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--smoke", action="store_true", help="every stage in miniature, to see that it works")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running stage ends too
    run_stages(args.data, args.minutes, args.out, args.stages, args.device, args.smoke)


def run_stages(data: str, minutes: float, out: str, stages: str, device: str, smoke: bool) -> None:
    """Run the stages; see `main` for the arguments."""
    names = stages.split(",") if stages else list(STAGES)
    if unknown := [name for name in names if name not in STAGES]:
        raise SystemExit(f"no stage {unknown[0]}; there are {', '.join(STAGES)}")
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if smoke and not data:
        data = str(draw_images(folder / "images"))
    if not Path(data, "train").is_dir():
        raise SystemExit(f"--data {data or 'DIR'} has no folder train")
    call = Call(str(Path(data).resolve()), device, smoke, folder, time.monotonic() + 60 * minutes - RESERVE)
    for name in names:
        left = call.deadline - time.monotonic()
        limit = left if smoke else min(STAGES[name].seconds, left)  # a CPU takes as long as it takes
        result = run_stage(name, call, limit) if left > 5 else {"status": "not begun: the time was over", "rows": []}
        if result["rows"] or name not in read(folder):  # a second call replaces only what it measured
            write(folder, name, {**result, "device": device, "smoke": smoke, "date": str(date.today())})
        say(f"{name}: {result['status']}; {max(0, call.deadline - time.monotonic()):.0f} s left")
    say(table(read(folder)))


def run_stage(name: str, call: Call, limit: float) -> dict[str, Any]:
    """The status and the rows of a stage, whatever becomes of its process."""
    stage, log = STAGES[name], call.out / f"{name}.log"
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(stage.command(call), stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            kill(process)
    seconds = time.monotonic() - start
    try:
        rows = stage.rows(call)
    except (OSError, ValueError, KeyError, IndexError):
        rows = []
    if code == 0 and rows:
        return {"status": f"done in {seconds:.0f} s", "rows": rows}
    last = " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
    reason = f"cut after {seconds:.0f} s" if code is None else f"failed with exit code {code} after {seconds:.0f} s"
    return {"status": f"{reason}: {last[-400:]}", "rows": rows}


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def read(folder: Path) -> dict[str, Any]:
    """The results of all stages so far."""
    path = folder / "gpu.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return content


def write(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Add a stage to the results; the files are replaced as a whole, so that a kill leaves the ones before."""
    results = {**read(folder), name: result}
    for file, text in (("gpu.json", json.dumps(results, indent=1)), ("gpu.md", table(results))):
        growing = folder / f"{file}.tmp"
        growing.write_text(text + "\n")
        growing.replace(folder / file)


def table(results: dict[str, Any]) -> str:
    """All rows in markdown; where there are too many, the last of the longest stages are left to the JSON."""
    shown = {
        name: list(result["rows"]) or [("", result["status"].partition(":")[0])] for name, result in results.items()
    }
    while sum(map(len, shown.values())) > MAX_ROWS - 2:
        max(shown.values(), key=len).pop()
    lines = ["| stage | what | value |", "|---|---|---|"]
    lines += [f"| {name} | {what} | {value} |" for name, rows in shown.items() for what, value in rows]
    return "\n".join(lines)


def say(text: str) -> None:
    """Print now: the output is read while it runs."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


# The stages


def machine_command(call: Call) -> list[str]:
    """The rates of copies and matrix products, and the versions."""
    return call.script("machine.py", call.device, str(call.out / "machine.json"))


def machine_rows(call: Call) -> Rows:
    """What the machine is."""
    return list(load(call, "machine").items())


def correctness_command(call: Call) -> list[str]:
    """Losses in bf16, compiled against eager training, waits, and a resumed run."""
    return call.script("correctness.py", f"--device={call.device}", f"--out={call.out / 'correctness'}", *brief(call))


def correctness_rows(call: Call) -> Rows:
    """Differences and their bounds."""
    content = load(call, f"correctness-{call.device}")
    bounds = content["bounds"]
    return [
        (name, f"{value:.2g} ({'within' if value <= bounds[name] else 'ABOVE'} {bounds[name]:g})")
        for name, value in content["found"].items()
    ]


def brief(call: Call) -> list[str]:
    """The flag with which a benchmark shows only that it works."""
    return ["--smoke=true"] if call.smoke else []


def step(flag: str = "", *, name: str, seconds: float = 45.0, whole: bool = False, small_flag: str = "") -> Stage:
    """A step of the recipe with a flag, by `step.py`; `whole`: with all of its parts; `small_flag`: in miniature."""

    def command(call: Call) -> list[str]:
        measured = "1" if call.smoke else "6"
        out = f"--out={call.out / name}"
        given = (small_flag or flag) if call.smoke else flag
        return call.script(
            "step.py", *call.fit(*filter(None, [given])), f"--device={call.device}", f"--seconds={measured}", out
        )

    def rows(call: Call) -> Rows:
        found = load(call, name)
        first = [
            ("step", f"{found['ms a step']:.1f} ms, {found['views/s']:,.0f} views/s"),
            ("floor of the step", f"{found['floor ms']:.1f} ms; fused {found['fused floor ms']:.1f} ms"),
            ("peak memory", f"{found['peak MB']:,.0f} MB"),
        ]
        parts = [name for name in found if name.endswith(" ms") and "floor" not in name]
        more = [
            ("parts", ", ".join(f"{part.removesuffix(' ms')} {found[part]:.2f}" for part in parts) + " ms"),
            ("an epoch, training alone", f"{found['s an epoch']:.1f} s"),
        ]
        return [*first, *more] if whole else first

    return Stage(seconds, command, rows)


def boundary_command(call: Call) -> list[str]:
    """What lies between two epochs."""
    few = "--trainer.limit_train_batches=5"
    return call.script("boundary.py", *call.fit(few), "--out", str(call.out / "boundary"))


def boundary_rows(call: Call) -> Rows:
    """The time between two epochs, and what takes most of it."""
    seconds = load(call, "boundary")["seconds"]
    totals = [(name, f"{1e3 * seconds.pop(name):,.0f} ms") for name in list(seconds)[:3]]
    hooks = sorted(seconds.items(), key=lambda item: -item[1])[:3]
    return [*totals, *((name, f"{1e3 * value:,.0f} ms") for name, value in hooks)]


def run_command(call: Call) -> list[str]:
    """A run with as many epochs as its time allows, and its probe."""
    return speedrun(call, "run", (STAGES["run"].seconds - 125) / 60)


def speedrun(call: Call, name: str, minutes: float, *flags: str) -> list[str]:
    """Command line of a run that is trained for so many minutes."""
    more = json.dumps([*(SMALL if call.smoke else []), *flags])
    length = "--n_steps=2" if call.smoke else f"--minutes={minutes}"
    given = [call.data, f"--device={call.device}", length, f"--flags={more}"]
    return call.script("speedrun.py", *given, f"--root={call.out / 'runs'}", f"--out={call.out / name}")


def run_rows(call: Call) -> Rows:
    """Its accuracy and its cost."""
    content = load(call, f"run-{call.device}")
    (row,) = content["rows"]
    low, high = row["interval"]
    return [
        ("training", f"{row['minutes']:.2f} minutes, {row['epochs']} epochs, {row['steps']:,} steps"),
        ("linear probe, test", f"{row['linear']:.4f} ({low:.4f} to {high:.4f}, {row['n']:,} images)"),
        ("MLP and kNN, test", f"{row['mlp']:.4f} and {row['knn']:.4f}"),
    ]


def switches_command(call: Call) -> list[str]:
    """One switch of the fast path after the other."""
    few = ["--seconds=0.5", '--switches=["eager, 32 bit"]'] if call.smoke else ["--seconds=3"]
    given = [f"--fit_config={FIT_CONFIG}", f"--flags={json.dumps(call.beside_config())}"]
    out = f"--out={call.out / 'switches'}"
    return call.script("fast_path.py", *given, f"--device={call.device}", "--repeats=1", *few, out)


def switches_rows(call: Call) -> Rows:
    """The step with each."""
    rows = load(call, f"switches-{call.device}")["rows"]
    return [(f"+ {row['name']}", f"{row['ms']:.1f} ms, {row['MB']:,.0f} MB") for row in rows]


def beside_command(call: Call) -> list[str]:
    """Steps of lightly and of plain PyTorch on the same images, in the same process."""
    large = ["--width=64", "--n_images=256", "--num_workers=16", "--seconds=5"]
    small = ["--width=4", "--n_images=8", "--num_workers=0", "--seconds=0.5", '--only=["msssl"]']
    fixed = [f"--device={call.device}", "--low_resolution=[true]", "--n_views=[4]", "--repeats=1"]
    return call.script("side_by_side.py", *fixed, *(small if call.smoke else large), f"--out={call.out / 'beside'}")


def beside_rows(call: Call) -> Rows:
    """Images per second of each."""
    rows = load(call, "beside")["rows"]
    return [(row["rival"], f"{row['images/s']:,.0f} images/s, {row['x lightly']:.2f} x lightly") for row in rows]


def memory_command(call: Call) -> list[str]:
    """Memory of a step whose views pass the network a few at a time."""
    size = ["--width=4", "--n=8", "--repeats=1"] if call.smoke else ["--width=64", "--n=256"]
    return call.script("chunk_views.py", f"--device={call.device}", *size, f"--out={call.out / 'memory'}")


def memory_rows(call: Call) -> Rows:
    """Megabytes and seconds for each."""
    rows = load(call, "memory")["rows"]
    return [
        (f"K = {row['K']}, chunk_views {row['chunk_views']}", f"{row['MB']:,.0f} MB, {row['s']:.3f} s") for row in rows
    ]


def views_command(call: Call) -> list[str]:
    """Runs with 2, 4 and 8 views of all images that see equally many views."""
    epochs = ["--trainer.max_epochs=4", "--data.fraction=0.2"] if call.smoke else ["--trainer.max_epochs=16"]
    flags = json.dumps(call.beside_config(*epochs))
    given = [f"--fit_config={FIT_CONFIG}", "--share=false", f"--flags={flags}", f"--root={call.out / 'runs'}"]
    given += ["--n_views=[2]"] if call.smoke else []
    return call.script("accuracy.py", *given, f"--out={call.out / 'views'}")


def views_rows(call: Call) -> Rows:
    """Accuracy of each."""
    runs = load(call, f"views-{call.device}")["runs"]
    return [
        (f"K = {run['K']}, {run['epochs']} epochs", f"linear {run['linear']:.4f}, {run['minutes']:.2f} minutes")
        for run in runs
    ]


def load(call: Call, name: str) -> Any:
    """JSON that a stage of this call has written."""
    return json.loads((call.out / f"{name}.json").read_text())


STAGES = {
    "machine": Stage(40, machine_command, machine_rows),
    "correctness": Stage(120, correctness_command, correctness_rows),
    "step": step(name="step", seconds=75, whole=True),
    "run": Stage(230, run_command, run_rows),
    "boundary": Stage(60, boundary_command, boundary_rows),
    "step-k2": step("--data.views.n_views=2", name="step-k2"),
    "step-k8": step("--data.views.n_views=8", name="step-k8"),
    "step-resnet50": step(
        "--model.backbone=resnet50", name="step-resnet50", seconds=75, small_flag="--model.backbone.depth=50"
    ),
    "switches": Stage(200, switches_command, switches_rows),
    "beside": Stage(90, beside_command, beside_rows),
    "memory": Stage(60, memory_command, memory_rows),
    "views": Stage(400, views_command, views_rows),
}


def draw_images(folder: Path) -> Path:
    """Images of two colours with noise, for a run in miniature."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for split, n in (("train", 60), ("test", 10)):
        for label, colour in enumerate(((90, 40, 40), (40, 40, 90))):
            place = folder / split / str(label)
            place.mkdir(parents=True, exist_ok=True)
            for i in range(n):
                pixels = (np.array(colour) + draw.integers(0, 120, (32, 32, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    return folder


if __name__ == "__main__":
    main()
