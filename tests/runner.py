"""Runs command lines through `runs.py`, and reads what they leave."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import torch
from runs import CONFIG, NET
from torch.testing import assert_close

EXACT = {"rtol": 0, "atol": 0, "equal_nan": True}
EVERY_STEP = "--last_checkpoint.every_n_train_steps=1"


class Runner:
    """Runs command lines in folders of their own."""

    def __init__(self, root):
        self.root = root
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("runs.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.finished = {}

    def folder(self, name):
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        (folder / "net.py").write_text(NET)
        (folder / "run.yaml").write_text(CONFIG)
        return folder

    def __call__(self, folder, *args, point=(None, 0), ranks=1, env=None):
        """Exit code of a command line, the same on all ranks; negative for the signal that killed it."""
        self.process.stdin.write(json.dumps([str(folder), list(map(str, args)), point, ranks, env or {}]) + "\n")
        self.process.stdin.flush()
        codes = json.loads(self.process.stdout.readline())
        if codes[0] < 0:
            return codes[0]  # the others die of it, by one signal or another
        assert len(set(codes)) == 1, (codes, (folder / "out.txt").read_text())
        return codes[0]

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def undisturbed(self, *options, ranks=1):
        if (options, ranks) not in self.finished:
            folder = self.folder(f"undisturbed{len(self.finished)}")
            assert self(folder, "fit", "--config", "run.yaml", *options, ranks=ranks) == 0, output(folder)
            self.finished[options, ranks] = run_of(folder)
        return self.finished[options, ranks]


def run_of(folder):
    (found,) = (folder / "runs").iterdir()
    return found


def output(folder):
    return (folder / "out.txt").read_text()


def content(run):
    """What a run has come to: its checkpoint, but for where it lies and how long it took."""
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    names = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "Shapes")
    callbacks = {
        key: state for key, state in checkpoint["callbacks"].items() if "Checkpoint" not in key and key != "Timer"
    }
    return _without_strings({**{name: checkpoint[name] for name in names}, "callbacks": callbacks})


def _without_strings(value):
    """The same with numbers in the place of strings, which `assert_close` does not compare."""
    if isinstance(value, dict):
        return {name: _without_strings(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_strings(item) for item in value]
    return [ord(letter) for letter in value] if isinstance(value, str) else value


def rows(run):
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def events(run):
    """What TensorBoard shows: each scalar's steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def assert_as_if_nothing_had_happened(run, reference):
    assert_close(content(run), content(reference), **EXACT)
    assert rows(run) == rows(reference)
    assert events(run) == events(reference)
