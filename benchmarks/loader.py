"""Images per second of one core, memory and start of each storage, beside a DataLoader of PIL images and FFCV.

    python benchmarks/loader.py                            # about 5 minutes
    python benchmarks/loader.py --folder data --sparse_gb 4

Every loader makes shuffled batches of 256 uint8 images (N, 3, H, W) in its own process, without workers and with one
thread of torch. FFCV reads ahead in a thread, so the rate of one core is over the processor time of the whole process.
The table and a JSON file go to benchmarks/results/, unless there are fewer images than by default.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from jsonargparse import auto_cli
from machine import keep_freed_memory, machine
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder as TorchvisionFolder
from torchvision.transforms import v2

from msssl.data import ImageFolder
from msssl.data.loaders import TrainLoader
from msssl.data.pixels.decode import Decoded, usable_cores
from msssl.data.pixels.images import Images
from msssl.data.pixels.storage import StorageKind
from msssl.data.sets.find_images import list_images

try:
    import ffcv
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.reader import Reader
    from ffcv.transforms import ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter
except (ImportError, OSError):  # OSError: without the libraries that it links
    ffcv = None

BATCH = 256
N_SMALL, N_LARGE = 10_000, 2 * BATCH
Epoch = Callable[[], Iterator[Tensor]]  # the image batches of one


class Data(NamedTuple):
    """Images in `folder/train/<class>/`, of `pixels`, wanted as squares of `size` pixels."""

    folder: Path
    pixels: str
    size: int

    @property
    def large(self) -> bool:
        """Whether the images are larger than these squares."""
        return self.pixels != f"{self.size}x{self.size}"


def texture(height: int, width: int, generator: torch.Generator) -> Image.Image:
    """Noise of every scale, as strong at each as makes JPEGs of the size of photographs."""
    pixels = torch.full((1, 3, height, width), 0.5)
    for cells in (2**power for power in range(1, height.bit_length())):
        noise = torch.randn(1, 3, cells, cells * width // height, generator=generator)
        pixels += 0.25 * cells**-0.36 * interpolate(noise, size=(height, width), mode="bicubic")
    return v2.functional.to_pil_image(pixels[0].clamp(0, 1))


def write_jpegs(data: Data, n_images: int) -> None:
    """Textures as JPEGs in ten classes, and the small ones as one array beside them."""
    generator = torch.Generator().manual_seed(0)
    width, height = map(int, data.pixels.split("x"))
    for index in range(n_images):
        folder = data.folder / "train" / str(index % 10)
        folder.mkdir(parents=True, exist_ok=True)
        texture(height, width, generator).save(folder / f"{index:05d}.jpg", quality=90)
    if not data.large:
        paths, _ = list_images(data.folder / "train")
        np.save(data.folder / "pixels.npy", np.stack([np.asarray(Image.open(path)) for path in paths]))


class PilInMemory(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Arrays that become PIL images one by one, as torchvision's CIFAR10 does it."""

    def __init__(self, path: Path) -> None:
        self.data = np.load(path)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return v2.functional.pil_to_tensor(Image.fromarray(self.data[index])), 0


def images_of(loader: Any) -> Epoch:
    """An epoch of a loader of (images, labels)."""
    return lambda: (batch[0] for batch in loader)


def pil_in_memory(data: Data) -> Epoch:
    """DataLoader of PIL images of an array."""
    return images_of(DataLoader(PilInMemory(data.folder / "pixels.npy"), BATCH, shuffle=True, drop_last=True))


def pil_of_files(data: Data) -> Epoch:
    """DataLoader of PIL images of files."""
    square = v2.Compose([v2.Resize(data.size), v2.CenterCrop(data.size), v2.PILToTensor()])
    transform = square if data.large else v2.functional.pil_to_tensor
    dataset = TorchvisionFolder(str(data.folder / "train"), transform)
    return images_of(DataLoader(dataset, BATCH, shuffle=True, drop_last=True))


def module(folder: Path | str, storage: StorageKind, **kwargs: Any) -> ImageFolder:
    """Our data module, all training images in use."""
    return ImageFolder(str(folder), storage=storage, batch_size=BATCH, val_fraction=0.0, **kwargs)


def ours(storage: StorageKind, data: Data) -> Epoch:
    """A storage of ours."""
    images = module(data.folder, storage, image_size=data.size, num_workers=0)
    images.setup()
    loader = images.train_dataloader()
    return lambda: (batch["image"] for batch in loader)


