"""What a training step of a config costs on this machine, part by part, and how far it is from the floor.

    make bench                                                       # the demonstration's config, on the CPU
    python benchmarks/step.py --config cifar.yaml --device cuda      # any config, with the flags of msssl fit

The floor: each operation of the step takes at least its arithmetic at the measured rate of a matrix product, and at
least its bytes at the measured rate of a copy, whichever is longer. In the fused floor pointwise operations are free,
as if a compiler had put them into their neighbours. Parts are timed one after the other, with a wait for the device
after each; the whole step is timed without. Host: until all of a step is given to a GPU. What Lightning adds to it:
`benchmarks/host.py`.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import date
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning import Trainer
from machine import copy_rate, machine, matrix_rate
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from msssl import MultiViewDataModule, MultiViewModule
from msssl.cli.arguments import expand
from msssl.methods.encoder import features_of

KNOBS = {
    "data": "data.storage memory, or more data.num_workers",
    "copy": "data.storage memory, which keeps the images on the GPU",
    "views": "data.views.compile true, or cheaper augmentations",
    "forward": "model.compile true and trainer.precision bf16-mixed on a GPU, or a narrower backbone",
    "loss": "a smaller model.proj_dim",
    "backward": "model.compile true and trainer.precision bf16-mixed on a GPU, or a narrower backbone",
    "optimizer": "model.optimizer.fused true",
    "probe": "online_probe null",
    "host": "model.compile true, or a larger data.batch_size: the GPU waits for Python",
}
PICKS = ("aten::index", "aten::index_select", "aten::gather")
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")


def main() -> None:
    """Measure the step of a config, print a table and write it beside its numbers."""
    config = parse(sys.argv[1:])
    device = torch.device(config.device)
    torch.manual_seed(0)
    bench = Bench(config, device)
    whole = bench.whole_step()
    peak = bench.peak()
    parts = bench.parts()
    work = bench.work()
    rates = {"copy GB/s": copy_rate(device) / 1e9, "matrix TFLOP/s": matrix_rate(device, bench.dtype) / 1e12}
    floor, fused_floor = (work.seconds(rates, fused) for fused in (False, True))
    slowest = max(parts, key=lambda name: parts[name])
    share = parts[slowest] / sum(parts.values())
    if device.type == "cuda":  # a CPU is its own host
        parts["host"] = bench.host()
        if parts["host"] > 0.9 * whole:
            slowest, share = "host", parts["host"] / whole
    epochs = (config.trainer or {}).get("max_epochs") or 1
    seconds = whole * len(bench.loader)
    found = {
        "ms a step": 1e3 * whole,
        "views/s": bench.n_views / whole,
        **{f"{name} ms": 1e3 * value for name, value in parts.items()},
        "data, copy and views, share": sum(parts[name] for name in ("data", "copy", "views")) / whole,
        "floor ms": 1e3 * floor,
        "fused floor ms": 1e3 * fused_floor,
        "floor / step": floor / whole,
        "TFLOP": sum(flop for flop, _, _ in work.operations) / 1e12,
        "GB": sum(moved for _, moved, _ in work.operations) / 1e9,
        **rates,
        **({"waits": work.waits} if device.type == "cuda" else {}),  # a CPU never waits for itself
        "peak MB": peak / 1e6,
        "s an epoch": seconds,
        "min a run": epochs * seconds / 60,
    }
    told = (
        f"{slowest} takes {share:.0%} of the step: the knob is {KNOBS[slowest]}; "
        f"the whole runs at {floor / whole:.0%} of the rate of its floor."
    )
    where = machine(device.type, torch.get_num_threads())
    about = f"{' '.join(sys.argv[1:])}; {where}; torch {torch.__version__}; {date.today()}"
    lines = [
        about,
        "",
        "| | |",
        "|---|---|",
        *[f"| {name} | {value:,.4g} |" for name, value in found.items()],
        "",
        told,
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if config.out:
        Path(f"{config.out}.md").write_text("\n".join(lines) + "\n")
        Path(f"{config.out}.json").write_text(json.dumps({"about": about, "told": told, **found}, indent=1) + "\n")


def parse(args: list[str]) -> Any:
    """The configs and flags of a fit; `--device`, `--out` and `--seconds` are the benchmark's."""
    parser = ArgumentParser(allow_abbrev=False)
    parser.add_argument("-c", "--config", action="config")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=str | None, default=None, help="of the files, without their ending")
    parser.add_argument("--seconds", type=float, default=20.0, help="for the whole step, and again for its parts")
    parser.add_argument("--trainer", type=dict | None, default=None)
    for other in (
        "seed_everything",
        "online_probe",
        "online_knn",
        "rank_monitor",
        "progressive_resolution",
        "best_checkpoint",
        "last_checkpoint",
    ):
        parser.add_argument(f"--{other}", type=Any, default=None)
    parser.add_subclass_arguments(MultiViewModule, "model")
    parser.add_subclass_arguments(MultiViewDataModule, "data")
    parsed = parser.parse_args(expand(["fit", *args])[1:])
    return parser.instantiate(parsed)


