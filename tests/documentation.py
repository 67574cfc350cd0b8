"""The code blocks of the documentation, and what executes them: see `test_docs.py`."""

import copy
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from sybil import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

import msssl

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
METHOD_PAGES = sorted((ROOT / "docs/methods").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), *METHOD_PAGES]
LANGUAGES = ("python", "bash", "yaml", "csv")
OUTPUT = ("", "text")  # blocks that show what is printed, or a drawing
NOT_RUN = {  # named in a comment before the block, `<!-- not run: pip -->`: why, and what is looked at instead
    "pip": "installs: its extra is looked up",
    "apt-get": "installs",
    "git": "needs a network",
    "make": "sets up an environment: its target is looked up",
    "pre-commit": "is for a clone",
    "sbatch": "needs SLURM: its script is looked up",
    "docker": "needs an engine and a GPU: its file is looked up, and the msssl line is parsed",
    "several machines": "are not at hand: the msssl line is parsed",
    "tensorboard": "serves until it is stopped",
    "benchmarks": "measures for minutes, or on a GPU: its arguments are looked up",
}
TINY = {  # of a config that names its data; the rest is as it ships
    "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 2, "log_every_n_steps": 1},
    "data": {"num_workers": 0, "batch_size": 8},
    "STL10": {"batch_size": 2, "val_fraction": 0.5},
    "ImageFolder": {"batch_size": 4},
    "Shapes": {"train_images": 60, "test_images": 20},
}


class Page:
    """A page: its blocks are executed in order, in one namespace and one folder, the working directory.

    Args:
        path: of the page.
        command: what is called with where a command stands and its words.
        config: what is called with where a block of YAML stands and the file that it is written to.
    """

    def __init__(self, path: Path, command: Callable[..., None], config: Callable[..., None]) -> None:
        evaluators = {"python": self._python, "bash": self._bash, "yaml": self._yaml, "csv": self._csv}
        self.path, self.command, self.config = path, command, config
        self.document = Document.parse(str(path), *(CodeBlockParser(*each) for each in evaluators.items()))

    def execute(self) -> None:
        for example in self.document.examples():
            try:
                example.evaluate()
            except BaseException as error:
                error.add_note(f"{self.path}:{example.line}")
                raise

    def _python(self, example):
        named = re.match(r".*# (\w+\.py)\b", example.parsed)
        if named:
            Path(named[1]).write_text(example.parsed)
        if named and re.search(rf"^(python|pytest) {named[1]}$", self.document.text, flags=re.MULTILINE):
            compile(example.parsed, named[1], "exec")  # that command executes it
        else:
            with pytest.MonkeyPatch.context() as patch:  # not of 256 images
                patch.setattr(msssl, "CIFAR10", partial(msssl.CIFAR10, batch_size=4, num_workers=0), raising=False)
                PythonEvaluator()(example)

    def _yaml(self, example):
        named = re.match(r"# (\S+\.yaml)\b", example.parsed)
        path = Path(named[1] if named else f"block{example.line}.yaml")
        path.write_text(example.parsed)
        self.config(f"{self.path.name}:{example.line}: ", path)

    def _csv(self, example):
        Path("list.csv").write_text(example.parsed)

    def _bash(self, example):
        comment = re.search(r"<!-- not run: (.*) -->\s*$", self.document.text[: example.region.start])
        marked = comment[1].split(", ") if comment else []
        found = set()
        for offset, line in enumerate(example.parsed.replace("\\\n", "  ").splitlines()):
            line = line.partition(" > ")[0]
            words = [word for each in shlex.split(line, comments=True) for word in _paths(each)]
            if not words:
                continue
            kind = kind_of(words)
            if kind in NOT_RUN:
                found.add(kind)
            self.command(f"{self.path.name}:{example.line + 1 + offset}: ", kind, words)
        assert found <= {*marked}, f"{found - {*marked}} cannot be run, and no comment before the block says so"
        assert set(marked) <= found, f"{set(marked) - found} is not there"


