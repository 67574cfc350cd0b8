"""The first and the last lines of a run: what it is, what came out, and what to type next."""

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from torch import nn

from msssl.evaluation.table import print_line
from msssl.wording import counted

log = logging.getLogger(__name__)


def log_start(trainer: Trainer, module: LightningModule, datamodule: LightningDataModule, run_dir: Path | None) -> None:
    """Log the run's folder, the sizes of the networks and the global batch."""
    if run_dir is not None:
        log.info("run: %s", run_dir)
    parts = (f"{name} {type(part).__name__} {_millions(part)}" for name, part in module.named_children())
    log.info("%s: %s", type(module).__name__, ", ".join(parts))
    batch = getattr(datamodule, "batch_size", 0)
    views = getattr(getattr(datamodule, "views", None), "n_views", "?")
    images = f"{batch * trainer.world_size} images ({batch} on each of {trainer.world_size} devices)"
    log.info("global batch: %s, %s views each", images if trainer.world_size > 1 else counted(batch, "image"), views)


def print_summary(trainer: Trainer, run_dir: Path, steps_before: int | None) -> None:
    """Print the run's checkpoint, its accuracy with the protocol, and the next command.

    Args:
        trainer: after its fit.
        run_dir: the run's folder.
        steps_before: that the checkpoint had taken from which the run went on.
    """
    lines = {"run": f"{run_dir}: {counted(trainer.current_epoch, 'epoch')}, {counted(trainer.global_step, 'step')}"}
    if trainer.global_step == (steps_before or 0):
        name = _limit(trainer)
        if steps_before:
            lines["finished"] = f"no step was left; a larger --trainer.{name} than {getattr(trainer, name)} goes on"
        else:
            weights = getattr(trainer.lightning_module, "weights", None)
            held = "random weights" if weights is None else f"the weights {weights}"
            lines["trained"] = f"nothing, as {name} is {getattr(trainer, name)}: the checkpoint holds {held}"
    last = run_dir / "last.ckpt"
    lines["checkpoint"] = str(last) if last.is_file() else "none was written"
    lines |= _measured(trainer.callback_metrics)
    if (run_dir / "views.png").is_file():
        lines["views"] = str(run_dir / "views.png")
    if any(run_dir.glob("events.*")):
        lines["watch"] = shlex.join(["tensorboard", "--logdir", str(run_dir.parent)])
    if last.is_file():
        labelled = getattr(getattr(trainer, "datamodule", None), "num_classes", None) is not None
        lines["next"] = shlex.join(["msssl", "probe" if labelled else "predict", "--ckpt_path", str(last)])
    for name, text in lines.items():
        print_line(f"{name:<12}{text}")


def _measured(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What the last validation found: the accuracy, or without labels what the embeddings are like."""
    accuracy = metrics.get("val/probe_top1")
    if accuracy is not None:
        return {"accuracy": f"{accuracy:.3f} top-1 on validation images (online linear probe, last validation)"}
    names = {"RankMe": "val/rankme", "alpha": "val/alpha", "spread": "val/spread"}
    values = ", ".join(f"{name} {float(metrics[key]):.3g}" for name, key in names.items() if key in metrics)
    return {"embeddings": f"{values} (validation images, last validation)"} if values else {}


def _limit(trainer: Trainer) -> str:
    """The argument of the trainer by which no step is left."""
    if trainer.limit_train_batches == 0:
        return "limit_train_batches"
    return "max_steps" if 0 <= trainer.max_steps <= trainer.global_step else "max_epochs"


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M"
