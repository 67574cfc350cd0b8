"""Runs that are killed, stopped and go on, against the same run undisturbed; `runs.py` is what runs them."""

import json
import random
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import Namespace
from runner import EVERY_STEP, EXACT, assert_as_if_nothing_had_happened, content, output, rows, run_of
from torch.testing import assert_close

ACCUMULATED = "--trainer.accumulate_grad_batches=3"
ORDERS = {  # options under which Lightning counts steps and epochs differently
    "epochs": (),
    "every step": (EVERY_STEP,),
    "accumulated": (ACCUMULATED, EVERY_STEP),
    "max_steps": ("--trainer.max_steps=17",),
    "max_steps and max_epochs": ("--trainer.max_steps=20", "--last_checkpoint.every_n_train_steps=3"),
    "validated twice an epoch": ("--trainer.val_check_interval=0.5", EVERY_STEP),
    "validated every other epoch": ("--trainer.check_val_every_n_epoch=2",),
    "workers": ("--data.num_workers=2", "--data.storage=stream", EVERY_STEP),
    "cached": ("--data.num_workers=1", "--data.storage=cached", EVERY_STEP),
    "chunks of views": ("--model.chunk_views=2", ACCUMULATED, EVERY_STEP),
    "small views first": (
        "--progressive_resolution=ProgressiveResolution",
        "--progressive_resolution.sides=[16, 24]",
        EVERY_STEP,
    ),
    "target network": ("--model=msssl.BYOL", ACCUMULATED, EVERY_STEP),
    "random directions": ("--model=msssl.LeJEPA", EVERY_STEP),
    "plateau": (
        "--model.lr_scheduler=ReduceLROnPlateau",
        "--model.lr_scheduler.monitor=val/probe_top1",
        "--model.lr_scheduler.patience=0",
    ),
}


def interrupted(runner, folder, options, point, ranks=1):
    """Run until the point, then to the end from the run's folder alone; the two exit codes."""
    first = runner(folder, "fit", "--config", "run.yaml", *options, point=point, ranks=ranks)
    if not list(folder.glob("runs/*/last.ckpt")) + list(folder.glob("runs/*/previous.ckpt")):
        pytest.fail(f"no checkpoint yet at {point}: it tests nothing")
    return first, runner(folder, "fit", "--ckpt_path", run_of(folder), ranks=ranks)


