"""What stops a run, under SLURM and elsewhere, and from what it goes on: beside `test_resume.py`, which says how."""

import logging
import shutil
import signal
import traceback
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import load
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies import FSDPStrategy
from runner import EVERY_STEP, EXACT, assert_as_if_nothing_had_happened, content, output, rows, run_of
from torch import nn
from torch.testing import assert_close

from msssl import BarlowTwins, Shapes
from msssl.callbacks import LastCheckpoint

FIT = ("fit", "--config", "run.yaml")
SLURM = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "train"}


@pytest.fixture
def job(folder, monkeypatch):
    """The environment of a job whose `scontrol` writes down what it is asked, and how it ends."""

    def environment(code=0, **variables):
        (folder / "bin").mkdir(exist_ok=True)
        script = folder / "bin" / "scontrol"
        script.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\necho it is said why >&2\nexit {code}\n')
        script.chmod(0o755)
        return {**SLURM, "SLURM_JOB_ID": "12", "PATH": f"{folder}/bin:/usr/bin:/bin", **variables}

    return environment


def run_folders(folder, root="runs"):
    return sorted(path.name for path in (folder / root).iterdir())


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "12"),
        pytest.param(
            {"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"},
            "12_3",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["job", "task of an array"],
)
def test_a_requeued_job_goes_on(runner, folder, job, variables, name):
    """A task of an array leaves the others alone; the job's id is another one there."""
    env = job(**variables)
    assert runner(folder, *FIT, point=("SIGUSR1", 9), env=env) == 128 + signal.SIGUSR1
    assert (folder / "asked").read_text() == f"requeue {name}\n"
    assert f"requeued as job {name}" in output(folder)
    again = {**env, "SLURM_RESTART_COUNT": "1"}
    if variables:
        assert runner(folder, *FIT, "--trainer.max_epochs=1", env={**again, "SLURM_ARRAY_TASK_ID": "2"}) == 0
        (other,) = (folder / "runs").glob("slurm-12-2-*")
        shutil.rmtree(other)
    assert runner(folder, *FIT, env=again) == 0, output(folder)
    assert_as_if_nothing_had_happened(run_of(folder), runner.undisturbed())


