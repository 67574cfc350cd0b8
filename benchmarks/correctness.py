"""Whether the fast paths compute the same: losses under autocast, compiled training, a run that is stopped and goes on.

    python benchmarks/correctness.py                     # CPU: 4 minutes, most of it compilation
    python benchmarks/correctness.py --device cuda       # also: that no step waits for the device

It prints a table of the largest relative differences, and exits with 1 where one is above its bound.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from machine import machine
from torch import Tensor

from msssl import MMCR, BarlowTwins, MultiView, MultiViewModule, ResNet, SimCLR, SpectralContrastive, VICReg

METHODS = (BarlowTwins, VICReg, SimCLR, SpectralContrastive, MMCR)


def main(device: str = "cpu", smoke: bool = False, out: str = "benchmarks/results/correctness") -> None:
    """Check, print the table and write it.

    Args:
        device: cpu or cuda.
        smoke: whether to show only that it works: a few steps, without the compiler's code.
        out: of the files, without `-<device>` and ending.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    steps, n_images = (3, 200) if smoke else (20, 1000)
    if smoke:
        torch.compile = partial(torch.compile, backend="aot_eager")
    found = {f"{method.__name__}, bf16 autocast, against float64": loss_error(method, device) for method in METHODS}
    bounds = dict.fromkeys(found, 1e-4)
    if device == "cuda":
        waits = "steps that wait for the device, of 6"
        found[waits], bounds[waits] = count_waits(), 0
    eager = train(device, steps)
    compiled = f"{steps} steps compiled, channels last, against eager: losses"
    found[compiled], bounds[compiled] = difference(train(device, steps, compile=True), eager), 1e-2
    resumed = "a run of the demonstration stopped and resumed, against undisturbed: weights"
    found[resumed], bounds[resumed] = resume_error(device, n_images), 0.0
    lines = ["| what | largest relative difference | bound |", "|---|---|---|"]
    lines += [f"| {name} | {value:.2g} | {bounds[name]:g} |" for name, value in found.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    where = machine(device, torch.get_num_threads())
    about = f"{where}; torch {torch.__version__}; {date.today()}; `benchmarks/correctness.py --device {device}`"
    Path(f"{out}-{device}.md").write_text("\n".join([about, "", *lines]) + "\n")
    Path(f"{out}-{device}.json").write_text(json.dumps({"about": about, "found": found, "bounds": bounds}, indent=1))
    sys.exit(any(not value <= bounds[name] for name, value in found.items()))


def difference(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, as a share of the norm."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def loss_error(method: type[MultiViewModule], device: str) -> float:
    """Of the value or gradient of a loss of bf16 embeddings, against the same numbers in float64."""
    torch.manual_seed(0)
    image = torch.randn(256, 256)
    z = (image + 0.5 * torch.randn(4, 256, 256)).bfloat16().to(device)
    module = method(backbone=torch.nn.Flatten(), feature_dim=1)
    results: list[tuple[Tensor, Tensor]] = []
    for dtype in (torch.float32, torch.float64):
        given = z.to(dtype).requires_grad_()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.float32):
            loss = module.terms(given)["loss"]
        results.append((loss, torch.autograd.grad(loss, given)[0]))
    return max(difference(found.detach(), exact.detach()) for found, exact in zip(*results, strict=True))


def train(device: str, steps: int, compile: bool = False) -> Tensor:
    """The losses of some steps of a narrow ResNet on random images, views compiled or not."""
    torch.manual_seed(0)
    module = BarlowTwins(backbone=ResNet(18, width=16), compile=compile).to(device)
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer
    module.configure_model()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4)
    views = MultiView(4, compile=compile)
    images = torch.randint(256, (32, 3, 32, 32), dtype=torch.uint8, device=device)
    losses = []
    for step in range(steps):
        batch = {"views": views(images, (step,)), "label": torch.zeros(32, dtype=torch.long, device=device)}
        loss = module.training_step(batch, step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert not compile or (module._compiled and module._compiled.is_compiled and views._compiled.is_compiled), (
        "not compiled"
    )
    return torch.stack(losses).cpu()


def count_waits() -> int:
    """How many of some steps of two recipes make the host wait for the GPU, once all is warm."""
    waits = 0
    for recipe in ("cifar", "barlow"):
        views, module = MultiView(4, recipe), BarlowTwins(backbone="resnet18").cuda()
        module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer
        optimizer: Any = module.configure_optimizers()
        images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, device="cuda")
        labels = torch.zeros(len(images), dtype=torch.long, device="cuda")
        for step in range(6):
            torch.cuda.set_sync_debug_mode("error" if step >= 3 else "default")
            try:
                batch = {"views": views(images, (0, 0, step)), "label": labels, "index": labels}
                loss = module.training_step(batch, step)["loss"]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            except RuntimeError as error:
                sys.stderr.write(f"{recipe}: {error}\n")
                waits += 1
            finally:
                torch.cuda.set_sync_debug_mode("default")
    return waits


def resume_error(device: str, n_images: int) -> float:
    """Of the weights of a run that got SIGTERM and went on, against one that was left alone."""
    accelerator = {"cuda": "gpu"}.get(device, device)
    flags = ["--config", "demo.yaml", f"--trainer.accelerator={accelerator}", "--trainer.max_epochs=5"]
    flags += ["--trainer.deterministic=true", "--model.backbone=msssl.ResNet"]
    flags += [
        "--model.backbone=msssl.ResNet",
        "--model.backbone.width=8",
        f"--data.train_images={n_images}",
        "--data.views.augmentations=cifar",
    ]
    with tempfile.TemporaryDirectory() as folder:
        whole, stopped = (Path(folder, name) for name in ("whole", "stopped"))
        msssl(whole, "fit", *flags)
        stop_within(msssl_process(stopped, "fit", *flags), stopped)
        msssl(stopped, "fit", "--ckpt_path", "last")
        found, expected = (weights(each) for each in (stopped, whole))
    return max(difference(found[name], value) for name, value in expected.items() if value.norm() > 0)


def msssl_process(folder: Path, *args: str) -> subprocess.Popen[bytes]:
    """A command line in a folder."""
    folder.mkdir(exist_ok=True)
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    quiet["env"] = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # deterministic
    return subprocess.Popen([sys.executable, "-m", "msssl", *args], cwd=folder, **quiet)


def msssl(folder: Path, *args: str) -> None:
    """The same, to its end."""
    if code := msssl_process(folder, *args).wait():
        raise RuntimeError(f"msssl {' '.join(args)}: exit code {code}")


def stop_within(process: subprocess.Popen[bytes], folder: Path) -> None:
    """SIGTERM after the first logged step."""
    while process.poll() is None and not any(path.stat().st_size for path in folder.glob("runs/*/metrics.csv")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    if process.wait() != 128 + signal.SIGTERM:
        raise RuntimeError("the run was over before it could be stopped")


def weights(folder: Path) -> dict[str, Tensor]:
    """Those at the end of the only run in a folder, floating ones."""
    (path,) = folder.glob("runs/*/last.ckpt")
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if value.is_floating_point()}


if __name__ == "__main__":
    auto_cli(main)