def _paths(word: str) -> list[str]:
    """As a shell has it."""
    return sorted(map(str, Path().glob(word))) or [word] if "*" in word else [word]


def kind_of(words: list[str]) -> str:
    """The program that a command starts, by the name that it has in `NOT_RUN`."""
    if words[0] == "python" and words[1].startswith("benchmarks/"):
        return "benchmarks"
    if words[0] == "torchrun" and "--nnodes" in words:
        return "several machines"
    return Path(words[0]).name


def commands_of(path: Path) -> list[tuple[str, list[str]]]:
    """Kind and words of each command in the blocks of a page, none of which is run."""
    found: list[tuple[str, list[str]]] = []
    page = Page(path, lambda where, kind, words: found.append((kind, words)), lambda where, path: None)
    for example in page.document.examples():
        if example.region.lexemes["arguments"] == "bash":
            example.evaluate()
    return found


def inline_commands(path: Path) -> list[str]:
    """Commands of msssl within the text, those that are whole."""
    return [
        each
        for each in re.findall(r"`(msssl [a-z-]+ [^`]*)`", path.read_text())
        if "..." not in each and "--help" not in each
    ]


def blocks(path: Path) -> list[str]:
    """The language of each fenced block of a page, found without the help of the parser that executes them."""
    return re.findall(r"^ *```(.*)\n(?:(?! *```).*\n)* *```$", path.read_text(), flags=re.MULTILINE)


def write_miniatures(folder: Path) -> None:
    """The shipped configs under their own names, found first, and as they are but for what makes them long."""
    for path in CONFIGS.glob("*.yaml"):
        (folder / path.name).write_text(yaml.safe_dump(_miniature(path), sort_keys=False))
    for path in CONFIGS.glob("paper/**/*.yaml"):
        small = folder / path.relative_to(CONFIGS)
        small.parent.mkdir(parents=True, exist_ok=True)
        small.write_text(yaml.safe_dump(_small_study(path), sort_keys=False))


def _miniature(path: Path) -> dict:
    config = yaml.safe_load(path.read_text())
    data = config.get("data", {})
    if "class_path" in data and path.name != "ffcv.yaml" and "model" in config:
        kind = data["class_path"].rpartition(".")[2]
        config["trainer"] |= TINY["trainer"]
        config["rank_monitor"] = None  # half a second of pictures
        data["init_args"] |= {**TINY["data"], **TINY.get(kind, {})}
        backbone = {"depth": 18, "width": 4, "low_resolution": True}
        config["model"]["init_args"]["backbone"] = {"class_path": "msssl.ResNet", "init_args": backbone}
    if path.name == "ddp.yaml":
        config["trainer"]["accelerator"] = "cpu"
    if path.name == "resnet50.yaml":
        config["model"]["backbone"] = {"class_path": "msssl.ResNet", "init_args": {"depth": 50, "width": 2}}
    if path.name == "vit.yaml":
        config["model"]["init_args"]["backbone"]["init_args"] |= {"width": 12, "depth": 1}
    if path.name == "large_projector.yaml":
        config["model"]["init_args"]["proj_dim"] = 512
    if path.name == "logdet.yaml":
        config["model"]["init_args"]["proj_dim"] = 4  # below the number of images in a batch
    return config


def _small_study(path: Path) -> dict:
    """A study of one run."""
    study = copy.deepcopy(yaml.safe_load(path.read_text()))  # without anchors
    study |= {"seeds": [0]} if "base" in study else {}
    for name, arm in list(study.get("arms", {}).items())[:1]:
        grid = {
            axis: values[:1] if isinstance(values, list) else dict(list(values.items())[-1:])
            for axis, values in arm.get("grid", {}).items()
        }
        study["arms"] = {name: {"set": arm.get("set", {}), "grid": grid}}
        study["measures"] = {"linear": {"protocol": "standard"}}
        study.setdefault("set", {}).update({"trainer.max_steps": 2, "data.batch_size": 8})
    return study
