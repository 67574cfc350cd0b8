"""Images per second of whole training steps, from image to optimizer: ours, lightly's and plain PyTorch, in one run.

    python benchmarks/side_by_side.py                                               # CPU: about 20 minutes
    python benchmarks/side_by_side.py --device cuda --width 64 --low_resolution '[true]' --n_images 256 \
        --num_workers 16 --out benchmarks/results/side-by-side-cuda

All train one network with Adam on the same images in memory, with the recipe `cifar`; on CUDA in bf16.
stable-pretraining joins where it is installed, which puts its callbacks into every Trainer: ours are left out there.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable
from datetime import date
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain, combinations, product, repeat
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from jsonargparse import auto_cli
from lightly.loss import BarlowTwinsLoss  # type: ignore[import-untyped]
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightning import Callback, Trainer
from machine import machine
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2

from msssl import BarlowTwins, MultiView, MultiViewDataModule, ResNet, Shapes
from msssl.losses import barlow_twins_loss
from msssl.views.presets import PRESETS

SIZE = 32
EPOCH = 80  # batches
MEAN, STD = PRESETS["cifar"].mean, PRESETS["cifar"].std
COLUMNS = ("depth", "width", "stem", "K", "D", "N", "rival", "ms a step", "images/s", "views/s", "x lightly")


class Setting(NamedTuple):
    """What the rivals train, and on what."""

    depth: int
    width: int
    low_resolution: bool
    n_views: int
    proj_dim: int
    n_images: int
    num_workers: int
    device: str


class Clock(Callback):
    """Checks the first step, then times blocks of at least 4 steps and half a second.

    The first block does not count: it compiles, starts workers and fills their queues.
    """

    def __init__(self, setting: Setting, seconds: float) -> None:
        self.shapes = [(setting.n_images, 3, SIZE, SIZE)] * setting.n_views
        self.seconds = seconds
        self.blocks: list[float] = []  # seconds a step
        self.steps = 0
        self.start = self.began = perf_counter()

    def is_over(self, views: Iterable[Tensor], loss: Tensor) -> bool:
        """Count a step; whether it was the last."""
        if not self.blocks and self.steps == 0:
            assert [view.shape for view in views] == self.shapes, "not K views of N images"
            assert loss.isfinite(), "a loss that is not finite"
        self.steps += 1
        if self.steps < 4 or perf_counter() - self.start < 0.5:
            return False
        if loss.is_cuda:
            torch.cuda.synchronize()
        now = perf_counter()
        if not self.blocks:
            self.began = now
        self.blocks.append((now - self.start) / self.steps)
        self.start, self.steps = now, 0
        return len(self.blocks) > 2 and now - self.began > self.seconds

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        """The same in a trainer."""
        trainer.should_stop = self.is_over(batch["views"], outputs["loss"])


Rival = Callable[[Setting, Clock], None]
Step = Callable[[Any], tuple[Iterable[Tensor], Tensor]]  # from a batch to its views and their loss


@cache
def images(n: int) -> TensorDataset:
    """Images that all rivals train on, uint8, with labels."""
    return Shapes(train_images=n, image_size=SIZE).dataset("train")  # type: ignore[return-value]


def ours(setting: Setting, compile: bool) -> tuple[BarlowTwins, MultiViewDataModule]:
    """Our module and data, with the defaults of a script."""
    torch.manual_seed(0)
    backbone = ResNet(setting.depth, setting.width, setting.low_resolution)
    views = MultiView(setting.n_views, "cifar", compile=compile)
    data = MultiViewDataModule.from_datasets(
        images(EPOCH * setting.n_images), batch_size=setting.n_images, num_workers=0, val_fraction=0.0, views=views
    )
    return BarlowTwins(backbone=backbone, proj_dim=setting.proj_dim, compile=compile), data


def fitted(setting: Setting, clock: Clock, compile: bool) -> None:
    """Ours in the trainer of `msssl fit`, without the online probe, which the others lack."""
    module, data = ours(setting, compile)
    trainer = Trainer(
        accelerator=setting.device,
        devices=1,
        precision="bf16-mixed" if setting.device == "cuda" else "32-true",
        max_epochs=-1,
        callbacks=[clock],
        logger=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    assert not compile or (module._compiled and module._compiled.is_compiled), "the backbone was not compiled"
    assert not compile or data.views._compiled.is_compiled, "the views were not compiled"


def parts(setting: Setting, clock: Clock) -> None:
    """Ours in a plain loop."""
    module, data = ours(setting, compile=False)
    module.to(setting.device)
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer
    data.setup("fit")

    def step(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        moved = {k: x.to(setting.device, non_blocking=True) if torch.is_tensor(x) else x for k, x in batch.items()}
        moved = data.on_after_batch_transfer(moved)
        with autocast(setting):
            return moved["views"], module.training_step(moved, 0)["loss"]

    train(clock, data.train_dataloader(), module, step)


def of_lightly(setting: Setting, clock: Clock) -> None:
    """The transform and loss of lightly, as its documentation uses them: the model sees one view after the other."""
    module, criterion = network(setting), BarlowTwinsLoss(lambda_param=5 / setting.proj_dim)

    def step(batch: Any) -> tuple[list[Tensor], Tensor]:
        views = [view.to(setting.device, non_blocking=True) for view in batch[0]]
        with autocast(setting):
            return views, over_pairs(module, views, criterion)

    train(clock, pil_loader(setting), module, step)


def plain(setting: Setting, clock: Clock) -> None:
    """The same transforms, but all views in one batch, and the loss of the mean view."""
    module = network(setting)

    def step(batch: Any) -> tuple[Tensor, Tensor]:
        views = torch.stack(batch[0]).to(setting.device, non_blocking=True)
        with autocast(setting):
            z = module(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        return views, barlow_twins_loss(z.float(), beta=5 / setting.proj_dim)["loss"]

    train(clock, pil_loader(setting), module, step)


def of_stable_pretraining(setting: Setting, clock: Clock) -> None:
    """stable-pretraining's batched transforms and its loss, one view after the other as in its methods."""
    from stable_pretraining.data import gpu_transforms as gt  # type: ignore[import-not-found]
    from stable_pretraining.losses import BarlowTwinsLoss  # type: ignore[import-not-found]

    module, criterion = network(setting), BarlowTwinsLoss(lambd=5 / setting.proj_dim)
    crop, flip = gt.GPURandomResizedCrop(SIZE, scale=(0.08, 1.0)), gt.GPURandomHorizontalFlip()
    colour = [gt.GPUColorJitter(0.4, 0.4, 0.4, p=0.8), gt.GPURandomGrayscale(p=0.2)]
    recipe = gt.GPUCompose([crop, flip, *colour, gt.GPUNormalize(MEAN, STD)])
    multi_view = gt.StackedMultiView(recipe, n_views=setting.n_views).to(setting.device)

    def step(batch: Any) -> tuple[list[Tensor], Tensor]:
        pixels, label = (x.to(setting.device, non_blocking=True) for x in batch)
        made = multi_view({"image": pixels.float() / 255, "label": label})
        views = [view["image"] for view in made["views"]]
        with autocast(setting):
            return views, over_pairs(module, views, criterion)

    train(clock, loader(setting, images(EPOCH * setting.n_images)), module, step)