@pytest.mark.parametrize(
    ("order", "point"),
    [
        ("every step", ("step", 23)),  # of both optimizers: in the middle of step 12
        ("small views first", ("step", 23)),
        ("epochs", ("save", 4)),
        ("validated twice an epoch", ("validation", 5)),
        ("accumulated", ("SIGTERM", 5)),  # between micro-batches
        ("target network", ("SIGTERM", 5)),
        ("random directions", ("step", 23)),
        ("epochs", ("SIGINT", 7)),  # in the last step of an epoch
    ],
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(runner, folder, order, point):
    first, second = interrupted(runner, folder, ORDERS[order], point)
    assert first == {"SIGTERM": 143, "SIGINT": 130}.get(point[0], -9)
    assert second == 0, output(folder)
    assert_as_if_nothing_had_happened(run_of(folder), runner.undisturbed(*ORDERS[order]))
    if first > 0:
        assert f"go on with: msssl fit --ckpt_path runs/{run_of(folder).name}" in output(folder)


def test_a_checkpoint_is_written_at_an_epochs_end_however_rarely_within(runner, folder):
    options = ("--last_checkpoint.every_n_train_steps=1000",)
    assert interrupted(runner, folder, options, ("step", 23)) == (-9, 0)
    assert_as_if_nothing_had_happened(run_of(folder), runner.undisturbed(*options))


@pytest.mark.parametrize("limit", [(), pytest.param(("--trainer.max_steps=23",), marks=pytest.mark.long)], ids=str)
def test_stopped_at_an_epochs_last_step_and_again_in_the_next_epoch(runner, folder, limit):
    """Without a validation in between, so that the checkpoint is written in the hook after the last batch."""
    options = ("--trainer.check_val_every_n_epoch=2", EVERY_STEP, *limit)
    assert runner(folder, "fit", "--config", "run.yaml", *options, point=("SIGTERM", 7)) == 143
    assert runner(folder, "fit", "--ckpt_path", "last", point=("SIGTERM", 3)) == 143
    assert runner(folder, "fit", "--ckpt_path", "last") == 0, output(folder)
    assert_as_if_nothing_had_happened(run_of(folder), runner.undisturbed(*options))


def random_points(count):
    generator = random.Random(0)
    kinds = {"step": (15, 40), "save": (3, 6), "rename": (4, 9), "validation": (3, 6)}
    for _ in range(count):
        kind = generator.choice(list(kinds))
        yield generator.choice(list(ORDERS)), (kind, generator.randint(*kinds[kind]))


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "point",
    [
        ("step", 34),
        ("save", 4),
        ("rename", 5),
        ("rename", 6),
        ("validation", 5),
        ("SIGTERM", 3),
        ("SIGTERM", 7),
        ("SIGTERM", 11),
        ("SIGINT", 9),
        ("SIGTERM in validation", 3),
    ],
    ids=str,
)
def test_any_point_of_any_run(runner, folder, order, point):
    first = runner(folder, "fit", "--config", "run.yaml", *ORDERS[order], point=point)
    if first == 0:
        pytest.skip("the run was over before")
    assert first < 0 or first > 128, output(folder)  # killed or stopped; else it could not start
    found = list(folder.glob("runs/*/*.ckpt"))
    if not [path for path in found if path.name != "best.ckpt"]:
        pytest.skip("no checkpoint had been written")
    assert runner(folder, "fit", "--ckpt_path", run_of(folder)) == 0, output(folder)
    assert_as_if_nothing_had_happened(run_of(folder), runner.undisturbed(*ORDERS[order]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_a_random_moment(runner, folder, seed):
    generator = random.Random(seed)
    options = generator.choice([ORDERS["every step"], ORDERS["accumulated"], ORDERS["validated twice an epoch"]])
    killed = runner(folder, "fit", "--config", "run.yaml", *options, point=("time", generator.uniform(1.2, 2.5)))
    if not list(folder.glob("runs/*/last.ckpt")) + list(folder.glob("runs/*/previous.ckpt")):
        shutil.rmtree(folder / "runs", ignore_errors=True)
        assert runner(folder, "fit", "--config", "run.yaml", *options) == 0
    else:
        while killed:  # again and again
            killed = runner(folder, "fit", "--ckpt_path", run_of(folder), point=("time", generator.uniform(1.5, 3.5)))
    assert_close(content(run_of(folder)), content(runner.undisturbed(*options)), **EXACT)
    steps = [row["step"] for row in rows(run_of(folder)) if row["train/loss"]]
    assert len(steps) == len(set(steps))


def test_a_config_stays_whole_when_killed_while_it_is_written(tmp_path):
    from msssl.cli.resume import SaveConfig

    class Parser:
        def dump(self, config, **kwargs):
            assert (tmp_path / "config.yaml").read_text() == "that of the run"
            raise SystemExit

    (tmp_path / "config.yaml").write_text("that of the run")
    trainer = SimpleNamespace(default_root_dir=tmp_path, is_global_zero=True)
    with pytest.raises(SystemExit):
        SaveConfig(Parser(), Namespace(ckpt_path=None)).on_train_start(trainer, None)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("config.yaml", "that of the run")]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_cut_checkpoint_is_passed_over_for_the_one_before(runner, folder, share):
    """Ten lengths in `test_any_length_of_a_cut_checkpoint`."""
    assert runner(folder, "fit", "--config", "run.yaml", EVERY_STEP, point=("SIGTERM", 9)) == 143
    last = run_of(folder) / "last.ckpt"
    whole = last.read_bytes()
    last.write_bytes(whole[: int(share * len(whole))])
    assert runner(folder, "fit", "--ckpt_path", "last") == 0, output(folder)
    assert "last.ckpt is passed over for previous.ckpt, the one before" in output(folder)
    assert_as_if_nothing_had_happened(run_of(folder), runner.undisturbed(EVERY_STEP))


@pytest.mark.slow
def test_any_length_of_a_cut_checkpoint(runner, folder):
    assert runner(folder, "fit", "--config", "run.yaml", EVERY_STEP, point=("SIGTERM", 9)) == 143
    stopped = run_of(folder)
    whole = (stopped / "last.ckpt").read_bytes()
    for tenth in range(10):
        copy = runner.folder(f"cut{tenth}")
        shutil.copytree(folder / "runs", copy / "runs")
        (run_of(copy) / "last.ckpt").write_bytes(whole[: tenth * len(whole) // 10])
        assert runner(copy, "fit", "--ckpt_path", run_of(copy)) == 0, output(copy)
        assert_as_if_nothing_had_happened(run_of(copy), runner.undisturbed(EVERY_STEP))


def test_a_flipped_bit_is_noticed(runner, folder):
    assert runner(folder, "fit", "--config", "run.yaml", EVERY_STEP, point=("SIGTERM", 9)) == 143
    last = run_of(folder) / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 3] ^= 1
    last.write_bytes(content)
    (run_of(folder) / "previous.ckpt").write_bytes(b"")
    assert runner(folder, "fit", "--ckpt_path", "last") == 2
    assert "last.ckpt is passed over for previous.ckpt, the one before: " in output(folder)
    assert "in it is damaged" in output(folder)
    assert "previous.ckpt cannot be read as a checkpoint" in output(folder)


def test_a_full_disk_keeps_the_checkpoint_before(runner, folder):
    first, second = interrupted(runner, folder, (EVERY_STEP,), ("full disk", 6))
    assert first == 1
    line = next(line for line in output(folder).splitlines() if line.startswith("msssl: error"))
    assert "last.ckpt cannot be written: File too large; what was there before is as it was" in line
    assert second == 0
    assert_as_if_nothing_had_happened(run_of(folder), runner.undisturbed(EVERY_STEP))
    assert not list(run_of(folder).glob("*.tmp"))


@pytest.mark.parametrize(
    "first",
    [
        ("--trainer.max_epochs=2",),
        ("--trainer.max_steps=10",),
        ("--trainer.max_steps=10", "--last_checkpoint.every_n_train_steps=4"),
    ],
    ids=str,
)
def test_a_longer_run_is_the_one_that_was_longer_from_the_start(runner, folder, first):
    """But for its schedule, which knows the end: so without one."""
    constant = "--model.lr_scheduler=null"
    assert runner(folder, "fit", "--config", "run.yaml", constant, *first) == 0
    assert runner(folder, "fit", "--ckpt_path", "last", "--trainer.max_epochs=3", "--trainer.max_steps=-1") == 0
    assert_close(content(run_of(folder)), content(runner.undisturbed(constant)), **EXACT)
    assert rows(run_of(folder)) == rows(runner.undisturbed(constant))


def test_a_run_that_is_over_stays_as_it_is(runner, folder):
    assert runner(folder, "fit", "--config", "run.yaml") == 0
    assert "no step was left" not in output(folder)
    for times, limit in enumerate([[], ["--trainer.max_steps=10000"]], 1):  # both times the epochs ended it
        assert runner(folder, "fit", "--ckpt_path", "last", *limit) == 0
        assert output(folder).count("no step was left; a larger --trainer.max_epochs than 3 goes on") == times
    assert_as_if_nothing_had_happened(run_of(folder), runner.undisturbed())


def test_flags_win(runner, folder):
    constant = "--model.lr_scheduler=null"
    assert runner(folder, "fit", "--config", "run.yaml", constant, point=("SIGTERM", 9)) == 143
    flags = ["--model.optimizer.lr=0.0", "--data.views.n_views=2", "--online_probe.lr=0.5"]
    weights = content(run_of(folder))["state_dict"]["projector.0.weight"]
    assert runner(folder, "fit", "--ckpt_path", "last", *flags) == 0, output(folder)
    assert "changed: --data.views.n_views 3 -> 2, --model.optimizer.lr 0.001 -> 0.0" in output(folder)
    after = content(run_of(folder))
    assert torch.equal(after["state_dict"]["projector.0.weight"], weights)
    (probe,) = [state for key, state in after["callbacks"].items() if "OnlineProbe" in key]
    assert probe["optimizer"]["param_groups"][0]["lr"] == 0.5


def test_a_learning_rate_under_a_schedule_wins_in_proportion(runner, folder):
    assert runner(folder, "fit", "--config", "run.yaml", point=("SIGTERM", 9)) == 143
    assert runner(folder, "fit", "--ckpt_path", "last", "--model.optimizer.lr=0.01") == 0, output(folder)
    rates = [float(row["lr-Adam"]) for row in rows(run_of(folder)) if row["lr-Adam"]]
    expected = [float(row["lr-Adam"]) for row in rows(runner.undisturbed()) if row["lr-Adam"]]
    assert rates == pytest.approx(expected[:9] + [10 * rate for rate in expected[9:]], rel=1e-9)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--model.proj_dim=16"], "with --model.proj_dim 16 (it was 8), projector.0.weight has shape (16, 12)"),
        (["--model.proj_layers=3"], "with --model.proj_layers 3 (it was 2), projector."),
        (["--model.optimizer=SGD", "--model.optimizer.lr=1"], "--model.optimizer.class_path is torch.optim.SGD"),
        (["--model.lr_scheduler=null"], "--model.lr_scheduler.class_path is None"),
        (["--seed_everything=4"], "--seed_everything is 4, but the run that goes on has 3"),
        (["--model.weights=some.ckpt"], "--model.weights is some.ckpt"),
        (["--online_probe.hidden_dims=[3]"], "online probe"),
    ],
    ids=str,
)
def test_what_a_flag_cannot_change_is_named(runner, folder, flags, line):
    shutil.copytree(runner.undisturbed().parent, folder / "runs")
    before = sorted((path.name, path.stat().st_size) for path in run_of(folder).iterdir() if "events" not in path.name)
    assert runner(folder, "fit", "--ckpt_path", "last", "--trainer.max_epochs=4", *flags) == 2, output(folder)
    assert line in output(folder).splitlines()[-1]
    after = sorted((path.name, path.stat().st_size) for path in run_of(folder).iterdir() if "events" not in path.name)
    assert after == before


