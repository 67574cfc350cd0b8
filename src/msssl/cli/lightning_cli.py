"""`MultiViewCLI`, a LightningCLI that makes a folder for each run and prints a summary at its end."""

import sys
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar, Timer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from typing_extensions import override

from msssl.callbacks import (
    BestCheckpoint,
    LastCheckpoint,
    OnlineKNN,
    OnlineProbe,
    ProgressiveResolution,
    RankMonitor,
    ViewGrid,
)
from msssl.cli.arguments import expand
from msssl.cli.bar import Bar
from msssl.cli.commands import COMMANDS
from msssl.cli.epoch_lines import EpochLines, has_terminal
from msssl.cli.from_checkpoint import check_weights, module_of, own_data_of, prepare_alike
from msssl.cli.log import set_up_logging
from msssl.cli.parser import Parser, parser_of
from msssl.cli.precision import choose_precision
from msssl.cli.predict import add_predict_arguments, features_writer
from msssl.cli.resume import SaveConfig, go_on
from msssl.cli.summary import log_start, print_summary
from msssl.data import MultiViewDataModule
from msssl.errors import UserError
from msssl.methods import MultiViewModule
from msssl.run.files import check_writable, read
from msssl.run.last_validation import LastValidation
from msssl.run.loggers import ShortEpochs, run_loggers
from msssl.run.pace import Pace
from msssl.run.run_folder import clean_up_failed_run, new_run_folder, tag_with_slurm_job

LOG_EVERY_N_STEPS = 50  # Lightning's default


def run(args: list[str]) -> None:
    """Parse the arguments and run the command."""
    set_up_logging()
    sys.argv[1:] = expand(args)  # in place: Lightning starts the other ranks with the same arguments
    start(MultiViewCLI, args[0] if args and args[0] in COMMANDS else None)


def start(kind: type["MultiViewCLI"], command: str | None) -> None:
    """Parse what is in `sys.argv` and run it.

    Args:
        kind: of command line.
        command: the only one whose parser is built, as all of them take a second; None for all.
    """
    kind(
        MultiViewModule,
        MultiViewDataModule,
        command=command,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_callback=SaveConfig,
        save_config_kwargs={"save_to_log_dir": False},
        trainer_defaults={"enable_model_summary": False},
        parser_class=Parser,
    )


