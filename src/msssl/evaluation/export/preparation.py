"""How an image file is prepared for an exported backbone: as plain data, in words, and as code without msssl."""

from typing import Any

from msssl.views import Preprocess


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
    lines = ["Turn it upright, as its Exif tag says."] if channels == 3 else []
    if preprocess.window is not None:
        low, high = preprocess.window
        lines.append(
            f"More than 8 bits a channel: the window [{low:g}, {high:g}]. {low:g} and less becomes black, {high:g} and "
            "more white. Pillow reads such images in grey only; of colour it keeps 8 bits, so read those otherwise."
        )
    order = f"All {channels} channels, in the order that they had in the images of the pretraining."
    lines.append("RGB: grey repeated, transparent parts on white." if channels == 3 else order)
    height, width = preprocess.image_size or (0, 0)
    shape = "square" if height == width else f"part of shape {height} : {width} (height : width)"
    lines.append(f"The largest {shape} in its centre, resized to {height} x {width} pixels.")
    if preprocess.crop is not None:
        resized = "" if preprocess.resize == min(height, width) else f"Short side to {preprocess.resize}, then the "
        lines.append(f"{resized or 'The '}{preprocess.crop} x {preprocess.crop} pixels in its centre.")
    return [*lines, f"Then {normalization(preprocess)}."]


def normalization(preprocess: Preprocess) -> str:
    """How the values of the channels are normalised, in words."""
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (preprocess.mean, preprocess.std))
    return f"values from 0 to 1, minus mean ({mean}), divided by std ({std})"


def code(preprocess: Preprocess, as_tensor: bool) -> list[str]:
    """Lines of code that turn the file `image.png` into `images` (1, 3, H, W), float32, with Pillow and NumPy.

    Where images are not RGB, no reader suits all of them: the lines begin with the array that the earlier steps made.

    Args:
        preprocess: how images are prepared for evaluation; it must hold their size.
        as_tensor: whether `images` is a tensor of torch at the end, and not an array of NumPy.
    """
    assert preprocess.image_size is not None
    height, width = preprocess.image_size
    lines = ["import numpy as np", "from PIL import Image, ImageOps", ""]
    if len(preprocess.mean) != 3:
        height, width = preprocess.input_size or (height, width)
        shape = f"({len(preprocess.mean)}, {height}, {width})"
        lines = [
            lines[0],
            "",
            f'image = np.load("image.npy").transpose(1, 2, 0)  # of {shape}, from 0 to 1, prepared as above',
        ]
        return [*lines, *_normalize(preprocess, scale=1, as_tensor=as_tensor)]
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
    if preprocess.crop is not None:
        side, short_side = preprocess.crop, preprocess.resize or preprocess.crop
        if short_side != min(height, width):
            smaller = min(height, width)
            height, width = (max(short_side, int(short_side * length / smaller)) for length in (height, width))
            lines += [f"image = image.resize(({width}, {height}), Image.Resampling.BILINEAR)"]
        left, top = round((width - side) / 2), round((height - side) / 2)
        lines += [f"image = image.crop(({left}, {top}, {left + side}, {top + side}))"]
    return [*lines, *_normalize(preprocess, scale=255, as_tensor=as_tensor)]


def _normalize(preprocess: Preprocess, scale: int, as_tensor: bool) -> list[str]:
    """Lines of code that turn `image` (H, W, C), with values from 0 to `scale`, into `images`."""
    mean, std = (f"np.float32({[round(value, 6) for value in values]})" for values in (preprocess.mean, preprocess.std))
    lines = [
        f"images = (np.asarray(image, dtype=np.float32) / {scale} - {mean}) / {std}",
        "images = np.ascontiguousarray(images.transpose(2, 0, 1)[None])",
    ]
    return [*lines, "import torch", "images = torch.from_numpy(images)"] if as_tensor else lines
