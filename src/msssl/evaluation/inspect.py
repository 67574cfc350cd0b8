"""`msssl inspect`: what a run will see, before it is paid for."""

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torchvision.utils import save_image

from msssl.callbacks.view_grid import contact_sheet
from msssl.data import MultiViewDataModule
from msssl.data.images import Images, labels_or_minus_one

N_IMAGES = 8  # rows of the picture
N_PIXELS_OF = 1000  # images that mean and std are computed from


def inspect(data: MultiViewDataModule, seed: int, out: str) -> None:
    """Draw the first images of a run's first step with their views, and print a summary of its data.

    The views are drawn on the CPU for one process: on a GPU, or with more processes, the run draws others from the
    same recipe.

    Args:
        data: the data module of the run.
        seed: of the run.
        out: the picture to write.
    """
    data.prepare_data()
    data.setup()
    data.seed = seed
    table = Table("split", "images", "labelled", "classes", "images per class", caption="images that the run reads")
    for name, images in data.splits.items():
        table.add_row("train, for the probe" if name == "probe" else name, *_counts(images))
    Console(markup=False).print(table)
    sizes, mean, std = _pixels(data.splits["train"])
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())))
    save_image(contact_sheet(data.views, batch["views"], N_IMAGES), out)
    lines = {
        "size": f"{sizes} pixels",
        "mean": f"{mean}, of {min(N_PIXELS_OF, len(data.splits['train'])):,} training images",
        "std": f"{std}; views are normalised by mean {_rounded(data.views.mean)}, std {_rounded(data.views.std)}",
        "views": f"{data.views.n_views} for each of {data.batch_size} images a device: {out}",
    }
    for name, text in lines.items():
        Console(soft_wrap=True, highlight=False, markup=False).print(f"{name:<8}{text}")


def _counts(images: Images) -> tuple[str, str, str, str]:
    labels = labels_or_minus_one(images.dataset)[images.indices]
    counts = labels[labels >= 0].bincount()
    counts = counts[counts > 0]
    if not len(counts):
        return f"{len(images):,}", "0", "-", "-"
    least, most = int(counts.min()), int(counts.max())
    spread = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"{len(images):,}", f"{int(counts.sum()):,}", str(len(counts)), spread


def _pixels(images: Images) -> tuple[str, str, str]:
    """Sizes, and mean and std of the channels in [0, 1] pooled over pixels, of at most `N_PIXELS_OF` images."""
    rows = torch.linspace(0, len(images) - 1, min(N_PIXELS_OF, len(images))).long().tolist()
    read = [images[row]["image"] for row in track(rows, description="Reading images", transient=True)]
    sizes = sorted({(image.shape[-2], image.shape[-1]) for image in read})
    pixels = torch.cat([image.flatten(1) for image in read], dim=1).double() / 255
    return ", ".join(f"{h} x {w}" for h, w in sizes), _rounded(pixels.mean(dim=1)), _rounded(pixels.std(dim=1))


def _rounded(values: torch.Tensor | tuple[float, ...]) -> str:
    return " ".join(f"{float(value):.3f}" for value in values)
