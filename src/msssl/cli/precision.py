"""bf16 where the device computes in it natively."""

import logging
from typing import Any

import torch

log = logging.getLogger(__name__)


def native_precision(precision: Any, accelerator: Any) -> Any:
    """The precision of a config, or 32 bit instead of bf16-mixed where that would be emulated, said in the log.

    Args:
        precision: as `trainer.precision` has it.
        accelerator: as `trainer.accelerator` has it.
    """
    if precision not in ("bf16-mixed", "bf16"):
        return precision
    on_gpu = torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda")
    if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False):
        return precision
    device = f"{torch.cuda.get_device_name()} computes" if on_gpu else "CPUs compute"
    log.info("precision: 32-true instead of %s, in which %s slowly", precision, device)
    return "32-true"
