"""Rewrites arguments before they are parsed: names of shipped configs and `--ckpt_path` become paths of files."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from msssl.cli.commands import OF_TRAINER
from msssl.cli.parser import PLATEAU, load, plateau_path
from msssl.errors import UserError
from msssl.evaluation.rebuild import paths_where_it_began
from msssl.run.files import CONFIG, read
from msssl.run.find import find
from msssl.run.run_folder import is_requeued, requeued_run

_ROOT = "--trainer.default_root_dir"
OF_DATA_OF_A_CONFIG = ("probe", "finetune", "neighbours")  # commands that take other images, and nothing else, of one


def shipped_configs() -> Path:
    """Folder of the configs that ship with the package: inside the wheel, or at the root of the repository."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parents[1] / "configs"


def expand(args: list[str]) -> list[str]:
    """Replace bare config names by paths, and `--ckpt_path` by its file, preceded by the config of its run."""
    plateau = plateau_path(any(re.match(r"--model\.lr_scheduler\.(init_args\.)?monitor\b", arg) for arg in args))
    args = [re.sub(rf"^(--[\w.]+=)?{PLATEAU}$", rf"\g<1>{plateau}", arg) for arg in args]
    args = [part for arg in args for part in _split(arg)]
    if args[:1] in (["sweep"], ["report"]):
        return _studies(args)
    _replace_configs(args)
    if args and args[0] in OF_DATA_OF_A_CONFIG:
        args = _suite(args)
    if args and args[0] == "fit" and is_requeued() and (run := requeued_run(_root(args))):
        i = args.index("--ckpt_path") if "--ckpt_path" in args else len(args)
        args[i : i + 2] = ["--ckpt_path", str(run)]  # not the one, if any, from which it began
    if args and args[0] in OF_TRAINER and "--ckpt_path" in args[:-1]:
        i = args.index("--ckpt_path") + 1
        if args[i] == "null":
            return args
        checkpoint = find(args[i], _root(args))
        args[i] = str(checkpoint)
        saved = checkpoint.with_name(CONFIG)
        if saved.is_file():  # first, so that every other config and flag wins
            args[1:1] = ["--config", str(saved), *_paths_of_run(checkpoint, saved)]
    return args


def _replace_configs(args: list[str]) -> None:
    """Replace the names of configs by their paths, in place; a probe and its like read their data only."""
    for i, (arg, name) in enumerate(pairwise(args)):
        is_config = arg in ("--config", "-c")
        if args[0] in OF_DATA_OF_A_CONFIG and (is_config or (arg == "--data" and name.endswith((".yaml", ".yml")))):
            args[i : i + 2] = ["--data", json.dumps(_data_of(find_config(name)))]
        elif is_config:
            args[i : i + 2] = [arg, find_config(name)]


def _suite(args: list[str]) -> list[str]:
    """Several data sets: the first one stays `--data`, and the others are what a probe evaluates `--also`."""
    places = [i for i, (arg, name) in enumerate(pairwise(args)) if arg == "--data" and name.startswith("{")]
    others = [args[i + 1] for i in places[1:]]
    if others and args[0] != "probe":
        raise UserError(f"{args[0]} takes one data set: give --data once")
    for i in reversed(places[1:]):
        del args[i : i + 2]
    return [*args, "--also", *others] if others else args


def _paths_of_run(checkpoint: Path, config: Path) -> list[str]:
    """Flags for the relative paths in the config of a run, which are meant from where it began."""
    data = _read_yaml(str(config)).get("data")
    arguments = data.get("init_args") if isinstance(data, dict) else None
    paths = paths_where_it_began(read(checkpoint), arguments or {})
    return [part for name, path in paths.items() for part in (f"--data.{name}", path)]


def _studies(args: list[str]) -> list[str]:
    """A study and its overlays are plain words to the parser, named as configs are."""
    return [find_config(arg) if arg.endswith(".yaml") else arg for arg in args if arg not in ("--config", "-c")]


def _split(arg: str) -> list[str]:
    name, equals, value = arg.partition("=")
    return [name, value] if equals and name in ("--config", "--ckpt_path", "-c", _ROOT) else [arg]


def _root(args: list[str]) -> str:
    """Folder of the runs, by the flag, else by the last config that names it."""
    roots: list[str | None] = ["runs"]
    for name, value in pairwise(args):
        if name in ("--config", "-c"):
            trainer = _read_yaml(value).get("trainer")
            roots.insert(0, trainer.get("default_root_dir") if isinstance(trainer, dict) else None)
    roots = [*reversed([value for name, value in pairwise(args) if name == _ROOT]), *roots]
    return next(root for root in roots if root is not None)


def _data_of(path: str) -> Any:
    data = _read_yaml(path).get("data")
    if not data:
        raise UserError(f"config {path} names no data")
    return data


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        config = load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} is not YAML: {error}") from error
    return config if isinstance(config, dict) else {}


def find_config(name: str) -> str:
    """Path of a config that is here, or else ships with the package under this name."""
    if Path(name).exists() or Path(name).is_absolute():
        return name
    shipped = shipped_configs()
    if not (shipped / name).is_file():
        if Path(name).name != name:
            return name
        known = ", ".join(sorted(path.name for path in shipped.glob("*.yaml")))
        raise FileNotFoundError(f"config {name} is neither here nor among those that ship with msssl: {known}")
    return str(shipped / name)