@pytest.mark.parametrize("there", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_scontrol_that_fails_or_is_missing_is_reported(runner, folder, job, there):
    env = job(code=1)
    if not there:
        (folder / "bin" / "scontrol").unlink()
    assert runner(folder, *FIT, point=("SIGUSR1", 9), env=env) == 128 + signal.SIGUSR1
    reason = "it is said why" if there else "No such file"
    assert any("scontrol requeue 12 failed" in line and reason in line for line in output(folder).splitlines())
    assert torch.load(run_of(folder) / "last.ckpt")["global_step"] == 9


@pytest.mark.slow
def test_commands_of_a_job_do_not_mix(runner, folder, job):
    """Two that differ, and one given twice by hand; preempted, by SIGTERM, nothing is asked of SLURM."""
    env = job()
    assert runner(folder, *FIT, point=("SIGTERM", 5), env=env) == 143
    other = (*FIT, "--model.proj_dim=4")
    assert runner(folder, *other, point=("SIGTERM", 3), env=env) == 143
    first, second = sorted((folder / "runs").iterdir(), key=lambda run: run.stat().st_mtime)
    again = {**env, "SLURM_RESTART_COUNT": "1"}
    for command, run, steps in ((other, second, 3), (FIT, first, 5)):
        assert runner(folder, *command, point=("SIGTERM", 2), env=again) == 143, output(folder)
        assert torch.load(run / "last.ckpt")["global_step"] == steps + 2
    assert run_folders(folder) == sorted([first.name, second.name])
    assert runner(folder, *FIT, point=("SIGTERM", 2), env=env) == 143  # not restarted
    assert run_folders(folder) == sorted([first.name, f"{first.name}-2", second.name])
    assert not (folder / "asked").exists()


def test_a_requeued_job_without_a_last_checkpoint_begins_again(runner, folder, job):
    """The node failed when there was a best checkpoint, but none yet from which to go on."""
    late = ("--last_checkpoint.every_n_epochs=3",)
    assert runner(folder, *FIT, *late, point=("step", 20), env=job()) == -9
    assert {path.name for path in run_of(folder).glob("*.ckpt")} == {"best.ckpt"}
    assert runner(folder, *FIT, *late, env=job(SLURM_RESTART_COUNT="1")) == 0, output(folder)
    (run,) = {path.parent for path in folder.glob("runs/*/last.ckpt")}
    assert_close(content(run), content(runner.undisturbed()), **EXACT)


def test_a_requeued_job_that_began_from_a_checkpoint_goes_on_from_its_own(runner, folder, job):
    assert runner(folder, *FIT, point=("SIGTERM", 5)) == 143
    shutil.copy(run_of(folder) / "last.ckpt", folder / "copy.ckpt")
    command = (*FIT, "--ckpt_path", "copy.ckpt", "--trainer.default_root_dir=a")
    assert runner(folder, *command, point=("SIGUSR1", 9), env=job()) == 128 + signal.SIGUSR1
    assert runner(folder, *command, env=job(SLURM_RESTART_COUNT="1")) == 0, output(folder)
    (run,) = (folder / "a").iterdir()
    assert_close(content(run), content(runner.undisturbed()), **EXACT)


def test_a_second_interrupt_stops_at_once(runner, folder):
    """In the middle of step 10; the checkpoint is that of the epoch's end, and the run goes on from it."""
    assert runner(folder, *FIT, point=("SIGINT twice", 10)) == 130, output(folder)
    assert "go on with: msssl fit --ckpt_path" in output(folder)
    assert "Traceback" not in output(folder)
    assert torch.load(run_of(folder) / "last.ckpt")["global_step"] == 7
    assert runner(folder, "fit", "--ckpt_path", "last") == 0, output(folder)
    assert_as_if_nothing_had_happened(run_of(folder), runner.undisturbed())


def test_a_run_stopped_before_its_first_step_leaves_nothing(runner, folder):
    """In Lightning's check before training."""
    sanity = "--trainer.num_sanity_val_steps=2"
    assert runner(folder, *FIT, sanity, point=("SIGTERM in validation", 1)) == 143, output(folder)
    assert not (folder / "runs").exists()
    assert "Traceback" not in output(folder)
    assert "go on with" not in output(folder)


@pytest.mark.slow
def test_stopped_while_it_starts_a_run_has_one_more_step(runner, folder):
    assert runner(folder, *FIT, point=("SIGTERM in start", 1)) == 143
    assert runner(folder, "fit", "--ckpt_path", "last", point=("SIGTERM in start", 1)) == 143
    assert torch.load(run_of(folder) / "last.ckpt")["global_step"] == 2
    assert runner(folder, "fit", "--ckpt_path", "last") == 0
    assert_as_if_nothing_had_happened(run_of(folder), runner.undisturbed())


HUNGRY = """
import torch
from msssl import BarlowTwins

class Hungry(BarlowTwins):
    def compute_loss(self, z):
        if self.global_step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB.")
        return super().compute_loss(z)
"""


@pytest.mark.parametrize(
    ("flags", "held"),
    [
        ((), "3 views each, all of them"),
        pytest.param(("--model.chunk_views=2",), "3 views each, 2 of them", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_out_of_memory_is_one_line_of_advice(runner, folder, flags, held):
    (folder / "hungry.py").write_text(HUNGRY)
    assert runner(folder, *FIT, EVERY_STEP, "--model=hungry.Hungry", *flags) == 1
    (line,) = [line for line in output(folder).splitlines() if line.startswith("msssl: error")]
    assert "out of memory" in line
    assert f"8 images with {held}" in line
    assert "data.batch_size (8)" in line
    assert "model.chunk_views" in line
    assert "Traceback" not in output(folder)
    assert torch.load(run_of(folder) / "last.ckpt")["global_step"] == 3


def test_a_signal_stops_one_fit_and_not_the_next_of_the_same_callback(tmp_path):
    class Signals(Callback):
        def on_train_batch_start(self, trainer, *args):
            if sent:
                signal.raise_signal(sent.pop())

    def fit():
        options = {"logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path, "max_epochs": 1}
        trainer = Trainer(accelerator="cpu", callbacks=[last, Signals()], **options)
        data = Shapes(train_images=20, test_images=4, batch_size=4, num_workers=0)
        trainer.fit(BarlowTwins(backbone=nn.Flatten(), feature_dim=3072, proj_dim=4), data)
        return trainer.global_step

    sent, last = [signal.SIGTERM], LastCheckpoint(dirpath=tmp_path)
    with pytest.raises(SystemExit):
        fit()
    assert fit() == 2


def test_precision_is_that_of_the_device_or_of_the_flag(runner, folder):
    (folder / "bf16.yaml").write_text("trainer: {precision: bf16-mixed}")
    line = "precision: 32-true instead of bf16-mixed, in which CPUs compute slowly"
    assert runner(folder, *FIT, "--config", "bf16.yaml") == 0
    assert line in output(folder)
    assert_close(content(run_of(folder)), content(runner.undisturbed()), **EXACT)
    bf16 = runner.undisturbed("--trainer.precision=bf16-mixed")
    assert line not in output(bf16.parents[1])
    weights = [content(run)["state_dict"]["projector.0.weight"] for run in (bf16, runner.undisturbed())]
    assert not torch.equal(*weights)


def test_a_precision_that_was_asked_for_stays(runner, folder):
    asked = "--trainer.precision=bf16-mixed"
    assert runner(folder, *FIT, asked, point=("SIGTERM", 9)) == 143
    assert runner(folder, "fit", "--ckpt_path", "last") == 0
    assert_as_if_nothing_had_happened(run_of(folder), runner.undisturbed(asked))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["config", "flag"])
def test_last_is_the_newest_run_below_the_root(runner, folder, where):
    (folder / "root.yaml").write_text("trainer: {default_root_dir: out}")
    root = ("--trainer.default_root_dir=out",) if where == "flag" else ("--config", "root.yaml")
    assert runner(folder, "fit", "--ckpt_path", "last", *root) == 2
    assert "no last.ckpt below out" in output(folder)
    assert runner(folder, *FIT, "--trainer.max_epochs=1") == 0  # below another root
    assert runner(folder, *FIT, *root, point=("SIGTERM", 9)) == 143
    assert runner(folder, "fit", "--ckpt_path=last", *root) == 0, output(folder)
    (run,) = (folder / "out").iterdir()
    assert_as_if_nothing_had_happened(run, runner.undisturbed())


def test_the_root_of_a_run_by_another_name_is_still_its_root(runner, folder):
    assert runner(folder, *FIT, point=("SIGTERM", 9)) == 143
    root = f"--trainer.default_root_dir={folder}/runs"
    assert runner(folder, "fit", "--ckpt_path", "last", root) == 0
    assert_as_if_nothing_had_happened(run_of(folder), runner.undisturbed())


def test_last_does_not_pass_over_the_newest_run(runner, folder):
    assert runner(folder, *FIT, "--trainer.max_epochs=1") == 0
    first = run_of(folder)
    assert runner(folder, *FIT, "--data.batch_size=4", point=("step", 5)) == -9
    (second,) = set((folder / "runs").iterdir()) - {first}
    assert runner(folder, "fit", "--ckpt_path", "last") == 2
    line = output(folder).splitlines()[-1]
    assert f"runs/{first.name}" in line
    assert f"runs/{second.name}, has no checkpoint yet" in line


def weights_only(checkpoint):
    kept = ("epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "hyper_parameters")
    return {name: checkpoint[name] for name in kept if name in checkpoint}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (weights_only, "weights"),
        (lambda checkpoint: {"state_dict": checkpoint["state_dict"]}, "weights"),
        (lambda checkpoint: checkpoint["state_dict"], "holds no state_dict"),
    ],
    ids=["of Lightning", "state_dict alone", "weights alone"],
)
def test_from_weights_alone_no_run_goes_on(runner, folder, make, reason):
    checkpoint = torch.load(runner.undisturbed() / "last.ckpt", weights_only=True)
    torch.save(make(checkpoint), folder / "weights.ckpt")
    assert runner(folder, *FIT, "--ckpt_path", "weights.ckpt") == 2, output(folder)
    line = output(folder).splitlines()[-1]
    assert line.startswith("msssl: error: ")
    assert "weights.ckpt" in line
    assert reason in line
    assert not (folder / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--trainer.logger=false",),
        ("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"),
        ("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=2"),
    ],
    ids=str,
)
def test_a_run_with_other_loggers_and_callbacks_goes_on(runner, folder, options):
    assert runner(folder, *FIT, *options, point=("SIGTERM", 9)) == 143
    assert runner(folder, "fit", "--ckpt_path", "last") == 0, output(folder)
    assert_close(content(run_of(folder)), content(runner.undisturbed()), **EXACT)
    if any("ModelCheckpoint" in option for option in options):
        assert [path.name for path in run_of(folder).glob("checkpoints/*")] == ["epoch=2-step=20.ckpt"]


@pytest.mark.slow
def test_from_the_checkpoint_of_a_callback_within_an_epoch(runner, folder):
    options = ("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=5")
    assert runner(folder, *FIT, *options, "--trainer.callbacks.save_top_k=-1", point=("SIGTERM", 13)) == 143
    (path,) = run_of(folder).rglob("*step=5.ckpt")
    assert runner(folder, *FIT, "--ckpt_path", path, "--trainer.default_root_dir=a") == 0, output(folder)
    (run,) = (folder / "a").iterdir()
    assert_close(content(run), content(runner.undisturbed()), **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["best.ckpt", "previous.ckpt"])
def test_from_an_earlier_checkpoint_of_its_folder(runner, folder, name):
    assert runner(folder, *FIT) == 0
    earlier = torch.load(run_of(folder) / name, weights_only=True)["global_step"]
    assert earlier < 21, "it tests nothing"
    assert runner(folder, "fit", "--ckpt_path", run_of(folder) / name) == 0, output(folder)
    assert_as_if_nothing_had_happened(run_of(folder), runner.undisturbed())


@pytest.mark.slow
def test_without_checkpoints_none_is_written(runner, folder):
    off = "--trainer.enable_checkpointing=false"
    assert runner(folder, *FIT, off) == 0, output(folder)
    assert not list(folder.rglob("*.ckpt"))
    shutil.rmtree(folder / "runs")
    assert runner(folder, *FIT, point=("SIGTERM", 9)) == 143
    before = (run_of(folder) / "last.ckpt").read_bytes()
    assert runner(folder, "fit", "--ckpt_path", "last", off) == 0, output(folder)
    assert (run_of(folder) / "last.ckpt").read_bytes() == before
    assert rows(run_of(folder)) == rows(runner.undisturbed())


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (["--config", "large_projector.yaml"], "--model.proj_dim"),
        pytest.param(["--config", "lars.yaml"], "--model.", marks=pytest.mark.slow),
        (["--model.decay_bias_and_norm=false"], "--model.decay_bias_and_norm"),
        (["--model.backbone_lr_scale=0.1"], "--model.backbone_lr_scale"),
        (["--model.optimizer.amsgrad=true"], "--model.optimizer.amsgrad"),
    ],
    ids=str,
)
def test_an_overlay_or_flag_with_which_a_run_cannot_go_on_is_named(runner, folder, flags, key):
    shutil.copytree(runner.undisturbed().parent, folder / "runs")
    before = (run_of(folder) / "config.yaml").read_text()
    assert runner(folder, "fit", "--ckpt_path", "last", "--trainer.max_epochs=4", *flags) == 2, output(folder)
    assert key in output(folder).splitlines()[-1]
    assert (run_of(folder) / "config.yaml").read_text() == before


