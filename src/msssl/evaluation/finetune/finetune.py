"""`msssl finetune`: the accuracy of whole networks that are trained on labels, from several starting points."""

import copy
import functools
import hashlib
import inspect
import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from msssl.callbacks import BestCheckpoint, LastCheckpoint
from msssl.data import MultiViewDataModule
from msssl.errors import UserError
from msssl.evaluation.finetune.classifier import METRIC, Classifier, LabelledImages
from msssl.evaluation.finetune.table import described, print_finetuned, rows_of
from msssl.evaluation.probe.adam import top1
from msssl.evaluation.probe.against import Encoder, encoder_of
from msssl.evaluation.probe.features import Split, extract, load_or_extract
from msssl.evaluation.probe.few_labels import draw, draw_share
from msssl.evaluation.probe.heads import MIN_VAL, WEIGHT_DECAYS, can_choose, measures
from msssl.evaluation.probe.subject import Subject, open_subject
from msssl.methods import MultiViewModule
from msssl.metrics import accuracy_interval, linear_probes
from msssl.run.exact_resume import ExactResume
from msssl.run.files import LAST, check_writable, read, write_file, write_text
from msssl.run.last_validation import LastValidation
from msssl.run.run_folder import rank

PRETRAINED, SCRATCH = "pretrained", "scratch"
RATES = (1e-4, 5e-4, 2.5e-3)
EPOCHS, MIN_STEPS = 30, 500  # of a fit, unless the trainer says otherwise: more epochs where these are fewer steps
VALIDATIONS = 10  # of a fit, evenly spread
OF_THE_BUDGET = ("max_epochs", "max_steps", "precision", "gradient_clip_val", "accumulate_grad_batches")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labels:
    """How many of the labelled training images are used: so many of each class, or a share of each class."""

    per_class: int | None = None
    share: float | None = None

    def __str__(self) -> str:
        return f"{self.per_class}/class" if self.share is None else f"{100 * self.share:g} %"

    def rows(self, labels: Tensor, seed: int) -> Tensor:
        """Rows of the images, sorted; those of a smaller number are among those of a larger one with the same seed."""
        if self.share is None:
            assert self.per_class is not None
            return draw(labels, self.per_class, seed)
        return draw_share(labels, self.share, seed)


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
        learning_rates: the best of these on validation images is taken; 1e-4, 5e-4 and 2.5e-3 by default.
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
    study = _Finetuning(subject, batch_size, rates, trainer or {})
    cells = [(seed, number, name) for seed in range(draws) for number in labels for name in starts]
    try:
        for place, (seed, number, name) in enumerate(cells, start=1):
            study.run(encoders[name], number, seed, f"{place} of {len(cells)}")
        study.write_checkpoint(max(labels, key=lambda number: len(number.rows(subject.data.split_labels("probe"), 0))))
    except SIGTERMException:
        log.warning("stopped: the same command goes on")
        raise
    finally:
        study.report()


def _check(subject: Subject, labels: list[Labels]) -> None:
    """Raise ValueError for what cannot be measured, before any work."""
    where = f"{type(subject.data).__name__} in {subject.data.data_dir}"
    if "test" not in subject.splits:
        raise UserError(f"finetune reports on test images, and {where} has none with labels")
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


