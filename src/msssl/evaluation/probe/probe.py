"""`msssl probe`: the accuracy of classifiers on frozen features, beside raw pixels and random weights as baselines."""

import functools
import json
import logging
from math import isnan
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from msssl.data import MultiViewDataModule
from msssl.errors import UserError
from msssl.evaluation.probe.against import encoder_of
from msssl.evaluation.probe.features import Encoder, joined
from msssl.evaluation.probe.few_labels import draw, evaluate_few_labels
from msssl.evaluation.probe.heads import MIN_VAL, evaluate, evaluate_as_the_paper
from msssl.evaluation.probe.picture import draw_report, nearest_images
from msssl.evaluation.probe.protocol import Protocol
from msssl.evaluation.probe.subject import Subject, open_subject
from msssl.evaluation.table import print_report, print_suite
from msssl.methods import MultiViewModule
from msssl.metrics import alpha_of, eigenspectrum, rankme, spread_rows
from msssl.run.files import check_writable, write_text
from msssl.run.head import write_head

PIXEL_SIZE = 32  # side to which images are resized for the baseline of raw pixels
SEED = 0  # of the random views that features are averaged over
RAW, UNTRAINED, PRETRAINED = "raw pixels", "untrained encoder", "pretrained encoder"
RANDOM = "random encoder"  # instead of `UNTRAINED` where the run started from given weights, not from random ones
log = logging.getLogger(__name__)


def probe(
    ckpt_path: str,
    data: MultiViewDataModule | None = None,
    protocol: Literal["standard", "paper"] = "standard",
    test_patches: int | None = None,
    labels_per_class: list[int] | None = None,
    baselines: bool = True,
    against: list[str] | None = None,
    model: MultiViewModule | None = None,
    also: list[MultiViewDataModule] | None = None,
) -> None:
    """Report the accuracy of classifiers on a checkpoint's features, on raw pixels and on random features.

    The checkpoint says where the images are and how they are prepared. The probe writes `probe.json`, a picture and the
    fitted linear head beside the checkpoint; for another checkpoint of the run, data set, protocol or number of patches
    the files have other names. Results with few labels from an earlier report are kept.

    Args:
        ckpt_path: a checkpoint, the folder of a run, or `last` for the newest run.
        data: another data set to evaluate on (transfer); its images are resized and normalised as in the pretraining.
        protocol: `standard`: linear head by L-BFGS, MLP and kNN; `paper`: the linear head of Ghosh et al.
        test_patches: V: features are averaged over the clean image and V - 1 random views of it; 1 by default, and 16
            for the paper's protocol.
        labels_per_class: also fit heads on this many images of each class, over 5 seeds.
        baselines: whether to evaluate raw pixels and the same encoder with random weights too.
        against: other encoders to evaluate on the same images: `torchvision:WEIGHTS`, `timm:NAME`, or a file with
            weights of the run's architecture. Images have the size and statistics that these weights want.
        model: the module, built again as for the run, where the checkpoint does not hold all that this needs.
        also: more data sets to evaluate on, one after the other; a table of all of them stands at the end.
    """
    kind = Protocol(protocol, test_patches)
    options = (kind, labels_per_class, baselines, against, model)
    reports = [_probe(ckpt_path, images, *options) for images in (data, *(also or []))]
    if also:
        print_suite(reports)