@pytest.mark.slow
def test_an_overlay_with_which_it_can_go_on_wins(runner, folder):
    (folder / "overlay.yaml").write_text("trainer: {gradient_clip_val: 0.0}\nmodel: {init_args: {beta: 0.25}}")
    assert runner(folder, *FIT, point=("SIGTERM", 9)) == 143
    assert runner(folder, "fit", "--ckpt_path", "last", "--config", "overlay.yaml") == 0, output(folder)
    saved = yaml.safe_load((run_of(folder) / "config.yaml").read_text())
    assert saved["trainer"]["gradient_clip_val"] == 0
    assert saved["model"]["init_args"]["beta"] == 0.25
    assert not torch.equal(*(c["projector.0.weight"] for c in weights_of(run_of(folder), runner.undisturbed())))


def weights_of(*runs):
    return [content(run)["state_dict"] for run in runs]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_fails_also_where_a_run_goes_on(runner, folder):
    assert runner(folder, *FIT, EVERY_STEP, point=("SIGTERM", 9)) == 143
    assert runner(folder, "fit", "--ckpt_path", "last", "--model.optimizer.lr=.inf") == 1, output(folder)
    assert "msssl: error: the loss is not finite at step 11" in output(folder)
    assert (run_of(folder) / "non_finite.json").is_file()
    assert torch.load(run_of(folder) / "last.ckpt", weights_only=True)["global_step"] == 10  # its loss was finite