class MultiViewCLI(LightningCLI):
    """Runs any `MultiViewModule` on any `MultiViewDataModule`."""

    run_dir: Path | None = None
    goes_on = False  # whether `run_dir` is that of a run that was stopped
    steps_before: int | None = None  # of the run that goes on

    def __init__(self, *args: Any, command: str | None, **kwargs: Any) -> None:
        self.commands = COMMANDS if command is None else {command: COMMANDS[command]}
        try:
            super().__init__(*args, **kwargs)
        except BaseException as error:
            if self.run_dir is not None:
                steps = self.trainer.global_step if hasattr(self, "trainer") else 0
                clean_up_failed_run(self.run_dir, error, ran=steps > (self.steps_before or 0), keep=self.goes_on)
            raise

    @override
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static there
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name in self.commands}

    @override
    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        super().setup_parser(*args, **kwargs)
        functions = {name: command for name, command in self.commands.items() if command.function is not None}
        self.functions = {name: command.load() for name, command in functions.items()}
        self.function_parsers: dict[str, LightningArgumentParser] = {}
        for name, command in functions.items():
            if command.takes_data:
                parser = self.init_parser(description=command.sentence)
                self._add_arguments(parser)  # those of a fit, so that its configs can be given
                parser.add_function_arguments(self.functions[name], skip={"data"})
            else:
                parser = parser_of(self.functions[name], command.sentence)
            self.function_parsers[name] = parser
            self.parser.commands.add_subcommand(  # type: ignore[attr-defined]  # ours, in `Parser`
                name, parser, help=command.sentence
            )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # Keys of their own, and not `trainer.callbacks`, a list that an overlay would replace as a whole.
        kinds = {"online_probe": OnlineProbe, "best_checkpoint": BestCheckpoint, "rank_monitor": RankMonitor}
        on_request = {"online_knn": OnlineKNN, "progressive_resolution": ProgressiveResolution}
        for key, kind in {**kinds, **on_request}.items():
            default = {"class_path": f"msssl.callbacks.{kind.__name__}"} if key in kinds else None
            parser.add_argument(f"--{key}", type=kind | None, default=default)
            parser.callback_keys.append(key)
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")

    @override
    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        kwargs["classes_required"] = subcommand == "fit"  # a checkpoint says what they are
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            add_predict_arguments(parser)
        return parser

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        name = self.config.subcommand
        if name in self.functions and self.commands[name].takes_data:
            self._run_on_data(name)
        elif name in self.functions:
            given = self.function_parsers[name].instantiate(self.config[name])
            plain = {
                key: value.as_dict() if isinstance(value, Namespace) else value for key, value in vars(given).items()
            }
            self.functions[name](**plain)
            sys.exit(0)

    def _run_on_data(self, command: str) -> NoReturn:
        """Run a command on the data module of a config; what it returns is wrong with the data."""
        config, function = self.config[command], self.functions[command]
        only_data = Namespace(data=config.data)  # type: ignore[no-untyped-call]
        data = self.function_parsers[command].instantiate(only_data).data
        given = config.seed_everything
        data.seed = seed_everything(given if type(given) is int else None, verbose=False)
        options = {name: config[name] for name in signature(function).parameters if name != "data"}
        sys.exit(1 if function(data, **options) else 0)

    @override
    def _parse_ckpt_path(self) -> None:
        """Not Lightning's: there the checkpoint's hyperparameters silently win over flags."""

    @override
    def instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        ckpt_path = config.get("ckpt_path")
        if self.subcommand == "fit" or ckpt_path is None:
            if missing := [name for name in ("model", "data") if config[name] is None]:
                raise UserError(f"{' and '.join(missing)} missing: name a checkpoint by --ckpt_path, or a config")
            super().instantiate_classes()
            return
        path, checkpoint = Path(ckpt_path), read(ckpt_path)
        plain = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_unset=False))
        module = module_of(path, checkpoint, plain["model"])
        data = own_data_of(path, checkpoint) if config["data"] is None else None
        if module is not None:
            config["model"] = None  # not built twice
        super().instantiate_classes()
        self.model, self.datamodule = module or self.model, data or self.datamodule
        check_weights(path, checkpoint, self.model)
        prepare_alike(path, checkpoint, self.datamodule)

    @override
    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        ckpt_path = self.config_init[self.subcommand].get("ckpt_path")
        precision = choose_precision(config["precision"], config["accelerator"], ckpt_path)
        config["precision"] = self.config[self.subcommand]["trainer"]["precision"] = precision  # which is saved
        callbacks = [callback for callback in callbacks if callback is not None]  # `online_probe: null`
        given = config["callbacks"] if isinstance(config["callbacks"], list) else [config["callbacks"]]
        pace = Pace() if self.subcommand == "fit" else None
        if not any(isinstance(callback, ProgressBar) for callback in given):  # of the user's own
            shown = config["enable_progress_bar"] is not False and has_terminal()
            config["enable_progress_bar"] = shown
            every = config["log_every_n_steps"] or LOG_EVERY_N_STEPS
            callbacks += [Bar(every, pace)] if shown else [EpochLines(pace)] if pace else []
        if self.subcommand == "fit":
            callbacks = [*([pace] if pace else []), *callbacks, *self._prepare_run(config)]
        else:
            self.save_config_callback = None
            config["logger"] = self.subcommand != "predict" and (config["logger"] or False)  # which has nothing to log
        if self.subcommand != "fit" or config["enable_checkpointing"] is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, ModelCheckpoint)]
        if self.subcommand == "predict":
            self.writer = features_writer(self.config_init["predict"])
            callbacks = [callback for callback in callbacks if isinstance(callback, ProgressBar)] + [self.writer]
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(self.run_dir) if self.run_dir else None
        try:
            return super()._instantiate_trainer(config, callbacks)
        except (TypeError, ValueError) as error:  # a value of its arguments
            raise UserError(f"trainer: {error}") from error

    def _prepare_run(self, config: dict[str, Any]) -> list[Callback]:
        """Choose the run's folder, log into it unless `logger` is false, and return the callbacks of a fit."""
        if config["fast_dev_run"]:
            return []
        ckpt_path = self.config_init["fit"]["ckpt_path"]
        if ckpt_path is not None:
            plain = yaml.safe_load(self._parser("fit").dump(self.config["fit"], skip_unset=False))
            self.steps_before, self.goes_on = go_on(ckpt_path, plain, self.model)
        if self.goes_on:
            self.run_dir = Path(ckpt_path).parent
            check_writable(self.run_dir)
            tag_with_slurm_job(self.run_dir)
        else:
            self.run_dir = new_run_folder(Path(config["default_root_dir"] or "runs"))
        config["default_root_dir"] = self.run_dir
        if config["logger"] is not False:  # those of the user are added to ours
            given = config["logger"] if isinstance(config["logger"], list) else [config["logger"]]
            ours = run_loggers(self.run_dir, self.steps_before if self.goes_on else None)
            config["logger"] = [*ours, *(logger for logger in given if logger not in (None, True))]
        clock = [] if config["max_time"] else [Timer()]  # minutes of the run, for reports; max_time brings its own
        return [
            ShortEpochs(),
            LastValidation(),
            ViewGrid(),
            *clock,
            *([LearningRateMonitor()] if config["logger"] else []),
        ]

    def before_predict(self) -> None:
        """Find what is wrong before the work."""
        given = self.config_init["predict"]
        self.writer.prepare(self.model, given["ckpt_path"])
        self.datamodule.predict_split = given["split"]

    def before_fit(self) -> None:
        """Say what runs, and where."""
        log_start(self.trainer, self.model, self.datamodule, self.run_dir)

    def after_fit(self) -> None:
        """Say what came out."""
        if self.run_dir is not None and self.trainer.is_global_zero:
            print_summary(self.trainer, self.run_dir, self.steps_before)