def test_elsewhere_it_is_a_run_of_its_own(runner, folder):
    """From a file that is in no run's folder, with its config; or into a folder that is named."""
    assert runner(folder, "fit", "--config", "run.yaml", point=("SIGTERM", 9)) == 143
    stopped = run_of(folder)
    shutil.copy(stopped / "last.ckpt", folder / "copy.ckpt")
    assert runner(folder, "fit", "--ckpt_path", "copy.ckpt") == 2
    assert "name a config" in output(folder)
    a, b = "--trainer.default_root_dir=a", "--trainer.default_root_dir=b"
    assert runner(folder, "fit", "--ckpt_path", "copy.ckpt", "--config", "run.yaml", a) == 0, output(folder)
    assert runner(folder, "fit", "--ckpt_path", stopped, b) == 0, output(folder)
    for root in ("a", "b"):
        (found,) = (folder / root).iterdir()
        assert_close(content(found), content(runner.undisturbed()), **EXACT)
    assert torch.load(stopped / "last.ckpt", weights_only=True)["global_step"] == 9


def test_a_run_that_was_moved_keeps_its_best_checkpoint(runner, folder):
    assert runner(folder, "fit", "--config", "run.yaml", point=("SIGTERM", 16)) == 143
    run_of(folder).rename(folder / "moved")
    assert runner(folder, "fit", "--ckpt_path", "moved") == 0, output(folder)
    assert {path.name for path in (folder / "moved").glob("best*")} == {"best.ckpt"}
    assert_as_if_nothing_had_happened(folder / "moved", runner.undisturbed())


