"""Runs of the command line in forked processes, which die or are told to stop at a given point.

Started as a script, so that the fork is of a process without threads: it reads jobs from stdin, one JSON list a line,
`[folder, arguments, [what, which], ranks, environment]`, and prints the exit codes of each job's ranks.
"""

import gc
import importlib
import io
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import torch

NET = '''
from torch import nn

class Net(nn.Sequential):
    """A small network that draws from the global random state."""

    num_features = 12

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(8),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(256, 12)
        )
'''
CONFIG = """
seed_everything: 3
rank_monitor: null  # half a second of pictures each time
trainer: {accelerator: cpu, max_epochs: 3, log_every_n_steps: 1, enable_progress_bar: false}
model:
  class_path: msssl.BarlowTwins
  init_args:
    backbone: {class_path: net.Net}
    proj_dim: 8
    lr_scheduler: {class_path: msssl.WarmupCosine}
data:
  class_path: msssl.Shapes
  init_args:
    train_images: 66
    test_images: 4
    batch_size: 8
    num_workers: 0
    views: {class_path: msssl.MultiView, init_args: {n_views: 3}}
"""


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner, name, which, act):
    """Call `act` instead of the call number `which` (from 1) of a function; it gets the function and its arguments."""
    original, calls = getattr(owner, name), 0

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == which:
            return act(original, *args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def write_half_and_die(save, content, file):
    whole = io.BytesIO()
    save(content, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
    die()


def full_disk(save, content, file):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        save(content, file)
        file.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def signalled(signum, times=1):
    def act(function, *args, **kwargs):
        result = function(*args, **kwargs)
        for _ in range(times):
            os.kill(os.getpid(), signum)
        return result

    return act


ON_THE_LAST_RANK = " on the last rank"  # such a point is one of that rank, not of the first
COLLECTIVES = (
    *("barrier", "monitored_barrier", "broadcast", "broadcast_object_list", "scatter", "scatter_object_list"),
    *("all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_tensor", "all_to_all"),
    *("all_gather", "all_gather_into_tensor", "all_gather_object", "gather", "gather_object", "all_to_all_single"),
    *("send", "recv", "isend", "irecv", "batch_isend_irecv"),
)


def count_collectives():
    """Write to collectives.json what each step asks of other ranks, beside what DDP itself does in C++.

    A step goes from the start of Lightning's to the start of the next one; the last step of the run is left out. Of
    each call there is its name, who called it, and whether it goes on in the background.
    """
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
    from torch import distributed as dist
    from torch.distributed import distributed_c10d

    steps = []

    def recorded(name, function):
        def call(*args, **kwargs):
            if steps:
                caller = sys._getframe(1).f_code.co_qualname
                steps[-1].append((name, caller, bool(kwargs.get("async_op"))))
            return function(*args, **kwargs)

        return call

    for name in COLLECTIVES:
        call = recorded(name, getattr(dist, name))
        setattr(dist, name, call)
        setattr(distributed_c10d, name, call)
    advance = _TrainingEpochLoop.advance

    def next_step(*args):
        Path("collectives.json").write_text(json.dumps(steps))
        steps.append([])
        advance(*args)

    _TrainingEpochLoop.advance = next_step


def arm(what, which):
    from msssl.callbacks import OnlineProbe
    from msssl.views import MultiView

    if what == "step":  # in the middle of a step
        at_call(torch.optim.Adam, "step", which, die)
    elif what == "save":
        at_call(torch, "save", which, write_half_and_die)
    elif what == "rename":  # between two names of a checkpoint
        at_call(Path, "replace", which, die)
    elif what == "validation":
        at_call(OnlineProbe, "on_validation_batch_end", which, die)
    elif what in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGINT twice"):  # in the middle of a micro-batch
        name, _, twice = what.partition(" ")
        at_call(MultiView, "forward", which, signalled(signal.Signals[name], 2 if twice else 1))
    elif what == "full disk":  # a limit on the size of files: writing beyond it is an error of the system, too
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        at_call(torch, "save", which, full_disk)
    elif what.startswith("SIGTERM in "):
        name = {"validation": "on_validation_batch_end", "start": "on_train_start"}[what.split()[-1]]
        at_call(OnlineProbe, name, which, signalled(signal.SIGTERM))
    else:
        raise ValueError(what)


def child(folder, args, what, which, environment):
    from msssl.cli import main

    torch.set_num_threads(1)  # makes the pool that a fork leaves behind again, before threads race to do so
    os.chdir(folder)
    os.environ.update(environment)
    sys.orig_argv = ["msssl", *args]
    sys.path[:] = [*sys.path, folder]
    out = os.open("out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if what == "collectives":
        count_collectives()
    elif what not in ("", "time"):
        arm(what, which)
    sys.argv = ["msssl", *args]
    try:
        main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


def launched(rank, ranks, port):
    """The environment that torchrun gives to a rank."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
    os.environ.update(GROUP_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test")
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    rank_zero_only.rank = rank  # found by its import


def start(folder, args, what, which, rank, ranks, port, environment):
    pid = os.fork()
    if pid > 0:
        return pid
    code = 99
    try:
        if ranks > 1:
            launched(rank, ranks, port)
        what = what or ""
        armed = rank == (ranks - 1 if what.endswith(ON_THE_LAST_RANK) else 0)
        code = child(folder, args, what.removesuffix(ON_THE_LAST_RANK) if armed else "", which, environment)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def work():
    for name in ("lightning.pytorch.cli", "matplotlib.figure", "msssl.cli.lightning_cli", "torch._dynamo"):
        importlib.import_module(name)  # all that a run imports, once
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # a pool of processes does not survive a fork
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # or each child would copy all that was imported
    for line in sys.stdin:
        folder, args, (what, which), ranks, environment = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids = [start(folder, args, what, which, rank, ranks, port, environment) for rank in range(ranks)]
        if what == "time":
            time.sleep(which)
            os.kill(pids[0], signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1])]
        for pid in pids[1:]:
            if codes[0] == -signal.SIGKILL:
                os.kill(pid, signal.SIGKILL)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    work()