def best_of(run):
    """The best checkpoint's files, content and what the run knows of it."""
    states = torch.load(run / "last.ckpt", weights_only=True)["callbacks"]
    (state,) = [state for key, state in states.items() if "BestCheckpoint" in key]
    scores = {path.rpartition("/")[2]: score for path, score in state["best_k_models"].items()}
    best = torch.load(run / "best.ckpt", weights_only=True)
    names = sorted(path.name for path in run.glob("best*"))
    return names, scores, state["best_model_score"], best["global_step"], best["state_dict"]


@pytest.mark.parametrize("point", [("step", 19), pytest.param(("step", 37), marks=pytest.mark.slow)], ids=str)
def test_the_best_checkpoint_is_that_of_the_undisturbed_run(runner, folder, point):
    """Killed also between the first best checkpoint and the last one that knows of it."""
    options = ("--last_checkpoint.every_n_train_steps=6",)
    assert runner(folder, *FIT, *options, point=point) == -9
    assert runner(folder, "fit", "--ckpt_path", "last") == 0, output(folder)
    (*found, weights), (*expected, best) = best_of(run_of(folder)), best_of(runner.undisturbed(*options))
    assert found == expected
    assert_close(weights, best, **EXACT)


class StopAt(Callback):
    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.act()


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture
def script(runner, folder):
    """A fit by a plain script, of the run of `run.yaml`, but for the callbacks; the trainer, once it is over."""
    import msssl
    from msssl.callbacks import LastCheckpoint

    net = load(folder / "net.py")

    def fit(*callbacks, ckpt_path=None, max_epochs=3):
        seed_everything(3, workers=True)
        module = msssl.BarlowTwins(
            backbone=net.Net(), proj_dim=8, lr_scheduler=lambda optimizer: msssl.WarmupCosine(optimizer)
        )
        views = msssl.MultiView(n_views=3)
        data = msssl.Shapes(train_images=66, test_images=4, batch_size=8, num_workers=0, views=views)
        last = LastCheckpoint(dirpath=folder / "kept")
        options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(callbacks=[last, *callbacks], max_epochs=max_epochs, default_root_dir=folder, **options)
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return module.state_dict()

    return fit


