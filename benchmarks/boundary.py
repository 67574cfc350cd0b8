"""What lies between two epochs: validation, monitors, pictures, checkpoints, in the run that `msssl fit` sets up.

    python benchmarks/boundary.py --config cifar.yaml --out benchmarks/results/boundary-cuda
    python benchmarks/boundary.py --config demo.yaml --trainer.limit_train_batches 5

It takes the flags of `msssl fit` and trains for a few epochs with them. The time between the last batch of an epoch,
computed, and the first batch of the next is divided among the hooks that ran in it; a hook's time includes those that
it calls. Each epoch is validated and has its checkpoint, whatever the config says. The first epoch's end does not
count, since it imports, compiles and draws the pictures, which later validations have at every tenth only.
"""

import json
import sys
import tempfile
from collections import defaultdict
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from lightning.pytorch.profilers import Profiler
from machine import machine

EPOCHS = 4
STEP, VALIDATION = "run_training_batch", ("on_validation_epoch_start", "on_validation_epoch_end")


class Boundary(Profiler):
    """Records what happens between two epochs.

    Args:
        path: JSON file that is written at the end of the run.

    Attributes:
        boundaries: for each time between two epochs, the seconds of each action, and of `total` and `validation`.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self.boundaries: list[dict[str, float]] = []
        self._began: dict[str, float] = {}
        self._actions: dict[str, float] = defaultdict(float)
        self._since: float | None = None  # when the last batch of the epoch was computed

    def start(self, action_name: str) -> None:
        """Called by Lightning before each of its actions."""
        now = perf_counter()
        if action_name == STEP:
            if self._since is not None and any(name.endswith("on_train_epoch_end") for name in self._actions):
                self.boundaries.append({"total": now - self._since, **self._actions})
            self._since, self._actions = None, defaultdict(float)
        elif self._since is None and action_name.endswith(("on_validation_start", "on_train_epoch_end")):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._since = now = perf_counter()
        if action_name.endswith(VALIDATION[1]) and "validation" in self._began:
            self._actions["validation"] += now - self._began.pop("validation")
        self._began[action_name] = now

    def stop(self, action_name: str) -> None:
        """Called by Lightning after each of its actions."""
        now = perf_counter()
        began = self._began.pop(action_name, 0.0)
        if self._since is not None and began >= self._since:
            owner, _, rest = action_name.partition("{")
            self._actions[owner + rest.rpartition("}")[2]] += now - began
        if action_name.endswith(VALIDATION[0]):
            self._began["validation"] = now

    def summary(self) -> str:
        """Nothing: the numbers are in the file."""
        return ""

    def teardown(self, stage: str | None) -> None:
        """Write the file; Lightning calls this again when the object is deleted."""
        if self.path.parent.is_dir():
            self.path.write_text(json.dumps(self.boundaries, indent=1) + "\n")


def main() -> None:
    """Run, print the table and write it beside its numbers."""
    from msssl.cli.lightning_cli import run

    args = sys.argv[1:]
    out = args.pop(args.index("--out") + 1) if "--out" in args else None
    args = [arg for arg in args if arg != "--out"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "boundary.json")
        profiler = json.dumps({"class_path": "boundary.Boundary", "init_args": {"path": str(path)}})
        flags = [f"--trainer.default_root_dir={folder}", f"--trainer.profiler={profiler}"]
        flags += ["--trainer.check_val_every_n_epoch=1", "--last_checkpoint.every_n_epochs=1"]
        sys.argv[1:] = ["fit", *args, f"--trainer.max_epochs={EPOCHS}", *flags, "--trainer.enable_progress_bar=false"]
        run(sys.argv[1:])
        boundaries = json.loads(path.read_text())[1:]
    actions = sorted({name for boundary in boundaries for name in boundary})
    seconds = {name: median(boundary.get(name, 0.0) for boundary in boundaries) for name in actions}
    total, validation = seconds.pop("total"), seconds.pop("validation", 0.0)
    hooks = sorted(seconds.items(), key=lambda item: -item[1])
    found = {
        "between epochs": total,
        "validation batches": validation,
        "between epochs, validation apart": total - validation,
    }
    lines = ["| | ms |", "|---|---|"]
    lines += [f"| {name} | {1e3 * value:,.1f} |" for name, value in found.items()]
    lines += [f"| {name} | {1e3 * value:,.1f} |" for name, value in hooks if value > 0.01 * total]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    about = (
        f"`benchmarks/boundary.py {' '.join(args)}`, median of {len(boundaries)}; "
        f"{machine(device, torch.get_num_threads())}; torch {torch.__version__}; {date.today()}"
    )
    sys.stdout.write("\n".join(lines) + "\n")
    if out:
        Path(f"{out}.md").write_text("\n".join([about, "", *lines]) + "\n")
        Path(f"{out}.json").write_text(
            json.dumps({"about": about, "seconds": {**found, **dict(hooks)}}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
