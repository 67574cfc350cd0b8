"""How many steps a run has, how many it has taken, and at which steps it logs, from its trainer."""

import math

from lightning import LightningModule, Trainer


def run_length(trainer: Trainer) -> tuple[int, float]:
    """The number of optimizer steps that a run has taken, and that it has in total, known from `on_train_start` on.

    A resumed run may have another number of steps in an epoch than before, such as with another batch size or number of
    devices. Then Lightning's `global_step` does not say how much of the run is left. So both numbers are computed from
    the epochs, and from the batches of this epoch, as if all epochs had as many steps as this one. Only where
    `max_steps` ends the run before `max_epochs` are they counted by `global_step`.

    Returns:
        Steps taken, and steps in total; the total is infinite where the run has no end.
    """
    taken, at_most = trainer.global_step, math.inf if trainer.max_steps == -1 else trainer.max_steps
    batches, max_epochs = trainer.num_training_batches, trainer.max_epochs
    if max_epochs in (None, -1) or batches == math.inf:
        return taken, at_most
    in_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready  # batches of this epoch; its last one makes a step
    steps = ready // trainer.accumulate_grad_batches if ready < batches else in_epoch
    done = trainer.current_epoch * in_epoch + steps
    total = max_epochs * in_epoch
    return (done, total) if total - done <= at_most - taken else (taken, at_most)


def is_logging_step(trainer: Trainer | None) -> bool:
    """Whether the values that this step logs are used: by loggers, or by callbacks at the end of an epoch or run.

    At other steps it saves a third of a millisecond for each value not to log it.
    """
    if trainer is None or not trainer.log_every_n_steps:  # type: ignore[attr-defined]
        return True
    step = trainer.fit_loop.epoch_loop._batches_that_stepped + 1  # as Lightning counts, also after the optimizer
    at_its_end = trainer.is_last_batch or step == trainer.max_steps
    return at_its_end or step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]


def trainer_of(module: LightningModule) -> Trainer | None:
    """The trainer that a module is attached to, or None; `module.trainer` raises where there is none."""
    return module._trainer