class Bench:
    """A module, its data and the step that a trainer would take, in plain PyTorch."""

    def __init__(self, config: Any, device: torch.device) -> None:
        for name in ("msssl", "lightning.pytorch"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.device, self.seconds = device, config.seconds
        self.data: MultiViewDataModule = config.data
        torch.backends.cudnn.benchmark = bool((config.trainer or {}).get("benchmark"))
        accelerator = "gpu" if device.type == "cuda" else device.type
        # For its device, on which images may stay.
        self.data.trainer = Trainer(accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False)
        self.data.setup("fit")
        self.loader = self.data.train_dataloader()
        self.module: MultiViewModule = config.model.to(device).train()
        self.module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer
        self.module._device = device
        self.module.configure_model()
        configured: Any = self.module.configure_optimizers()
        self.optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
        half = device.type == "cuda" and "bf16" in str((config.trainer or {}).get("precision"))
        self.dtype = torch.bfloat16 if half else torch.float32
        self.probe = torch.nn.Linear(self.module.feature_dim, self.data.num_classes or 10).to(device)
        self.probe_optimizer = torch.optim.AdamW(self.probe.parameters(), fused=True)
        self.n_views = 0
        steps = self.steps()
        for _ in range(5):  # compiles, caches, makes the optimizer's state
            next(steps)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def batches(self) -> Iterator[Any]:
        """Batches without end."""
        for epoch in count():
            self.loader.epoch = lambda epoch=epoch: epoch  # type: ignore[misc]
            yield from self.loader

    def steps(self, mark: Callable[[str], None] = lambda part: None) -> Iterator[None]:
        """Steps without end; `mark` is called after each part."""
        module = self.module
        autocast = torch.autocast(self.device.type, self.dtype) if self.dtype != torch.float32 else nullcontext()
        for batch in self.batches():
            mark("data")
            moved = {
                name: x.to(self.device, non_blocking=True) if torch.is_tensor(x) else x for name, x in batch.items()
            }
            mark("copy")
            moved = self.data.on_after_batch_transfer(moved)
            mark("views")
            groups = moved["views"] if isinstance(moved["views"], list) else [moved["views"]]
            self.n_views = sum(len(group.flatten(0, 1)) for group in groups)
            with autocast:
                encode: Any = module._compiled or module
                parts = [features_of(encode, group, module.chunk_views, module.backbone) for group in groups]
                features = torch.cat(parts)
                z = module.projector(features.flatten(0, 1)).unflatten(0, features.shape[:2])
                mark("forward")
                loss = module.terms(z)["loss"]
            mark("loss")
            self.optimizer.zero_grad()
            loss.backward()
            mark("backward")
            self.optimizer.step()
            mark("optimizer")
            logits = self.probe(features.detach().float().flatten(0, 1))
            labels = moved["label"].clamp(min=0).repeat(len(features))
            F.cross_entropy(logits, labels).backward()
            self.probe_optimizer.step()
            self.probe_optimizer.zero_grad()
            mark("probe")
            yield

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def whole_step(self) -> float:
        """Seconds of a step, without waits in between."""
        steps, times = self.steps(), []
        began = perf_counter()
        while perf_counter() - began < self.seconds or len(times) < 5:
            self.wait()
            start = perf_counter()
            for _ in range(5):
                next(steps)
            self.wait()
            times.append((perf_counter() - start) / 5)
        return median(times)

    def parts(self) -> dict[str, float]:
        """Median seconds of each part, waiting after each."""
        times: dict[str, list[float]] = {name: [] for name in KNOBS if name != "host"}
        last = perf_counter()

        def mark(part: str) -> None:
            nonlocal last
            self.wait()
            now = perf_counter()
            times[part].append(now - last)
            last = now

        began = perf_counter()
        for _ in self.steps(mark):
            if perf_counter() - began > self.seconds:
                break
            last = perf_counter()
        return {name: median(found[1:] or found) for name, found in times.items()}

    def host(self) -> float:
        """Seconds until a step is given to the device, which then has still to do it."""
        steps, times = self.steps(), []
        for _ in range(20):
            self.wait()
            start = perf_counter()
            next(steps)
            times.append(perf_counter() - start)
        return median(times)

    def work(self) -> "Work":
        """What one step computes, moves and waits for."""
        steps = self.steps()
        next(steps)
        with Work() as work, uncompiled(self.module):
            next(steps)
        return work

    def peak(self) -> int:
        """Bytes that were in use together: on the device, or of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def uncompiled(module: MultiViewModule) -> Iterator[None]:
    """Its operations one by one, as they can be counted."""
    compiled, module._compiled = module._compiled, None
    try:
        yield
    finally:
        module._compiled = compiled


class Work(TorchDispatchMode):
    """Counts arithmetic and bytes of each operation, and those for whose result Python waits."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[int, int, bool]] = []  # FLOP, bytes, whether pointwise
        self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count."""
        out = func(*args, **(kwargs or {}))
        self.waits += func.name().partition(".")[0] in WAITS and args[0].is_cuda
        if not func.is_view:
            count_flops = flop_registry.get(func.overloadpacket)
            flops = count_flops(*args, **(kwargs or {}), out_val=out) if count_flops else 0
            seen: Any = (args, kwargs, out)
            if func.name().partition(".")[0] in PICKS:
                seen = (args[1:], out, out)  # of the source only what is picked
            elif out is None:  # what it writes into it reads too
                seen = (args, kwargs, [a for a, of in zip(args, func._schema.arguments, strict=False) if writes(of)])
            tensors = [x for x in tree_iter(seen) if isinstance(x, torch.Tensor)]
            moved = sum(x.numel() * x.element_size() for x in tensors)
            self.operations.append((flops, moved, torch.Tag.pointwise in func.tags))
        return out

    def seconds(self, rates: dict[str, float], fused: bool) -> float:
        """The floor of all operations, or of those that are not pointwise."""
        flops_per_s, bytes_per_s = 1e12 * rates["matrix TFLOP/s"], 1e9 * rates["copy GB/s"]
        return sum(
            max(flops / flops_per_s, moved / bytes_per_s)
            for flops, moved, pointwise in self.operations
            if not (fused and pointwise)
        )


def writes(argument: Any) -> bool:
    """Whether an operation writes into an argument of its schema."""
    return argument.alias_info is not None and argument.alias_info.is_write


if __name__ == "__main__":
    main()
