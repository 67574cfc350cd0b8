"""Replaces bf16 by 32-bit precision where the device does not compute in bf16 natively."""

import logging
import sys
from typing import Any

import torch

from msssl.cli.resume import saved_config

log = logging.getLogger(__name__)


def choose_precision(precision: Any, accelerator: Any, ckpt_path: str | None) -> Any:
    """The precision of a config, or 32 bit instead of bf16-mixed where that would be emulated, said in the log.

    A flag is taken as it is, and so is the precision of a run that goes on.

    Args:
        precision: as `trainer.precision` has it.
        accelerator: as `trainer.accelerator` has it.
        ckpt_path: from which a run goes on.
    """
    if precision not in ("bf16-mixed", "bf16") or any(arg.startswith("--trainer.precision") for arg in sys.argv):
        return precision
    saved = saved_config(ckpt_path) if ckpt_path else None
    if saved is not None and saved["trainer"]["precision"] == precision:
        return precision
    on_gpu = torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda")
    if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False):
        return precision
    device = f"{torch.cuda.get_device_name()} computes" if on_gpu else "CPUs compute"
    log.info("precision: 32-true instead of %s, in which %s slowly", precision, device)
    return "32-true"