def network(setting: Setting) -> nn.Module:
    """Backbone and projector of `ours`, with the same weights."""
    torch.manual_seed(0)
    backbone, dim = ResNet(setting.depth, setting.width, setting.low_resolution), setting.proj_dim
    hidden = nn.Linear(backbone.num_features, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True)
    return nn.Sequential(backbone, *hidden, nn.Linear(dim, dim)).to(setting.device)


def over_pairs(module: nn.Module, views: list[Tensor], criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A loss of two views, averaged over all pairs."""
    z = [module(view) for view in views]
    return torch.stack([criterion(a, b) for a, b in combinations(z, 2)]).mean()


class PILImages(Dataset[Any]):
    """Images as torchvision's data sets hand them out."""

    def __init__(self, images: TensorDataset, transform: Callable[[Image.Image], Any]) -> None:
        self.pixels = images.tensors[0].permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = images.tensors[1].tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def pil_loader(setting: Setting) -> DataLoader[Any]:
    """Batches of K views, each a tensor (N, 3, H, W), that the workers make with torchvision's transforms."""
    recipe = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, scale=(0.08, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return loader(setting, PILImages(images(EPOCH * setting.n_images), MultiViewTransform([recipe] * setting.n_views)))


def loader(setting: Setting, dataset: Dataset[Any]) -> DataLoader[Any]:
    """Shuffled batches."""
    return DataLoader(
        dataset,
        batch_size=setting.n_images,
        shuffle=True,
        drop_last=True,
        num_workers=setting.num_workers,
        persistent_workers=setting.num_workers > 0,
        pin_memory=setting.device == "cuda",
    )


def autocast(setting: Setting) -> torch.autocast:
    """As `bf16-mixed` on CUDA."""
    return torch.autocast(setting.device, torch.bfloat16, enabled=setting.device == "cuda")


def train(clock: Clock, batches: Iterable[Any], module: nn.Module, step: Step) -> None:
    """A plain loop, until the time is up."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, weight_decay=1e-6)
    for batch in chain.from_iterable(repeat(batches)):
        views, loss = step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if clock.is_over(views, loss):
            break


def rivals() -> dict[str, Rival]:
    """By name."""
    found: dict[str, Rival] = {"msssl's parts, plain loop": parts, "lightly": of_lightly, "plain PyTorch": plain}
    if find_spec("stable_pretraining"):
        sys.stderr.write("stable-pretraining is installed: without msssl's rows in a Trainer\n")
        return {**found, "stable-pretraining": of_stable_pretraining}
    sys.stderr.write("stable-pretraining is not installed: without its row\n")
    return {"msssl": partial(fitted, compile=False), "msssl, compiled": partial(fitted, compile=True), **found}


def measure(setting: Setting, found: dict[str, Rival], seconds: float, repeats: int) -> list[dict[str, Any]]:
    """A row for each rival."""
    torch.compiler.reset()  # else other shapes become dynamic ones
    weights = zip(ours(setting, False)[0].parameters(), network(setting).cpu().parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights), "not the same network"
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(repeats):
        for name, rival in found.items():
            rival(setting, clock := Clock(setting, seconds))
            times[name].append(median(clock.blocks[1:]))
    rows = []
    for name, medians in times.items():
        best = min(medians)
        stem = "3x3" if setting.low_resolution else "7x7"
        head = (setting.depth, setting.width, stem, setting.n_views, setting.proj_dim, setting.n_images, name)
        rates = (1e3 * best, setting.n_images / best, setting.n_images * setting.n_views / best)
        row = dict(zip(COLUMNS, (*head, *rates, min(times["lightly"]) / best), strict=True))
        rows.append({**row, "ms of each repeat": [1e3 * seconds_a_step for seconds_a_step in medians]})
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [row[name] for name in COLUMNS]
    numbers = [format(cell, how) for cell, how in zip(cells[7:], (".1f", ",.0f", ",.0f", ".2f"), strict=True)]
    return f"| {' | '.join([*map(str, cells[:7]), *numbers])} |"


def main(
    device: str = "cpu",
    depths: tuple[int, ...] = (18,),
    width: int = 16,
    low_resolution: tuple[bool, ...] = (True, False),
    n_views: tuple[int, ...] = (2, 4, 8),
    proj_dims: tuple[int, ...] = (256,),
    n_images: int = 64,
    seconds: float = 8.0,
    repeats: int = 2,
    num_workers: int = 2,
    only: tuple[str, ...] = (),
    out: str = "benchmarks/results/side-by-side-cpu",
) -> None:
    """Measure, print the table and write it.

    Args:
        device: cpu or cuda.
        depths: of the ResNet.
        width: of the ResNet.
        low_resolution: whether with the stem for small images (3x3), each with all that follows.
        n_views: K.
        proj_dims: D; at 8192 on a CPU, all pairs take minutes and gigabytes.
        n_images: N; the set has 80 such batches.
        seconds: for each rival and repeat.
        repeats: of all rivals, in turn; the best median counts.
        num_workers: of the rivals' loaders; ours, in memory, has none.
        only: names of the rivals to measure beside lightly; all if none is given.
        out: of the files, without their ending.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    for name in ("lightning.pytorch", "msssl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    settings = product(depths, (width,), low_resolution, n_views, proj_dims, (n_images,), (num_workers,), (device,))
    found = {name: rival for name, rival in rivals().items() if not only or name in (*only, "lightly")}
    rows: list[dict[str, Any]] = []
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    sys.stdout.write("\n".join(lines) + "\n")
    for setting in settings:
        for row in measure(Setting(*setting), found, seconds, repeats):
            rows.append(row)
            lines.append(line(row))
            sys.stdout.write(lines[-1] + "\n")
            sys.stdout.flush()
    packages = ["torch", "lightning", "lightly", *(["stable-pretraining"] if "stable-pretraining" in found else [])]
    about = (
        f"Whole steps of Barlow Twins at {SIZE} px: median block of steps of {seconds:g} s, in the best of {repeats} "
        f"runs in turn; {num_workers} workers for the rivals; {machine(device, torch.get_num_threads())}; "
        f"{', '.join(f'{name} {version(name)}' for name in packages)}; {date.today()}; `benchmarks/side_by_side.py`. "
        "Stem 7x7 is ImageNet's, 3x3 that for small images; `msssl` is a Trainer as `msssl fit` has it, without the "
        "online probe."
    )
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(f"{out}.md").write_text("\n".join([about, "", *lines]) + "\n")
    Path(f"{out}.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    auto_cli(main)