def write_beton(path: Path, mode: str, data: Data) -> None:
    """FFCV's file: squares if raw, else whole images."""
    squares = module(data.folder, "stream", image_size=data.size).dataset("train")
    dataset = squares if mode == "raw" else TorchvisionFolder(str(data.folder / "train"))
    fields = {"image": RGBImageField(write_mode=mode, jpeg_quality=90), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(dataset)


def of_ffcv(mode: str, data: Data) -> Epoch:
    """FFCV on its file, which is written where there is none."""
    path = data.folder / f"{mode}.beton"
    if not path.is_file():
        write_beton(path, mode, data)
    crop = mode == "jpg" and data.large
    decoder = CenterCropRGBImageDecoder((data.size, data.size), 1.0) if crop else SimpleRGBImageDecoder()
    order = np.random.default_rng(0).permutation(int(Reader(str(path)).num_samples))
    loader = Loader(
        str(path),
        BATCH,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        # Twenty batches at least: each epoch starts a thread and allocates its buffers anew.
        indices=np.resize(order, max(len(order), 20 * BATCH)),
        pipelines={"image": [decoder, ToTensor(), ToTorchImage()]},
    )
    # FFCV overwrites its batches, and has them channels last.
    return lambda: (batch[0].clone(memory_format=torch.contiguous_format) for batch in loader)


PIL_IN_MEMORY, PIL_OF_FILES = "DataLoader, PIL in memory", "DataLoader, PIL of files"
OPENERS: dict[str, Callable[[Data], Epoch]] = {
    PIL_IN_MEMORY: pil_in_memory,
    PIL_OF_FILES: pil_of_files,
    **{f"ours, {kind}": partial(ours, kind) for kind in ("memory", "cached", "stream")},
    **{f"FFCV, {mode}": partial(of_ffcv, mode) for mode in ("raw", "jpg")},
}


def private_mb() -> float:
    """Private memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024 / 1e6


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns in a process of its own, whose memory and caches are its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(function, *args).result()


def start(name: str, data: Data) -> tuple[float, Epoch, Iterator[Tensor]]:
    """Seconds until the first batch is there, the loader, and the rest of its first epoch."""
    begin = perf_counter()
    epoch = OPENERS[name](data)
    batches = epoch()
    first = next(batches)
    seconds = perf_counter() - begin
    assert first.shape == (BATCH, 3, data.size, data.size), first.shape
    assert first.is_contiguous()
    return seconds, epoch, batches


def first_start(name: str, data: Data) -> float:
    """Seconds until the first batch is there, whatever has to be built."""
    return start(name, data)[0]


def rates(epoch: Epoch, at_least: float) -> tuple[float, float]:
    """Images per second of processor time, and of time, over whole epochs of so many seconds."""
    n_images, begin, begin_cpu = 0, perf_counter(), process_time()
    while perf_counter() - begin < at_least:
        n_images += sum(len(batch) for batch in epoch())
    return n_images / (process_time() - begin_cpu), n_images / (perf_counter() - begin)


def second_start(name: str, data: Data, at_least: float) -> dict[str, float]:
    """Start, private memory and rates where all is built."""
    before = private_mb()
    seconds, epoch, rest = start(name, data)
    started = private_mb()
    peak = max([started, *(private_mb() for _ in rest)])
    runs = [rates(epoch, at_least) for _ in range(3)]
    per_core, per_second = (median(each) for each in zip(*runs, strict=True))
    memory = {"start MB": started - before, "epoch MB": peak - started}
    return {"images/s/core": per_core, "images/s": per_second, **memory, "second start s": seconds}


def measure(data: Data, at_least: float) -> list[dict[str, Any]]:
    """A row for each loader."""
    names = [name for name in OPENERS if not data.large or name != PIL_IN_MEMORY]  # which large ones do not fit
    rows: dict[str, dict[str, Any]] = {name: {"pixels": data.pixels, "loader": name} for name in names}
    for name, row in rows.items():
        if ffcv is not None or not name.startswith("FFCV"):
            row["first start s"] = apart(first_start, name, data)
            row |= apart(second_start, name, data, at_least)
    for row in rows.values():
        for key, rival in (("x PIL memory", PIL_IN_MEMORY), ("x PIL files", PIL_OF_FILES)):
            if rival in rows and "images/s/core" in row:
                row[key] = row["images/s/core"] / rows[rival]["images/s/core"]
        print(line(row), flush=True)  # noqa: T201
    return list(rows.values())


def open_cached(folder: str, cache_dir: str) -> float:
    """Seconds to open the caches of all splits, built by all cores where there are none."""
    begin = perf_counter()
    images = module(folder, "cached", cache_dir=cache_dir, num_workers=usable_cores())
    images.setup()
    for split in images.splits:
        images.images(split)
    return perf_counter() - begin


def decode_file(path: str) -> None:
    """Decode by PIL alone."""
    v2.functional.pil_to_tensor(Image.open(path).convert("RGB"))


def build(folder: str) -> dict[str, Any]:
    """Seconds to build the caches, to open them again, and for bare PIL to decode the files in as many processes."""
    runs = []
    paths, _ = list_images(folder)
    for _ in range(3):
        with TemporaryDirectory() as cache_dir:
            ours = [apart(open_cached, folder, cache_dir) for _ in ("build", "open")]
        begin = perf_counter()
        with get_context("fork").Pool(usable_cores()) as pool:
            pool.map(decode_file, paths, chunksize=256)
        runs.append((*ours, perf_counter() - begin))
    built, opened, pil = (median(each) for each in zip(*runs, strict=True))
    times = {"build s": built, "PIL s": pil, "x": pil / built, "second start s": opened}
    return {"files": len(paths), "cores": usable_cores(), **times}


def sparse_growth(n_bytes: int) -> float:
    """Growth of private memory in MB over an epoch of a mapped set of so many bytes, which take no disk."""
    shape = (n_bytes // (3 * 32 * 32), 3, 32, 32)
    with TemporaryDirectory() as folder:
        path = Path(folder, "images.npy")
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            file.truncate(file.tell() + int(np.prod(shape)))
        mapped = torch.from_numpy(np.load(path, mmap_mode="c"))
        decoded = Decoded(mapped, torch.zeros(len(mapped), dtype=torch.long), {})
        images = Images(decoded, torch.arange(len(mapped)), "sparse")
        before = private_mb()
        return max(private_mb() for _ in TrainLoader(images, BATCH, seed=0, epoch=lambda: 0)) - before


COLUMNS = {
    "images/s/core": ",.0f",
    "x PIL memory": ".2f",
    "x PIL files": ".2f",
    "images/s": ",.0f",
    "start MB": ".0f",
    "epoch MB": ".0f",
    "first start s": ".2f",
    "second start s": ".2f",
}


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    missing = "-" if "images/s" in row else "not installed"
    cells = [format(row[key], how) if key in row else missing for key, how in COLUMNS.items()]
    return f"| {' | '.join([row['pixels'], row['loader'], *cells])} |"


HEAD = """# Loaders: shuffled batches of {batch} uint8 images, without workers

{machine}; {versions}; {date}. Median of 3 runs of {seconds:g} s or more, files in the page cache; JPEGs, of 500x375
squares of 160 px are read. `images/s/core` is over processor time, `images/s` over time; `x` is the former divided by
that of a DataLoader of PIL images, in memory or of files. A start is the time to the first batch; FFCV compiles in it.
`start MB` is the growth of private memory (RssAnon) in a second start, `epoch MB` the growth after it, at most, over an
epoch. glibc keeps freed memory, for all rivals. `python benchmarks/loader.py`
"""
BUILD = (
    "`cached` of {files:,} files by {cores} processes: built in {build s:.2f} s, bare PIL decodes in {PIL s:.2f} s "
    "(x {x:.2f}); opened again in {second start s:.2f} s."
)
SPARSE = "Private memory over an epoch of a `cached` set of {GB:g} GB, 32x32: {MB:.0f} MB more, at most."


def table(about: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The page: what was measured, where, and the rows."""
    head = f"| pixels | loader | {' | '.join(COLUMNS)} |\n{'|---' * (2 + len(COLUMNS))}|"
    text = "\n".join([HEAD.format(**about), head, *map(line, rows), "", BUILD.format(**about["build"]), ""])
    return text + ("\n" + SPARSE.format(**about["sparse"]) + "\n" if "sparse" in about else "")


def main(
    n_small: int = N_SMALL,
    n_large: int = N_LARGE,
    seconds: float = 1.0,
    folder: str | None = None,
    sparse_gb: float = 0.0,
    out: str = "benchmarks/results/loader-cpu",
) -> None:
    """Measure, print the table and write it.

    Args:
        n_small: JPEGs of 32 x 32 pixels.
        n_large: JPEGs of 500 x 375 pixels.
        seconds: that each of three repetitions takes at least.
        folder: of images, for the build of `cached`; by default the small JPEGs.
        sparse_gb: size of a set whose growth of private memory is measured; 0 for none.
        out: path without suffix of the two files.
    """
    keep_freed_memory()
    torch.set_num_threads(1)
    found = f"ffcv {version('ffcv')}" if ffcv else "without FFCV"
    about: dict[str, Any] = {
        "machine": machine("cpu", 1),
        "date": str(date.today()),
        "versions": f"torch {torch.__version__}, pillow {PIL.__version__}, {found}",
        "seconds": seconds,
        "batch": BATCH,
    }
    with TemporaryDirectory() as scratch:
        sets = [Data(Path(scratch, "small"), "32x32", 32), Data(Path(scratch, "large"), "500x375", 160)]
        for data, n_images in zip(sets, (n_small, n_large), strict=True):
            apart(write_jpegs, data, n_images)
        rows = [row for data in sets for row in measure(data, seconds)]
        about["build"] = build(folder or str(sets[0].folder))
    if sparse_gb:
        about["sparse"] = {"GB": sparse_gb, "MB": apart(sparse_growth, int(1e9 * sparse_gb))}
    page = table(about, rows)
    print(page)  # noqa: T201
    if n_small >= N_SMALL and n_large >= N_LARGE:
        path = Path(f"{out}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
        path.with_suffix(".md").write_text(page)


if __name__ == "__main__":
    auto_cli(main)
