"""The protocol of a probe: which heads are fitted on what, chosen by what and reported on what, also as a sentence."""

from typing import Any, Literal

import torch

from msssl.errors import UserError
from msssl.evaluation.probe import adam
from msssl.evaluation.probe.cross_validation import Folds
from msssl.evaluation.probe.features import Split
from msssl.evaluation.probe.heads import DEFAULT, DEFAULT_ROUNDS, TEMPERATURE, WEIGHT_DECAYS, K, can_choose
from msssl.metrics import neighbours_taken

PAPER_PATCHES = 16


class Protocol:
    """Which heads a probe fits, and on which features.

    Args:
        name: `standard` or `paper`.
        test_patches: V: features are averaged over the clean image and V - 1 random views; None for the default.

    Raises:
        ValueError: another name, or V < 1.
    """

    def __init__(self, name: Literal["standard", "paper"], test_patches: int | None) -> None:
        if name not in ("standard", "paper"):
            raise UserError(f"protocol is {name!r}: expected standard or paper")
        self.name = name
        self.of_paper = name == "paper"
        self._default_patches = PAPER_PATCHES if self.of_paper else 1
        self.test_patches = self._default_patches if test_patches is None else test_patches
        if self.test_patches < 1:
            raise UserError(f"test_patches is {test_patches}: expected the clean image at least, 1")

    def suffixes(self) -> list[str]:
        """Parts of file names that distinguish the files of this protocol from those of the standard one."""
        parts = ["paper"] if self.of_paper else []
        return parts if self.test_patches == self._default_patches else [*parts, f"{self.test_patches}-patches"]

    def described(self, features: dict[str, Split], folds: Folds | None = None) -> dict[str, Any]:
        """The protocol as plain data and as a sentence.

        Args:
            features: of the splits that there are.
            folds: of a cross-validation, where `val` has too few labels to choose hyperparameters on.
        """
        chosen_on = None if folds is None else "cv"
        if not self.of_paper and "val" in features and can_choose(features["val"][1]):
            chosen_on = "val"
        reported_on = "test" if "test" in features else "cv" if chosen_on == "cv" else "val"
        return {
            "protocol": self._sentence(features, folds, chosen_on, reported_on),
            "protocol_name": self.name,
            "test_patches": self.test_patches,
            "chosen_on": chosen_on,
            "reported_on": reported_on,
        }

    def _sentence(
        self, features: dict[str, Split], folds: Folds | None, chosen_on: str | None, reported_on: str
    ) -> str:
        n_views = self.test_patches - 1
        seen = f"mean features of the clean image and {n_views} views" if n_views else "clean images"
        reported = _reported(reported_on, chosen_on is not None)
        if self.of_paper:
            how = (
                f"the paper's linear probe, {seen}, Adam {adam.PAPER_LR:g}, weight decay {adam.PAPER_WEIGHT_DECAY:g}, "
                f"{adam.PAPER_EPOCHS} epochs, batch {adam.PAPER_BATCH_SIZE}, label smoothing {adam.PAPER_SMOOTHING}, "
                "last epoch; nothing chosen"
            )
            fitted = ", fitted on train + val" if {"val", "test"} <= features.keys() else ", fitted on train"
            return how + fitted + reported
        how = f"offline linear probe, {seen}, L-BFGS (200 iterations at most)"
        if chosen_on is None:
            how += f", weight decay {DEFAULT}, nothing chosen"
        else:
            how += f", weight decay of {', '.join(map(str, WEIGHT_DECAYS))} chosen {_chosen_by(features, folds)}"
        if "val" in features and reported_on != "val":
            how += ", refitted on train + val"
        epochs = "epochs chosen likewise" if chosen_on == "val" else f"{DEFAULT_ROUNDS} epochs"
        heads = (
            f"; MLP: {adam.HIDDEN_DIM} hidden units, AdamW, averaged weights, {epochs}; kNN: {_neighbours(features)}"
        )
        if reported_on == "cv" and folds is not None and folds.n_groups is not None:
            reported += f", 95 % interval of {folds.n_groups} groups"
        return how + reported + (heads if {"val", "test"} & features.keys() else "")


def _reported(split: str, chosen: bool) -> str:
    """What the accuracy is, in words: on which split, and whether hyperparameters were chosen on it."""
    if split == "test":
        return ", test read once, 95 % Wilson interval"
    if not chosen:
        return "; there is no test split, and val was read once"
    accuracy = "val chose" if split == "val" else "the accuracy is that of the cross-validation"
    return f"; there is no test split, and {accuracy}: read it as an upper bound"


def _chosen_by(features: dict[str, Split], folds: Folds | None) -> str:
    """On which images the weight decay was chosen, in words."""
    if folds is None:
        return "on val"
    images = "train + val" if "val" in features else "train"
    together = "" if folds.n_groups is None else ", no group in two folds"
    return f"by cross-validation ({folds.n} folds of the labelled images of {images}{together})"


def _neighbours(features: dict[str, Split]) -> str:
    """The number of neighbours that vote on each split, in words: a small bank has fewer than K."""
    labels = {split: features[split][1] for split in ("probe", "val") if split in features}
    banks = {"val": labels["probe"], "test": torch.cat(list(labels.values()))}
    taken = {split: neighbours_taken(bank, K) for split, bank in banks.items() if split in features}
    if set(taken.values()) == {K}:
        return f"k = {K}, T = {TEMPERATURE}"
    listed = ", ".join(f"{k} on {split}" for split, k in taken.items())
    return f"k = {listed} (at most half of the labelled images it compares with), T = {TEMPERATURE}"
