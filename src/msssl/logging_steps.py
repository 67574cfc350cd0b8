"""At which steps a training step logs."""

from lightning import Trainer


def is_logging_step(trainer: Trainer | None) -> bool:
    """Whether somebody reads what this step logs: loggers do at their steps, callbacks at the end of an epoch or run.

    Lightning keeps the values of all the other steps too, for a third of a millisecond each.
    """
    if trainer is None or not trainer.log_every_n_steps:  # type: ignore[attr-defined]
        return True
    step = trainer.fit_loop.epoch_loop._batches_that_stepped + 1  # as Lightning counts, also after the optimizer
    at_its_end = trainer.is_last_batch or step == trainer.max_steps
    return at_its_end or step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