@pytest.mark.parametrize(
    ("ranks", "point", "method"),
    [
        (2, ("SIGTERM on the last rank", 4), "BarlowTwins"),  # and on no other
        (2, ("SIGTERM", 4), "BYOL"),  # whose target network, with its statistics, is the same on both
        pytest.param(2, ("SIGTERM", 18), "BarlowTwins", marks=pytest.mark.slow),
        pytest.param(
            2, ("SIGTERM on the last rank", 21), "BarlowTwins", marks=pytest.mark.slow
        ),  # in the run's last step
        pytest.param(3, ("SIGTERM", 4), "BarlowTwins", marks=pytest.mark.slow),  # in the last step of an epoch
        pytest.param(2, ("step", 14), "BarlowTwins", marks=pytest.mark.slow),
        pytest.param(3, ("save", 5), "BarlowTwins", marks=pytest.mark.slow),
    ],
)
def test_ranks_stop_at_one_step_and_go_on(runner, folder, ranks, point, method):
    # Three summands depend on their order, and plain DDP chooses a new one after the first step of a process.
    strategy = "--trainer.strategy=ddp" if ranks == 2 else "--trainer.strategy=ddp_find_unused_parameters_true"
    options = ("--trainer.devices", ranks, strategy, ACCUMULATED, EVERY_STEP, "--data.batch_size=4")
    options += ("--model.chunk_views=2", f"--model=msssl.{method}")
    options = tuple(map(str, options))
    first, second = interrupted(runner, folder, options, point, ranks)
    assert (first, second) == (143 if "SIGTERM" in point[0] else -9, 0), output(folder)
    assert_as_if_nothing_had_happened(run_of(folder), runner.undisturbed(*options, ranks=ranks))
    if first == 143:
        # One process ends the step in which it is told to stop; ranks take one more, but for an epoch's last step.
        steps = {(2, 4): 2 + 1, (2, 18): 8 + 1, (2, 21): 9, (3, 4): 2}[ranks, point[1]]
        assert f"stopped by SIGTERM after {steps} steps" in output(folder)