def test_a_plain_script_goes_on_as_if_nothing_had_happened(script, folder):
    reference = script()
    shutil.rmtree(folder / "kept")
    handlers = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as stop:
        script(StopAt(9, lambda: signal.raise_signal(signal.SIGTERM)))
    assert stop.value.code == 143
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == handlers
    path = folder / "kept" / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 10
    assert_close(script(ckpt_path=path), reference, **EXACT)


def test_the_command_line_goes_on_from_a_script(script, runner, folder):
    reference = script()
    with pytest.raises(SystemExit):
        script(StopAt(9, lambda: signal.raise_signal(signal.SIGTERM)))
    assert runner(folder, "fit", "--ckpt_path", "kept") == 2
    assert "name a config" in output(folder).splitlines()[-1]
    assert runner(folder, *FIT, "--ckpt_path", "kept") == 0, output(folder)
    found = torch.load(run_of(folder) / "last.ckpt", weights_only=True)
    assert found["global_step"] == 21
    assert_close(found["state_dict"], dict(reference), **EXACT)


def test_out_of_memory_in_a_script_has_its_advice_in_the_traceback(script):
    with pytest.raises(torch.OutOfMemoryError) as error:
        script(StopAt(3, out_of_memory))
    text = "".join(traceback.format_exception(error.value))
    assert text.count("8 images with 3 views each, all of them in memory together") == 1
    assert "chunk_views" in text


def test_parameters_spread_over_devices_are_refused():
    from msssl.run.exact_resume import ExactResume

    trainer = SimpleNamespace(strategy=FSDPStrategy(), precision="32-true")
    with pytest.raises(ValueError, match="FSDPStrategy: msssl trains on one device, or on several by strategy ddp"):
        ExactResume().setup(trainer, torch.nn.Linear(1, 1), "fit")


def test_only_the_first_rank_touches_what_was_logged(tmp_path, monkeypatch):
    """All ranks of a job that SLURM or torchrun starts are here at once."""
    from msssl.run.loggers import run_loggers

    path = tmp_path / "metrics.csv"
    path.write_text("step,a\n1,1.0\n2,2.0\n")
    before = path.stat()
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    run_loggers(tmp_path, 2)
    assert path.stat() == before
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    run_loggers(tmp_path, 2)
    assert path.read_text().split() == ["step,a", "1,1.0"]


def test_a_strange_line_in_metrics_is_dropped(tmp_path, caplog):
    from msssl.run.loggers import run_loggers

    path = tmp_path / "metrics.csv"
    for text in ("", "step,a\n", "step,a\n1,1.0\n1", "step,a\n1,1.0\n\x00\x00\x00\n"):
        path.write_text(text)
        with caplog.at_level(logging.ERROR):
            run_loggers(tmp_path, 2)
        assert not path.exists() or path.read_text().split() == ["step,a", "1,1.0"]
