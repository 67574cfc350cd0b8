"""What a trainer says about its run: how many steps it has, how many are behind it, and which of them log."""

import math

from lightning import LightningModule, Trainer


def run_length(trainer: Trainer) -> tuple[int, float]:
    """Optimizer steps behind a run, and of the whole run, both counted as if it had always been as it is now.

    A run that goes on may have another number of steps an epoch than before: another batch size, number of devices,
    accumulation or fraction. Lightning's `global_step` counts the steps that were taken, of either kind, so that it
    does not say how much of the run is left; the epochs and the batches of this one do. Where `max_steps` ends the
    run before `max_epochs`, the steps are those that were taken.

    Known from `on_train_start` on. The whole is infinite where nothing but the user ends the run.
    """
    taken, at_most = trainer.global_step, math.inf if trainer.max_steps == -1 else trainer.max_steps
    batches, max_epochs = trainer.num_training_batches, trainer.max_epochs
    if max_epochs in (None, -1) or batches == math.inf:
        return taken, at_most
    in_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready  # batches of this epoch; its last one makes a step
    steps = ready // trainer.accumulate_grad_batches if ready < batches else in_epoch
    done = trainer.current_epoch * in_epoch + steps
    whole = max_epochs * in_epoch
    return (done, whole) if whole - done <= at_most - taken else (taken, at_most)


def is_logging_step(trainer: Trainer | None) -> bool:
    """Whether somebody reads what this step logs: loggers do at their steps, callbacks at the end of an epoch or run.

    Lightning keeps the values of all the other steps too, for a third of a millisecond each.
    """
    if trainer is None or not trainer.log_every_n_steps:  # type: ignore[attr-defined]
        return True
    step = trainer.fit_loop.epoch_loop._batches_that_stepped + 1  # as Lightning counts, also after the optimizer
    at_its_end = trainer.is_last_batch or step == trainer.max_steps
    return at_its_end or step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]


def trainer_of(module: LightningModule) -> Trainer | None:
    """The trainer that a module is attached to, or None; `module.trainer` raises where there is none."""
    return module._trainer
