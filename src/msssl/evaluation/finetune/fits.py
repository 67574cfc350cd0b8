"""The fits of a fine-tuning: each is done once, what is finished is a file, and all such files make the table."""

import copy
import hashlib
import inspect
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from msssl.callbacks import BestCheckpoint, LastCheckpoint
from msssl.errors import UserError
from msssl.evaluation.finetune.classifier import METRIC, Classifier, LabelledImages
from msssl.evaluation.finetune.labels import Labels
from msssl.evaluation.finetune.table import described, print_finetuned, rows_of
from msssl.evaluation.probe.adam import top1
from msssl.evaluation.probe.against import Encoder
from msssl.evaluation.probe.heads import best_linear_probe, measures
from msssl.evaluation.probe.subject import Subject
from msssl.metrics import accuracy_interval
from msssl.run.exact_resume import ExactResume
from msssl.run.files import LAST, read, write_file, write_text
from msssl.run.last_validation import LastValidation
from msssl.run.run_folder import rank

PRETRAINED = "pretrained"
EPOCHS, MIN_STEPS = 30, 500  # of a fit, unless the trainer says otherwise: more epochs where these are fewer steps
VALIDATIONS = 10  # of a fit, evenly spread
OWN = ("callbacks", "default_root_dir")  # arguments of the trainer that every fit sets itself
OF_THE_BUDGET = ("max_epochs", "max_steps", "precision", "gradient_clip_val", "accumulate_grad_batches")
log = logging.getLogger(__name__)


class Fits:
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
        for name in trainer:
            if name not in defaults or name in OWN:
                raise UserError(
                    f"trainer has {name}: expected arguments of lightning.Trainer, but for {', '.join(OWN)}"
                )
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

    @property
    def _device(self) -> str:
        if not torch.cuda.is_available() or self.trainer.get("accelerator") == "cpu":
            return "cpu"
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))  # which `cuda` then is, of each rank its own
        return "cuda"

    def _linear_probe(self, encoder: Encoder, rows: Tensor) -> tuple[nn.Linear, dict[str, Any]]:
        """The linear head on frozen features of these images, its weight decay chosen on validation images."""
        name = None if Path(encoder.name).is_file() else f"backbone of {encoder.name}"  # a file may change
        backbone = encoder.backbone.eval().to(self._device)
        features = self.subject.features(name, backbone, encoder.data, self._device)
        (x, y), (test_x, test_y) = features["probe"], features["test"]
        head, _ = best_linear_probe((x[rows], y[rows]), features["val"], self.subject.num_classes)
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
