"""Time of K views of N images: ours, stock Kornia and torchvision, in one run.

    python benchmarks/views.py                    # CPU, one thread: about 4 minutes
    python benchmarks/views.py --device cuda      # also checks that a step never waits for the device
    python benchmarks/views.py --hue 0 --sizes '[32]' --out benchmarks/results/views-no-hue   # the preset as it ships

The recipe is `cifar` with hue 0.1: crop (0.08 to 1), flip, jitter 0.4 / 0.4 / 0.4 / 0.1 at 0.8, grayscale at 0.2. The
preset itself has no hue, for which Kornia converts to HSV and back: most of what it takes.
"host" is the time of the same call on images of 4 x 4 pixels, where arithmetic vanishes: what a GPU waits for.
"""

import functools
import json
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import kornia
import torch
import torchvision
from jsonargparse import auto_cli
from kornia import augmentation as K
from machine import keep_freed_memory, machine
from tensors import Tensors
from torch import Tensor, nn
from torchvision.transforms import v2

from msssl.views import ColorJitterGrayscale, MultiView, RandomResizedCropFlip
from msssl.views.presets import PRESETS

MEAN, STD = PRESETS["cifar"].mean, PRESETS["cifar"].std
Pipeline = Callable[[Tensor], Any]


def stock(size: int, hue: float, **crop: Any) -> nn.Sequential:
    """The recipe in Kornia's modules."""
    return nn.Sequential(
        K.RandomResizedCrop((size, size), scale=(0.08, 1.0), **crop),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, hue, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )


def per_sample(size: int, n_views: int, hue: float) -> Pipeline:
    """The recipe in torchvision v2, image by image, as a DataLoader's worker runs it."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.08, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, hue)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    to_pil = functools.cache(lambda images: [v2.functional.to_pil_image(image) for image in images])  # a set's own job
    return lambda images: torch.stack(
        [torch.stack([transform(image) for image in to_pil(images)]) for _ in range(n_views)]
    )


def pipelines(size: int, n_views: int, hue: float, device: str) -> dict[str, Pipeline]:
    """The rivals, by name."""
    recipe = [RandomResizedCropFlip((size, size)), ColorJitterGrayscale(0.4, 0.4, 0.4, hue, 0.8, 0.2)]
    sliced, resampled = stock(size, hue), stock(size, hue, cropping_mode="resample")
    found: dict[str, Pipeline] = {
        "ours, eager": MultiView(n_views, list(recipe), MEAN, STD, compile=False),
        "ours, compiled": MultiView(n_views, list(recipe), MEAN, STD, compile=True),
        "Kornia, as documented": lambda x: torch.stack([sliced(x.float() / 255) for _ in range(n_views)]),
        "Kornia, at its best": lambda x: resampled((x.float() / 255).repeat(n_views, 1, 1, 1)),
    }
    return found if device == "cuda" else {**found, "torchvision, per sample": per_sample(size, n_views, hue)}


def milliseconds(pipeline: Pipeline, images: Tensor, repeats: int, host: bool = False) -> float:
    """Median time of a call: of the device, by its own clock, or of the host until it is free again.

    One thread of a CPU is measured in processor time, in which other work on the machine shows less.
    """
    times, clock = [], perf_counter if images.is_cuda or torch.get_num_threads() > 1 else process_time
    for _ in range(repeats + 2):  # two to warm up
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if images.is_cuda else []
        start = clock()
        for event in events[:1]:
            event.record()
        pipeline(images)
        for event in events[1:]:
            event.record()
        times.append(1000 * (clock() - start))
        if events:
            torch.cuda.synchronize()
            times[-1] = times[-1] if host else events[0].elapsed_time(events[1])
    return median(times[2:])


def measure(n_images: int, n_views: int, size: int, hue: float, device: str, repeats: int) -> list[dict[str, Any]]:
    """A row for each rival."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n_images, 3, size, size), dtype=torch.uint8, generator=generator).to(device)
    tiny = images[..., :4, :4].contiguous()
    small = pipelines(4, n_views, hue, device)
    rivals = pipelines(size, n_views, hue, device)
    ours: list[Any] = [views for name, views in rivals.items() if name.startswith("ours")]
    torch.testing.assert_close(*(views(images, (0,)) for views in ours), rtol=0, atol=1e-5)
    assert ours[1]._compiled.is_compiled, "nothing was compiled"
    rows = []
    for name, pipeline in rivals.items():
        row: dict[str, Any] = {"pixels": size, "pipeline": name}
        row["ms"] = milliseconds(pipeline, images, 3 if "torchvision" in name else repeats)
        row["views/s"] = n_images * n_views / row["ms"] * 1000
        if "torchvision" not in name:
            row["host ms"] = milliseconds(small[name], tiny, 3 * repeats, host=True)
        if name in ("ours, eager", "Kornia, as documented", "Kornia, at its best"):
            with Tensors() as tensors:
                pipeline(images)
            row["operations"] = tensors.launches
        rows.append(row)
    stock_ms = next(row for row in rows if row["pipeline"] == "Kornia, as documented")
    for row in rows:
        row["x"] = stock_ms["ms"] / row["ms"]
        if "host ms" in row:
            row["host x"] = stock_ms["host ms"] / row["host ms"]
        print(line(row), flush=True)  # noqa: T201
    return rows


def main(
    device: str = "cpu",
    threads: int = 1,
    n_images: int = 256,
    n_views: int = 4,
    hue: float = 0.1,
    sizes: Sequence[int] = (32, 96, 224),
    repeats: int = 10,
    out: str = "benchmarks/results/views",
) -> None:
    """Measure, print the table and write it.

    Args:
        device: cpu or cuda.
        threads: of the CPU.
        n_images: N at 32 pixels; fewer above, for about the same time.
        n_views: K.
        hue: of the jitter; 0 is the preset as it ships.
        sizes: pixels of the images and of the views.
        repeats: calls of which the median is taken.
        out: path without suffix of the two files; the device is appended.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rows = []
    for size in sizes:
        fewer = n_images if device == "cuda" else max(8, n_images * 32**2 // size**2)
        rows += [{"N": fewer, **row} for row in measure(fewer, n_views, size, hue, device, repeats)]
    about = {
        "machine": machine(device, threads),
        "date": str(date.today()),
        "versions": f"torch {torch.__version__}, kornia {kornia.__version__}, torchvision {torchvision.__version__}",
        "K": n_views,
        "hue": hue,
    }
    path = Path(f"{out}-{device}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    header = "| pixels | N | pipeline | ms | views/s | x | host ms | host x | operations |\n" + "|---" * 9 + "|\n"
    head = (
        f"# {n_views} views of N images, hue {hue}, float32\n\n"
        f"{about['machine']}; {about['versions']}; {about['date']}. Median of {repeats} calls; `x` is stock Kornia as "
        "documented (its default crop, one call a view) divided by the row; glibc keeps freed "
        "memory, for all rivals. `python benchmarks/views.py`\n\n"
    )
    path.with_suffix(".md").write_text(head + header + "\n".join(map(line, rows)) + "\n")


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    keys = (
        ("ms", ".1f"),
        ("views/s", ",.0f"),
        ("x", ".2f"),
        ("host ms", ".2f"),
        ("host x", ".1f"),
        ("operations", "d"),
    )
    cells = [format(row[key], how) if key in row else "-" for key, how in keys]
    return "| " + " | ".join([str(row["pixels"]), str(row.get("N", "")), row["pipeline"], *cells]) + " |"


if __name__ == "__main__":
    auto_cli(main)