def _probe(
    ckpt_path: str,
    data: MultiViewDataModule | None,
    kind: Protocol,
    labels_per_class: list[int] | None,
    baselines: bool,
    against: list[str] | None,
    model: MultiViewModule | None,
) -> dict[str, Any]:
    """Evaluate on one data set, write and print the report, and return it."""
    subject = open_subject(ckpt_path, data, model, random_views=kind.test_patches > 1)
    check_writable(subject.path.parent)
    folds = None if kind.of_paper else subject.folds
    if folds is not None:
        log.warning("fewer than %d labelled validation images: cross-validation chooses the weight decay", MIN_VAL)
    _check_labels(subject, kind, labels_per_class or [])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if against and kind.test_patches > 1:
        raise UserError(f"against {against[0]}: other weights are compared on clean images, by test_patches 1")
    others = [encoder_of(name, subject) for name in against or []]  # a wrong name is an error before any work
    encoders: dict[str, Encoder] = {PRETRAINED: subject.module.to(device)}  # first: a diverged run stops at once
    encoders |= {other.name: other.backbone.to(device) for other in others}
    encoders |= _baselines(subject, device) if baselines else {}
    prepared = {other.name: other.data for other in others}
    fit = evaluate_as_the_paper if kind.of_paper else functools.partial(evaluate, folds=folds)
    rows: list[dict[str, Any]] = []
    spectra: dict[str, Tensor] = {}
    for name, encoder in encoders.items():
        kept = None if name == RAW or Path(name).is_file() else name  # pixels are soon made, and a file may change
        images = prepared.get(name, subject.data)
        features = joined(subject.features(kept, encoder, images, device, kind.test_patches, SEED), device)
        measured, head = fit(features, subject.num_classes)
        row = {"features": name, "dim": features["probe"][0].shape[1], **measured}
        if isinstance(encoder, MultiViewModule):
            spectrum = eigenspectrum(features["probe"][0])
            row |= _spectral(encoder, features["probe"][0], spectrum)
            spectra["pretrained" if name == PRETRAINED else "random weights"] = spectrum
        if labels_per_class:
            row["few_labels"] = evaluate_few_labels(features, subject.num_classes, labels_per_class)
        rows.insert(0, row)
        if name == PRETRAINED:
            described, pretrained_head = kind.described(features, folds), head
            nearest = nearest_images(features, described["reported_on"])
        del features  # before those of the next encoder are made
    report = {
        **subject.provenance(),
        **described,
        "seeds": {"run": subject.state.get("seed"), "split": subject.data.split_seed, "views": SEED, "heads": 0},
        "data_dir": str(subject.data.data_dir),
        "rows": rows,
    }
    if folds is not None:
        report["images"]["cv"] = int((folds.of_image >= 0).sum())
    target = subject.path.with_name(f"{subject.name_of_files('probe', report['data_id'], *kind.suffixes())}.json")
    _keep_few_labels(target, report)
    of_head = {name: report[name] for name in ("classes", "sha256", "protocol", "data_class")}
    write_head(target.with_suffix(".head.pt"), pretrained_head, **of_head)
    draw_report(report, subject.data, dict(reversed(spectra.items())), nearest, target.with_suffix(".png"))
    write_text(target, json.dumps(report, indent=2, default=vars) + "\n")
    print_report(report, target)
    return report


def _baselines(subject: Subject, device: str) -> dict[str, Encoder]:
    untrained = RANDOM if subject.began_from_weights else UNTRAINED
    return {untrained: subject.with_random_weights().to(device), RAW: _pixels}


def _check_labels(subject: Subject, kind: Protocol, labels_per_class: list[int]) -> None:
    """Raise ValueError for too few labels before any features are extracted."""
    if kind.of_paper or labels_per_class:
        subject.check_measurable("protocol paper" if kind.of_paper else "labels_per_class")
    for count in labels_per_class:
        draw(subject.data.split_labels("probe"), count, seed=0)


def _keep_few_labels(path: Path, report: dict[str, Any]) -> None:
    """Add the results with few labels of an earlier report, if that is of the same checkpoint and images."""
    try:
        earlier = json.loads(path.read_text())
    except (OSError, ValueError):  # there is none, or a damaged one
        return
    same = ("sha256", "data_id", "protocol_name", "test_patches", "reported_on")
    images_may_differ = report["data_id"] is None and report["transfer"]
    if images_may_differ or any(earlier.get(name) != report[name] for name in same):
        return
    kept = {row["features"]: row.get("few_labels", {}) for row in earlier["rows"]}
    for row in report["rows"]:
        if few_labels := {**kept.get(row["features"], {}), **row.get("few_labels", {})}:
            row["few_labels"] = few_labels


@torch.no_grad()
def _spectral(module: MultiViewModule, features: Tensor, spectrum: Tensor) -> dict[str, float | None]:
    alpha = float(alpha_of(spectrum))  # NaN, which JSON has no word for, where there are too few eigenvalues
    z = module.projector(spread_rows(features))  # whose layers are wide: only for the rows that count
    return {"alpha": None if isnan(alpha) else alpha, "rankme": float(rankme(z))}


def _pixels(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images, min(images.shape[-1], PIXEL_SIZE)).flatten(1)
