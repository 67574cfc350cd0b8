"""How an image file is prepared for an exported backbone: as plain data, in words, and as code without msssl."""

from typing import Any

from msssl.views import Preprocess
from msssl.views.preprocess import as_pairs


def settings(preprocess: Preprocess) -> dict[str, Any]:
    """The steps that turn an image file into an input of the backbone, as plain data, in their order."""
    return {
        "window": preprocess.window,
        "channels": "RGB" if len(preprocess.mean) == 3 else len(preprocess.mean),
        "centre_resized_to": preprocess.image_size,
        "then_short_side": preprocess.resize,
        "then_centre_crop": preprocess.crop,
        "scale": [0, 1],
        "mean": preprocess.mean,
        "std": preprocess.std,
    }


def description(preprocess: Preprocess) -> list[str]:
    """The same steps in words, one line for each."""
    channels = len(preprocess.mean)
    lines = []
    if _is_photograph(preprocess):
        lines += ["Turn it upright, as its Exif tag says.", "RGB: grey repeated, transparent parts on white."]
    else:
        lines += [f"{_order(channels)}, as in the images of the pretraining."]
    if preprocess.window is not None:
        pairs = as_pairs(preprocess.window)
        ranges = [f"{low:g} to {high:g}" for low, high in (pairs[:1] if len({*pairs}) == 1 else pairs)]
        which = f"{ranges[0]} become" if len(ranges) == 1 else f"{', '.join(ranges)} of the channels, in order, become"
        lines.append(f"More than 8 bits: the values {which} 0 to 1, those beyond 0 or 1.")
    height, width = preprocess.image_size or (0, 0)
    shape = "square" if height == width else f"part of shape {height} : {width} (height : width)"
    lines.append(f"The largest {shape} in its centre, resized to {height} x {width} pixels.")
    if preprocess.crop is not None:
        resized = "" if preprocess.resize == min(height, width) else f"Short side to {preprocess.resize}, then the "
        lines.append(f"{resized or 'The '}{preprocess.crop} x {preprocess.crop} pixels in its centre.")
    return [*lines, f"Then {normalization(preprocess)}."]


def _order(channels: int) -> str:
    if channels == 1:
        return "One channel"
    return f"{channels} channels, in the same order{'; grey is repeated' if channels == 3 else ''}"


def normalization(preprocess: Preprocess) -> str:
    """How the values of the channels are normalised, in words."""
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (preprocess.mean, preprocess.std))
    return f"values from 0 to 1, minus mean ({mean}), divided by std ({std})"


def code(preprocess: Preprocess, as_tensor: bool) -> list[str]:
    """Lines of code that turn an image into `images` (1, C, H, W), float32, with Pillow and NumPy.

    They begin with the file `image.png` for RGB of 8 bits, else with `image.npy`, an array (C, H, W) of the values.

    Args:
        preprocess: how images are prepared for evaluation; it must hold their size.
        as_tensor: whether `images` is a tensor of torch at the end, and not an array of NumPy.
    """
    assert preprocess.image_size is not None
    height, width = preprocess.image_size
    if not _is_photograph(preprocess):
        return _code_of_array(preprocess, height, width, as_tensor)
    lines = ["import numpy as np", "from PIL import Image, ImageOps", ""]
    lines += ['image = ImageOps.exif_transpose(Image.open("image.png"))']
    if preprocess.window is not None:
        low, high = preprocess.window
        lines += [
            'if image.mode.startswith(("I", "F")):  # more than 8 bits',
            f'    values = (np.asarray(image, dtype="float64") - {low!r}) / ({high!r} - {low!r})',
            '    image = Image.fromarray((values.clip(0, 1) * 255).round().astype("uint8"))',
        ]
    lines += [
        'if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):',
        '    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))',
        f'image = ImageOps.fit(image.convert("RGB"), ({width}, {height}), Image.Resampling.BILINEAR)',
    ]
    lines += [f"image = {step}" for step in _crop("image", preprocess, height, width)]
    return [*lines, *_normalize(preprocess, scale=255, as_tensor=as_tensor)]


def _code_of_array(preprocess: Preprocess, height: int, width: int, as_tensor: bool) -> list[str]:
    size, channels = f"({width}, {height})", len(preprocess.mean)
    lines = [
        "import numpy as np",
        "from PIL import Image, ImageOps",
        "",
        f'values = np.load("image.npy").astype(np.float32)  # ({channels}, H, W)',
        *(["values = values.repeat(3 // len(values), axis=0)  # grey"] if channels == 3 else []),
        "planes = [Image.fromarray(plane) for plane in values]",
        f"planes = [ImageOps.fit(plane, {size}, Image.Resampling.BILINEAR) for plane in planes]",
        *(f"planes = [{step} for plane in planes]" for step in _crop("plane", preprocess, height, width)),
        "image = np.stack([np.asarray(plane) for plane in planes], axis=-1)",
    ]
    if preprocess.window is None:
        return [*lines, *_normalize(preprocess, scale=255, as_tensor=as_tensor)]
    low, high = (f"np.float32({list(values)})" for values in zip(*as_pairs(preprocess.window), strict=True))
    lines += [f"low, high = {low}, {high}", "image = ((image - low) / (high - low)).clip(0, 1)"]
    return [*lines, *_normalize(preprocess, scale=1, as_tensor=as_tensor)]


def _is_photograph(preprocess: Preprocess) -> bool:
    """Whether the images of the run were RGB of 8 bits when they were read."""
    return len(preprocess.mean) == 3 and (preprocess.window is None or preprocess.dtype == "uint8")


def _crop(image: str, preprocess: Preprocess, height: int, width: int) -> list[str]:
    """Calls of Pillow that take the centre of an image of this size, where a preset has a size of its own."""
    if preprocess.crop is None:
        return []
    steps, side, short_side = [], preprocess.crop, preprocess.resize or preprocess.crop
    if short_side != min(height, width):
        smaller = min(height, width)
        height, width = (max(short_side, int(short_side * length / smaller)) for length in (height, width))
        steps += [f"{image}.resize(({width}, {height}), Image.Resampling.BILINEAR)"]
    left, top = round((width - side) / 2), round((height - side) / 2)
    return [*steps, f"{image}.crop(({left}, {top}, {left + side}, {top + side}))"]


def _normalize(preprocess: Preprocess, scale: int, as_tensor: bool) -> list[str]:
    """Lines of code that turn `image` (H, W, C), with values from 0 to `scale`, into `images`."""
    mean, std = (f"np.float32({[round(value, 6) for value in values]})" for values in (preprocess.mean, preprocess.std))
    lines = [
        f"images = (np.asarray(image, dtype=np.float32){'' if scale == 1 else f' / {scale}'} - {mean}) / {std}",
        "images = np.ascontiguousarray(images.transpose(2, 0, 1)[None])",
    ]
    return [*lines, "import torch", "images = torch.from_numpy(images)"] if as_tensor else lines
