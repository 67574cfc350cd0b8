"""Adds to `msssl predict` the flags for which images to read, what to write and to which file."""

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.cli import LightningArgumentParser

from msssl.callbacks import FeaturesWriter
from msssl.data.predict import PredictSplit
from msssl.errors import UserError
from msssl.run.head import head_of


def add_predict_arguments(parser: LightningArgumentParser) -> None:
    """Add the flags of `predict` that are not the trainer's."""
    parser.add_argument(
        "--split",
        type=PredictSplit | None,
        default=None,
        help="which images: those of one split, or `all` of the data set; by default those of the test split where "
        "there is one, otherwise all",
    )
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="file to write, whose name ends in .npz or .parquet; by default features.npz beside the checkpoint "
        "(classes.npz with a head), where no earlier one is replaced",
    )
    parser.add_argument(
        "--format", type=Literal["npz", "parquet"] | None, default=None, help="of the file, where out does not say it"
    )
    parser.add_argument(
        "--head",
        type=str | None,
        default=None,
        help="write the classes by this linear head instead of the features: probe.head.pt, as msssl probe writes it; "
        "finetuned.ckpt has its own",
    )


def features_writer(given: Any) -> FeaturesWriter:
    """The writer that these arguments ask for; a checkpoint that was fine-tuned brings its head.

    Raises:
        FileExistsError: the default file is there, of an earlier prediction.
        ValueError: two formats, or a name of neither.
    """
    head = given["head"] or (head_of(given["ckpt_path"]) if given["ckpt_path"] else None)
    if given["out"] is not None:
        path = Path(given["out"])
        if given["format"] not in (None, path.suffix.removeprefix(".")):
            raise UserError(f"out is {path}, but format is {given['format']}: leave one of them")
        return FeaturesWriter(path, head)
    folder = Path(given["ckpt_path"]).parent if given["ckpt_path"] else Path()
    path = folder / f"{'classes' if head else 'features'}.{given['format'] or 'npz'}"
    if path.is_file():
        raise FileExistsError(
            f"{path} is there, of an earlier prediction: name another file by --out, or this one, to replace it"
        )
    return FeaturesWriter(path, head)