class _Finetuning:
    """All fits of a command. What is finished is a file, so that a command that was stopped goes on.

    Args:
        subject: the checkpoint, with the labelled images.
        batch_size: images in a batch of all devices.
        rates: learning rates to choose from.
        trainer: arguments of Lightning's trainer.
    """

    def __init__(self, subject: Subject, batch_size: int, rates: list[float], trainer: dict[str, Any]) -> None:
        self.subject = subject
        self.batch_size = batch_size
        self.rates = rates
        defaults = inspect.signature(Trainer).parameters
        self.trainer = {name: value for name, value in trainer.items() if value != defaults[name].default}
        self.provenance = subject.provenance()
        self.settings = {
            "sha256": subject.sha256,
            "data_id": self.provenance["data_id"],
            "learning_rates": rates,
            "batch_size": batch_size,
            **{name: self.trainer[name] for name in OF_THE_BUDGET if name in self.trainer},
        }
        self.protocol = described(self.settings, EPOCHS, MIN_STEPS)
        name = subject.name_of_files("finetune", self.provenance["data_id"])
        self.target = subject.path.with_name(f"{name}.json")
        self.folder = subject.path.with_name("finetune")
        if self.settings["data_id"] is None:  # nothing tells these images from others, so nothing is taken from before
            self.folder /= "unidentified"
            if rank() == 0:
                shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, encoder: Encoder, labels: Labels, seed: int, place: str) -> None:
        """Fit with each learning rate, unless that is done, and measure the best on test images."""
        folder = self._folder(encoder.name, labels, seed)
        if (folder / "result.json").is_file():
            return
        rows = labels.rows(encoder.data.split_labels("probe"), seed)
        head, linear = self._linear_probe(encoder, rows)
        fits = [self._fit(encoder, head, rows, seed, rate, folder / f"rate-{rate:g}") for rate in self.rates]
        best = max(fits, key=lambda fit: fit["val_top1"])
        chosen = folder / f"rate-{best['learning_rate']:g}" / "best.ckpt"
        measured = self._test(encoder, head, rows, seed, chosen)
        result = {
            **{"start": encoder.name, "labels": str(labels), "per_class": labels.per_class, "share": labels.share},
            **{"n_labels": len(rows), "seed": seed, **measured, "linear": linear},
            "settings": self.settings,
            "protocol": self.protocol,
            **{name: best[name] for name in ("learning_rate", "epoch", "val_top1")},
            "minutes": sum(fit["seconds"] for fit in fits) / 60,
            "fits": fits,
        }
        log.info(
            "%s: %s, labels %s, draw %d: %.3f on test images (linear probe %.3f), rate %g, epoch %d",
            *(place, encoder.name, labels, seed + 1, measured["top1"], linear["top1"]),
            *(best["learning_rate"], best["epoch"]),
        )
        if rank() == 0:
            if encoder.name == PRETRAINED and seed == 0:
                chosen.replace(folder / "best.ckpt")
            write_text(folder / "result.json", json.dumps(result, indent=1) + "\n")
            for of_rate in folder.glob("rate-*"):
                shutil.rmtree(of_rate)

    def _folder(self, start: str, labels: Labels, seed: int) -> Path:
        words = json.dumps([self.settings, start, labels.per_class, labels.share, seed])
        return self.folder / hashlib.sha256(words.encode()).hexdigest()[:12]

    def _features(self, encoder: Encoder) -> dict[str, Split]:
        """Frozen features of all images, from which the linear probe is fitted; kept on disk."""
        subject, device = self.subject, self._device
        backbone = encoder.backbone.eval().to(device)
        features = {}
        for split in ("probe", "val", "test"):
            content = None if Path(encoder.name).is_file() else subject.contents[split]
            size = encoder.data.preprocess.image_size
            key = content and f"{subject.sha256} {encoder.name} {content} {size} {device}"
            make = functools.partial(extract, backbone, encoder.data, split, device)
            features[split] = load_or_extract(subject.path.with_name("features"), key, make)
        return features

    @property
    def _device(self) -> str:
        return "cuda" if torch.cuda.is_available() and self.trainer.get("accelerator") != "cpu" else "cpu"

    def _linear_probe(self, encoder: Encoder, rows: Tensor) -> tuple[nn.Linear, dict[str, Any]]:
        """The linear head on frozen features of these images, its weight decay chosen on validation images."""
        features = self._features(encoder)
        (x, y), (val_x, val_y), (test_x, test_y) = (features[split] for split in ("probe", "val", "test"))
        heads = linear_probes(x[rows], y[rows], num_classes=self.subject.num_classes, weight_decays=WEIGHT_DECAYS)
        head = max(heads, key=lambda head: top1(head(val_x), val_y))
        n = int((test_y >= 0).sum())
        accuracy = top1(head(test_x), test_y)
        return head, {"top1": accuracy, "interval": accuracy_interval(round(accuracy * n), n)}

    def _fit(
        self, encoder: Encoder, head: nn.Linear, rows: Tensor, seed: int, rate: float, folder: Path
    ) -> dict[str, Any]:
        """Train with one learning rate, unless that is done; a fit that was stopped goes on."""
        done = folder / "done.json"
        if done.is_file():
            fit: dict[str, Any] = json.loads(done.read_text())
            return fit
        began, best = time.monotonic(), BestCheckpoint(monitor=METRIC, dirpath=folder, save_weights_only=True)
        images = LabelledImages(encoder.data, rows, self.batch_size, seed)
        callbacks = [best, LastCheckpoint(dirpath=folder), ExactResume(), LastValidation()]
        trainer = self._trainer(len(rows) // images.batch_size, callbacks)
        last = folder / LAST
        with isolate_rng():
            torch.manual_seed(seed)
            classifier = Classifier(copy.deepcopy(encoder.backbone), _trainable(head), rate).train()
            trainer.fit(classifier, images, ckpt_path=str(last) if last.is_file() else None)
        fit = {
            "learning_rate": rate,
            "val_top1": float(best.best_model_score),  # type: ignore[arg-type]
            "epoch": read(best.best_model_path)["epoch"] + 1,
            "epochs": trainer.current_epoch,
            "seconds": time.monotonic() - began,
        }
        if rank() == 0:
            write_text(done, json.dumps(fit) + "\n")
        return fit

    def _trainer(self, steps_per_epoch: int, callbacks: list[Any]) -> Trainer:
        given = dict(self.trainer)
        if not {"max_epochs", "max_steps", "max_time"} & given.keys():
            given["max_epochs"] = max(EPOCHS, ceil(MIN_STEPS / steps_per_epoch))
        epochs = given.get("max_epochs") or ceil(given.get("max_steps", 1) / steps_per_epoch)
        given.setdefault("check_val_every_n_epoch", max(1, epochs // VALIDATIONS))
        quiet = {"logger": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
        quiet["enable_progress_bar"] = sys.stderr.isatty()
        return Trainer(**{**quiet, **given}, callbacks=callbacks, default_root_dir=self.folder)

    def _test(self, encoder: Encoder, head: nn.Linear, rows: Tensor, seed: int, chosen: Path) -> dict[str, Any]:
        """Measure a checkpoint on test images."""
        classifier = Classifier(copy.deepcopy(encoder.backbone), _trainable(head), self.rates[0])
        classifier.load_state_dict(read(chosen)["state_dict"])
        trainer = self._trainer(1, [ExactResume()])
        trainer.test(classifier, LabelledImages(encoder.data, rows, self.batch_size, seed), verbose=False)
        assert classifier.logits is not None
        assert classifier.labels is not None
        return measures(classifier.logits, classifier.labels, self.subject.num_classes)

    def write_checkpoint(self, labels: Labels) -> None:
        """Write `finetuned.ckpt`: the checkpoint of the run with the fine-tuned backbone, and its head."""
        folder = self._folder(PRETRAINED, labels, 0)
        if rank() != 0 or not (folder / "best.ckpt").is_file():
            return
        tuned = read(folder / "best.ckpt")["state_dict"]
        state = {
            name: tuned.get(name, value) if name.startswith("backbone.") else value
            for name, value in self.subject.checkpoint["state_dict"].items()
        }
        left_out = ("optimizer_states", "lr_schedulers")
        content = {name: value for name, value in self.subject.checkpoint.items() if name not in left_out}
        head = {"weight": tuned["head.weight"], "bias": tuned["head.bias"], "classes": self.subject.class_names}
        path = self.target.with_name(self.target.stem.replace("finetune", "finetuned", 1) + ".ckpt")
        result = json.loads((folder / "result.json").read_text())
        accuracy = {name: result[name] for name in ("labels", "n_labels", "top1", "interval")}
        write_file(
            path, {**content, "state_dict": state, "head": head, "finetuned": {**accuracy, "protocol": self.protocol}}
        )
        log.info(
            "written to %s: the encoder of the first draw, trained on the labels of %s, with its head", path, labels
        )

    def results(self) -> Iterator[dict[str, Any]]:
        """All that is finished of this checkpoint on these images, by earlier commands too."""
        for path in sorted(self.folder.glob("*/result.json")):
            result = json.loads(path.read_text())
            if all(result["settings"][name] == self.settings[name] for name in ("sha256", "data_id")):
                yield result

    def report(self) -> None:
        """Write and print the table of what is finished."""
        results = list(self.results())
        if rank() != 0 or not results:
            return
        report = {
            **self.provenance,
            "rows": rows_of(results),
            "results": results,
        }
        write_text(self.target, json.dumps(report, indent=2, default=vars) + "\n")
        print_finetuned(report, self.target)


def _trainable(head: nn.Linear) -> nn.Linear:
    return copy.deepcopy(head).requires_grad_(True)
