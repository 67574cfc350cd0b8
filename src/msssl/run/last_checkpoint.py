"""Writes `last.ckpt`, from which a run is resumed, and stops the run when a signal arrives."""

import logging
import os
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from msssl.distributed import BackgroundMaximum
from msssl.run.checkpoint_io import AtomicCheckpointIO
from msssl.run.files import writing
from msssl.wording import counted

log = logging.getLogger(__name__)


class LastCheckpoint(ModelCheckpoint):
    """Writes `last.ckpt`, from which a run can be resumed exactly, and keeps the one before as `previous.ckpt`.

    A checkpoint is written at the end of each epoch (or of every `every_n_epochs`), when a signal stops the run, and at
    the end of the run; with `every_n_train_steps` or `train_time_interval` also within epochs. A run that takes no
    step, such as one of 0 epochs, writes one too, with the weights that it starts from.

    SIGTERM, Ctrl-C and the signal by which SLURM requeues a job stop the run at the end of the current optimizer step.
    On several ranks all of them stop at the end of the next step, or earlier before a validation or the end of the
    epoch. A validation that has begun is finished first. The process exits with 128 plus the number of the signal. A
    second Ctrl-C stops it at once.

    Args:
        **kwargs: arguments of `lightning.pytorch.callbacks.ModelCheckpoint`, except for the name of the file.
    """

    def __init__(self, **kwargs: Any) -> None:
        # Lightning's default is after a validation, and not at every epoch's end.
        kwargs = {"save_on_train_epoch_end": True, **kwargs}
        super().__init__(filename="last", enable_version_counter=False, **kwargs)
        self._received = 0  # number of the signal that arrived, if any
        self._of_ranks: BackgroundMaximum | None = None  # the signals of all ranks; None in a single process
        self._stops = False  # whether all ranks know that the run stops
        self._deferred: str | None = None  # path of a checkpoint to write once a validation is over
        self._handlers: dict[int, Any] = {}
        self._requeue_signal: signal.Signals | None = None
        self._trains = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._received, self._stops, self._deferred = 0, False, None  # from an earlier fit
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not one of the user's own
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing: the only file is the one that was loaded."""

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._last_global_step_saved = checkpoint["global_step"]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._trains = True
        if trainer.world_size > 1:
            self._of_ranks = BackgroundMaximum()
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread can handle signals
        signums = [signal.SIGTERM, signal.SIGINT]
        cluster = trainer._accelerator_connector.cluster_environment
        if isinstance(cluster, SLURMEnvironment) and cluster.auto_requeue:
            self._requeue_signal = cluster.requeue_signal or signal.SIGUSR1
            signums.append(self._requeue_signal)
        # These replace Lightning's handlers, which act in the middle of a step.
        self._handlers = {signum: signal.signal(signum, self._receive) for signum in signums}

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self._received == signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = signum
        or_next = "" if self._of_ranks is None else ", or of the next one, as all ranks stop together"
        log.info("%s: the run stops at the end of this step%s", signal.Signals(signum).name, or_next)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.fit_loop._should_accumulate():  # the gradient that was accumulated so far would be lost
            return
        if self._of_ranks is None:
            self._stop_if(self._received, trainer)
            return
        # What the ranks sent at the end of the last step has arrived by now, a whole step later.
        self._stop_if(self._of_ranks.take(), trainer)
        if not self._stops:
            self._of_ranks.begin(self._received)

    def _stop_if(self, received: int, trainer: Trainer) -> None:
        """Stop the run if `received` is the number of a signal, and not 0."""
        if received:
            self._received = received
            # Lightning raises a `SIGTERMException` before the next batch, after everything is logged.
            trainer._signal_connector.received_sigterm = self._stops = True

    def _stop_if_any_rank(self, trainer: Trainer) -> None:
        """Stop the run if any rank sent a signal's number at the end of the step; used before a longer operation."""
        if self._of_ranks is not None:
            self._stop_if(self._of_ranks.take(), trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_any_rank(trainer)
        if self._stops:  # let the validation finish: half of it would measure nothing
            trainer._signal_connector.received_sigterm = False

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        filepath, self._deferred = self._deferred, None
        if filepath is not None:
            self._save_checkpoint(trainer, filepath)
        if self._stops:
            trainer._signal_connector.received_sigterm = True

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handlers()
        if not isinstance(exception, SIGTERMException):
            self._of_ranks = None  # not closed, which would wait for the other ranks
            return
        self._close()
        self._save_unless_saved(trainer)
        received = signal.Signals(self._received or signal.SIGTERM)
        if trainer.is_global_zero:
            log.warning("stopped by %s after %s", received.name, counted(trainer.global_step, "step"))
        exception.code = 128 + received
        if received == self._requeue_signal and trainer.is_global_zero:
            _requeue()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_any_rank(trainer)
        super().on_train_epoch_end(trainer, pl_module)
        steps, epochs = trainer.max_steps, trainer.max_epochs
        is_last = trainer.should_stop or 0 <= steps <= trainer.global_step or epochs == trainer.current_epoch + 1
        within = self._every_n_train_steps or self._train_time_interval  # with these Lightning saves at no epoch's end
        if is_last or within:  # not in `on_train_end`, when Lightning counts an epoch that was cut short as complete
            self._save_unless_saved(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_handlers()
        self._close()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._trains:
            return
        path = Path(str(self.dirpath), f"{self.filename}{self.FILE_EXTENSION}")
        if not trainer.strategy.broadcast(path.is_file()):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_unless_saved(self, trainer: Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _close(self) -> None:
        if self._of_ranks is not None:
            self._of_ranks.close()
            self._of_ranks = None

    def _restore_handlers(self) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}

    @override
    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        loop: Any = trainer.fit_loop.epoch_loop
        progress = loop.batch_progress.current
        if progress.completed < progress.processed:  # in `on_train_batch_end`
            if loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
                self._deferred = filepath  # after a resume from here, Lightning would skip the validation
                return
            trainer._logger_connector.update_train_step_metrics()  # which Lightning does after this hook
        with writing(filepath):
            for logger in trainer.loggers:
                logger.save()  # a resumed run logs only what comes after the checkpoint
        ours = isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
        trainer.save_checkpoint(filepath, self.save_weights_only, storage_options="keep" if ours else None)
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath


def _requeue() -> None:
    """Ask SLURM to run this job again, which then resumes its run."""
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    job = os.environ["SLURM_JOB_ID"] if task is None else f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("scontrol requeue %s failed: %s", job, getattr(error, "stderr", None) or error)
    else:
        log.info("requeued as job %s", job)
