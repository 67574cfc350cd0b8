"""How accuracies were made."""

from typing import Any, Literal

from msssl.evaluation.adam import (
    HIDDEN_DIM,
    PAPER_BATCH_SIZE,
    PAPER_EPOCHS,
    PAPER_LR,
    PAPER_SMOOTHING,
    PAPER_WEIGHT_DECAY,
)
from msssl.evaluation.features import Split
from msssl.evaluation.heads import DEFAULT, DEFAULT_ROUNDS, TEMPERATURE, WEIGHT_DECAYS, K, can_choose

PAPER_PATCHES = 16


class Protocol:
    """The kind of heads, and what they see.

    Args:
        name: `standard` or `paper`.
        test_patches: V, or None for that of the name.
    """

    def __init__(self, name: Literal["standard", "paper"], test_patches: int | None) -> None:
        if name not in ("standard", "paper"):
            raise ValueError(f"protocol is {name!r}: expected standard or paper")
        self.name = name
        self.of_paper = name == "paper"
        default = PAPER_PATCHES if self.of_paper else 1
        self.test_patches = default if test_patches is None else test_patches
        if self.test_patches < 1:
            raise ValueError(f"test_patches is {test_patches}: expected the clean image at least, 1")
        self._is_default = self.test_patches == default

    def suffixes(self) -> list[str]:
        """What tells its files from those of the standard one."""
        parts = ["paper"] if self.of_paper else []
        return parts if self._is_default else [*parts, f"{self.test_patches}-patches"]

    def told(self, features: dict[str, Split]) -> dict[str, Any]:
        """The protocol as plain data and in a sentence, for these splits."""
        chosen = not self.of_paper and "val" in features and can_choose(features["val"][1])
        return {
            "protocol": self._sentence(features, chosen),
            "protocol_name": self.name,
            "test_patches": self.test_patches,
            "chosen_on": "val" if chosen else None,
            "reported_on": "test" if "test" in features else "val",
        }

    def _sentence(self, features: dict[str, Split], chosen: bool) -> str:
        patches = self.test_patches
        seen = "clean images" if patches == 1 else f"mean features of the clean image and {patches - 1} views"
        if self.of_paper:
            how = (
                f"the paper's linear probe, {seen}, Adam {PAPER_LR:g}, weight decay {PAPER_WEIGHT_DECAY:g}, "
                f"{PAPER_EPOCHS} epochs, batch {PAPER_BATCH_SIZE}, label smoothing {PAPER_SMOOTHING}, "
                "last epoch; nothing chosen"
            )
            fitted = ", fitted on train + val" if {"val", "test"} <= features.keys() else ", fitted on train"
            return how + fitted + self._reported(features, chosen)
        how = f"offline linear probe, {seen}, L-BFGS (200 iterations at most)"
        if chosen:
            how += f", weight decay of {', '.join(map(str, WEIGHT_DECAYS))} chosen on val"
        else:
            how += f", weight decay {DEFAULT}, nothing chosen"
        if {"val", "test"} <= features.keys():
            how += ", refitted on train + val"
        epochs = "epochs chosen likewise" if chosen else f"{DEFAULT_ROUNDS} epochs"
        heads = f"; MLP: {HIDDEN_DIM} hidden units, AdamW, averaged weights, {epochs}; kNN: k = {K}, T = {TEMPERATURE}"
        return how + self._reported(features, chosen) + heads

    def _reported(self, features: dict[str, Split], chosen: bool) -> str:
        if "test" in features:
            return ", test read once, 95 % bootstrap interval"
        if chosen:
            return "; there is no test split, and val chose: read it as an upper bound"
        return "; there is no test split, and val was read once"
