"""`msssl finetune`: the accuracy of whole networks that are trained on labels, from several starting points."""

import logging
from typing import Any

from lightning.pytorch.utilities.exceptions import SIGTERMException

from msssl.data import MultiViewDataModule
from msssl.errors import UserError
from msssl.evaluation.finetune.fits import PRETRAINED, Fits
from msssl.evaluation.finetune.labels import Labels
from msssl.evaluation.probe.against import Encoder, encoder_of
from msssl.evaluation.probe.heads import MIN_VAL, can_choose
from msssl.evaluation.probe.subject import Subject, open_subject
from msssl.methods import MultiViewModule
from msssl.run.files import check_writable

SCRATCH = "scratch"
RATES = (1e-4, 1e-3, 1e-2)
log = logging.getLogger(__name__)


def finetune(
    ckpt_path: str,
    data: MultiViewDataModule | None = None,
    labels_per_class: list[int] | None = None,
    label_fraction: list[float] | None = None,
    against: list[str] | None = None,
    draws: int = 3,
    learning_rates: list[float] | None = None,
    batch_size: int = 64,
    model: MultiViewModule | None = None,
    trainer: dict[str, Any] | None = None,
) -> None:
    """Train a checkpoint's whole encoder on labels, and report its accuracy on test images.

    Every starting point has the same images, budget and choices. A fit starts with the head of the linear probe, sees
    one randomly cropped and flipped view of each image, and uses AdamW with warm-up and a cosine schedule. The learning
    rate and the epoch are chosen on validation images; then test images are read once. The linear probe on the same
    labels stands beside it.

    Writes `finetune.json` beside the checkpoint, and `finetuned.ckpt`: the encoder that was trained on the most labels
    of the first draw, with its head, which `msssl predict` and `msssl export` take. A stopped command leaves the table
    of what is finished, and goes on when it is started again; what is finished is never trained again.

    Args:
        ckpt_path: a checkpoint, the folder of a run, or `last` for the newest run.
        data: other images with labels; they are resized and normalised as in the pretraining.
        labels_per_class: numbers of labelled images of each class.
        label_fraction: shares of the labelled images, the same of each class; by default all of them.
        against: other starting points: `scratch` for random weights, `torchvision:WEIGHTS`, `timm:NAME`, or a file.
        draws: random choices of the labelled images; each is also the seed of order and views.
        learning_rates: the best of these on validation images is taken; 1e-4, 1e-3 and 1e-2 by default.
        batch_size: images in a batch of all devices.
        model: the module, built again as for the run, where the checkpoint does not hold all that this needs.
        trainer: arguments of `lightning.Trainer`. Without `max_epochs` or `max_steps` a fit has 30 epochs, or more
            where these are fewer than 500 steps.

    Raises:
        FileNotFoundError: no such checkpoint or weights.
        ValueError: no labels, one class, too few labels, no test images, fewer than 20 labelled validation images, or
            an argument out of range.
    """
    rates = learning_rates or [*RATES]
    for name, given in (("draws", draws), ("batch_size", batch_size)):
        if given < 1:
            raise UserError(f"{name} is {given}: expected at least 1")
    if min(rates) <= 0:
        raise UserError(f"learning_rates has {min(rates)}: expected numbers above 0")
    subject = open_subject(ckpt_path, data, model)
    check_writable(subject.path.parent)
    labels = [Labels(per_class=number) for number in labels_per_class or []]
    labels += [Labels(share=share) for share in label_fraction or ([] if labels else [1.0])]
    _check(subject, labels)
    starts = [PRETRAINED, *(against or [])]
    encoders = {name: _encoder(name, subject) for name in starts}
    fits = Fits(subject, batch_size, rates, trainer or {})
    cells = [(seed, number, name) for seed in range(draws) for number in labels for name in starts]
    try:
        for place, (seed, number, name) in enumerate(cells, start=1):
            fits.run(encoders[name], number, seed, f"{place} of {len(cells)}")
        fits.write_checkpoint(max(labels, key=lambda number: len(number.rows(subject.data.split_labels("probe"), 0))))
    except SIGTERMException:
        log.warning("stopped: the same command goes on")
        raise
    finally:
        fits.report()


def _check(subject: Subject, labels: list[Labels]) -> None:
    """Raise ValueError for what cannot be measured, before any work."""
    where = f"{type(subject.data).__name__} in {subject.data.data_dir}"
    if "test" not in subject.splits:
        raise UserError(f"finetune reports on test images, and {where} has none with labels: add a test split")
    if "val" not in subject.splits or not can_choose(subject.data.split_labels("val")):
        raise UserError(
            f"finetune chooses learning rate and epoch on at least {MIN_VAL} labelled validation images, and {where} "
            "has fewer: see data.val_fraction"
        )
    for number in labels:
        number.rows(subject.data.split_labels("probe"), 0)
    if subject.data.preprocess.input_size is None:
        raise UserError(f"{subject.path} does not say the size of its images: name other images by data")


def _encoder(name: str, subject: Subject) -> Encoder:
    if name == PRETRAINED:
        return Encoder(name, subject.module.backbone, subject.data)
    if name == SCRATCH:
        return Encoder(name, subject.with_random_weights().backbone, subject.data)
    return encoder_of(name, subject)