@pytest.mark.long
def test_in_a_step_ranks_wait_for_each_other_once(runner, folder):
    """Beside what the step computes on: embeddings and their gradient, and the features and labels of the probe."""
    options = ("--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2", "--trainer.log_every_n_steps=50")
    assert runner(folder, "fit", "--config", "run.yaml", *options, point=("collectives", 0), ranks=2) == 0
    computed = {("all_gather", "_Gather.forward", False): 3, ("all_reduce", "_Gather.backward", False): 1}
    of_lightning = {("broadcast", "_TrainingEpochLoop._broadcast_sigterm_tensor", False): 1}
    in_the_background = {("all_reduce", "BackgroundMaximum.begin", True): 1}
    reads_the_loss = {("all_gather_object", "gather_objects", False): 1, ("all_gather", "all_gather_object", False): 2}
    steps = [Counter(map(tuple, calls)) for calls in json.loads((folder / "collectives.json").read_text())]
    assert len(steps) == 41
    for number, calls in enumerate(steps, start=1):
        if number == 1 or number % 14 == 0:  # shapes are compared, or an epoch ends
            continue
        logs = number % 2 == 0  # at a logging step, of which a run has 20
        assert calls == {**computed, **of_lightning, **in_the_background, **(reads_the_loss if logs else {})}, number


RANKS = """
seed_everything: 3
trainer: {accelerator: cpu, precision: 64-true, max_steps: 10, log_every_n_steps: 1, enable_progress_bar: false}
online_probe: null
online_knn: {class_path: msssl.callbacks.OnlineKNN}
model:
  class_path: msssl.BarlowTwins
  init_args: {backbone: {class_path: ranks.Net}, proj_layers: 1, proj_dim: 16}
data:
  class_path: msssl.Shapes
  init_args:
    train_images: 106
    test_images: 20
    num_workers: 0
    views: {class_path: msssl.MultiView, init_args: {n_views: 4, augmentations: [{class_path: ranks.Tint}]}}
"""
RANKS_MODULE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2), nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )

class Tint(nn.Module):  # views that depend on the image and the view's number alone, to the last bit
    def forward(self, views):
        by_view = views.unflatten(0, (4, -1))
        return (by_view ** torch.linspace(0.5, 2, 4)[:, None, None, None, None]).flatten(0, 1)
"""


def fit_on_ranks(runner, folder, ranks, *args, point=(None, 0)):
    """10 steps of Adam on 24 images each, shared by the ranks; an epoch has 3."""
    (folder / "ranks.py").write_text(RANKS_MODULE)
    (folder / "run.yaml").write_text(RANKS)
    options = [f"--data.batch_size={24 // ranks}", f"--trainer.devices={ranks}"]
    options += ["--trainer.strategy", "ddp" if ranks > 1 else "auto"]
    return runner(folder, "fit", *args, *options, ranks=ranks, point=point)


@pytest.fixture(scope="module")
def one_rank(runner):
    folder = runner.folder("one rank")
    assert fit_on_ranks(runner, folder, 1, "--config", "run.yaml") == 0, output(folder)
    return run_of(folder)


def assert_trained_as(run, reference):
    found, expected = (content(each)["state_dict"] for each in (run, reference))
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert (found[name] - weights).norm() <= 1e-8 * weights.norm(), name
    measured, known = (
        [{name: float(value) for name, value in row.items() if name[:4] == "val/" and value} for row in rows(each)]
        for each in (run, reference)
    )
    assert {name for row in known for name in row} == {"val/rankme", "val/alpha", "val/spread", "val/knn_top1"}
    for row, other in zip(measured, known, strict=True):
        assert row == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (2, []),
        (3, ["--model.chunk_views=3"]),
        pytest.param(2, ["--model.compile=true", "--model.chunk_views=2"], marks=pytest.mark.slow),
    ],
)
def test_ranks_train_as_one_process_with_their_batches_together(runner, folder, one_rank, ranks, options):
    assert fit_on_ranks(runner, folder, ranks, "--config", "run.yaml", *options) == 0, output(folder)
    assert_trained_as(run_of(folder), one_rank)


def test_killed_on_two_ranks_it_goes_on_on_one(runner, folder, one_rank):
    args = ("--config", "run.yaml", EVERY_STEP)
    assert fit_on_ranks(runner, folder, 2, *args, point=("step", 7)) == -9
    assert fit_on_ranks(runner, folder, 1, "--ckpt_path", "last") == 0, output(folder)
    assert_trained_as(run_of(folder), one_rank)
