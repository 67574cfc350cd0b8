"""Every block of the documentation is executed, each command to its end; those of several processes when slow.

The configs that pages name are found in the working directory first, where miniatures of them lie; CIFAR is noise in
its own format. Command lines are executed as they are written.
"""

import ast
import functools
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec

import pytest
import science_files
import yaml
from conftest import fitted_in, load, without_checksums, write_cifar10
from documentation import (
    CONFIGS,
    LANGUAGES,
    NOT_RUN,
    OUTPUT,
    PAGES,
    ROOT,
    Page,
    blocks,
    commands_of,
    inline_commands,
    write_miniatures,
)
from PIL import Image

pytestmark = pytest.mark.long
OF_DATA = ("validate", "test", "predict", "inspect", "write-beton")  # commands with the configs of a fit
PROGRAMS = {
    "msssl": [sys.executable, "-m", "msssl"],
    "python": [sys.executable],
    "pytest": [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run"],
}
TWO_PROCESSES = {"ddp.yaml", "--trainer.devices"}
IN_CHILDREN = """
from torchvision import datasets

datasets.CIFAR10._check_integrity = lambda self: True
datasets.cifar.check_integrity = lambda *args: True
"""
INTERNAL = ("module 'msssl' has no attribute …", "worse than the median", 'Parser key "…":\n…')
SELF_EXPLANATORY = re.compile("expected|did you mean|at least|between 0 and 1|auto is for both|too large for")


def starts_processes(kind, words):
    """Whether a command starts processes of its own, or reads what those of a sweep left."""
    report = words[:2] == ["msssl", "report"] and words[2].endswith(".yaml")
    return kind == "torchrun" or "sweep" in words[:2] or report or bool(TWO_PROCESSES & {*words})


@pytest.fixture(scope="session")
def cifar_run(tmp_path_factory):
    """The folder of an earlier run, which pages call `runs/A`, beside the data."""
    folder = tmp_path_factory.mktemp("earlier")
    write_cifar10(folder / "data", 8, classes=2)  # 18 training images of each
    write_miniatures(folder)
    with pytest.MonkeyPatch.context() as patch:
        without_checksums(patch)
        return fitted_in(folder, ["fit", "--config", "cifar.yaml"]).parent.rename(folder / "A")


@pytest.fixture(scope="session")
def probed_run(cifar_run, tmp_path_factory):
    """The same, probed."""
    from msssl.evaluation import probe

    folder = tmp_path_factory.mktemp("probed")
    shutil.copytree(cifar_run.parent / "data", folder / "data")
    run = shutil.copytree(cifar_run, folder / "B")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_checksums(patch)
        probe(str(run), baselines=False)
    return run


@pytest.fixture(scope="session")
def wide_run(tmp_path_factory):
    """An earlier run with a network that torchvision has."""
    folder = tmp_path_factory.mktemp("wide")
    write_miniatures(folder)
    wide = ["--model.backbone=msssl.ResNet", "--model.backbone.low_resolution=false"]
    return fitted_in(folder, ["fit", "--config", "demo.yaml", *wide]).parent


@pytest.fixture
def stand_ins(tmp_path, monkeypatch, cifar_run, image_folder):
    """Puts into the working directory what a page names: small configs and data, earlier runs, folders of images."""

    def prepare(path, **runs):
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        without_checksums(monkeypatch)
        write_miniatures(tmp_path)
        shutil.copytree(CONFIGS, tmp_path / "configs")
        for example in CONFIGS.glob("**/*.py"):
            shutil.copy(example, tmp_path)
        large = re.search(r"cifar.yaml.* --data.batch_size (64|128)", path.read_text())
        write_cifar10(tmp_path / "data", 60 if large else 8, classes=2)
        for name in {"A", *re.findall(r"runs/(B|\d{8}-\d{6})", path.read_text())}:
            shutil.copytree(runs.get(name, cifar_run), tmp_path / "runs" / name)
        shutil.copy(cifar_run / "last.ckpt", tmp_path / "FILE")
        for name in ("DIR", "my_images", "LABELLED"):
            shutil.copytree(image_folder, tmp_path / name)
        for name in ("DIR/scans", "UNLABELLED"):
            (tmp_path / name).mkdir()
            for i in range(1, 21):
                Image.effect_noise((24, 24), i).save(tmp_path / name / f"{i:04}.png")
        if path.stem == "science":
            _write_images_of_science(tmp_path)
        _take_for_the_images_of_studies(tmp_path / "DIR", tmp_path / "paper/small")
        (tmp_path / "on_import").mkdir()
        (tmp_path / "on_import" / "sitecustomize.py").write_text(IN_CHILDREN)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "on_import"), *sys.path]))
        monkeypatch.setenv("PL_TRAINER_MAX_STEPS", "2")  # what Lightning takes where a script does not say
        monkeypatch.setenv("PL_TRAINER_ACCELERATOR", "cpu")
        monkeypatch.setenv("PL_TRAINER_LIMIT_VAL_BATCHES", "2")

    return prepare


def _write_images_of_science(folder):
    """Small folders of each kind, and a network by name, which takes the flag that the page names."""
    pytest.importorskip("tifffile")
    pytest.importorskip("pydicom")
    science_files.xrays(folder / "XRAYS")
    science_files.cells(folder / "CELLS")
    science_files.bands(folder / "BANDS", side=24)
    for label in ("healthy", "sick"):
        science_files.volumes(folder / "VOLUMES" / "train" / label)
    science_files.aerial(folder / "AERIAL", side=512, empty=100)
    config = yaml.safe_load((folder / "imagefolder.yaml").read_text())
    config["model"]["init_args"]["backbone"] = "timm:test_resnet"
    config["data"]["init_args"]["image_size"] = 24
    (folder / "imagefolder.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def _take_for_the_images_of_studies(folder, studies):
    """Let small studies accept this folder instead of the images that they are of."""
    from msssl.studies.folder import content_hash

    n_files, content = content_hash(folder)
    for path in studies.glob("*.yaml"):
        study = yaml.safe_load(path.read_text())
        if "folder" in study:
            study["folder"] |= {"files": n_files, "sha256": content}
            path.write_text(yaml.safe_dump(study, sort_keys=False))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_page(path, stand_ins, msssl, monkeypatch, capfd, probed_run, wide_run):
    """Its blocks are executed one after the other; YAML and commands of several processes, or within text, parsed."""
    from msssl.cli.check import check_fit
    from msssl.cli.parser import ParsingError

    stand_ins(path, A=wide_run if path.stem == "export" else probed_run, B=probed_run)
    parse, follow = Parse(msssl), Follow(msssl)

    def command(where, kind, words):
        several = starts_processes(kind, words) and path.stem != "new-method"  # which compares two processes with one
        without_ffcv = find_spec("ffcv") is None and {"write-beton", "ffcv.yaml"} & {*words}
        chosen = parse if kind in NOT_RUN or several or without_ffcv else follow
        chosen.command(where, kind, words)

    Page(path, command, parse.config).execute()
    for line in inline_commands(path):
        parse.command(f"{path}: `{line}`: ", "msssl", line.split())
    assert not follow.failed, "\n\n".join(follow.failed)
    if parse.fits:
        monkeypatch.setattr(sys, "argv", ["msssl", "fit"])
        try:
            check_fit(parse.fits)
        except ParsingError as error:
            pytest.fail(error.message)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in PAGES if any(starts_processes(*each) for each in commands_of(path))], ids=lambda p: p.stem
)
def test_page_of_several_processes(path, stand_ins, msssl, probed_run, wide_run):
    """All of its commands are run."""
    stand_ins(path, A=wide_run if path.stem == "export" else probed_run, B=probed_run)
    follow = Follow(msssl)
    Page(path, follow.command, lambda where, path: None).execute()
    assert not follow.failed, "\n\n".join(follow.failed)


class Parse:
    """Parses commands and configs; those of `msssl fit` are kept, to be parsed together."""

    def __init__(self, msssl):
        self.msssl = msssl
        self.fits = {}

    def command(self, where, kind, words):
        from msssl.cli.arguments import expand
        from msssl.cli.commands import Command

        if "-m" in words or words[:2] == ["docker", "run"]:
            words = words[words.index("msssl") :]
        if words[0] != "msssl":
            assert is_there(kind, words), f"{where}{' '.join(words)}"
        elif words[1] == "fit":
            self.fits[where] = [word for word in expand(words[1:]) if word != "--print_config"]
        else:
            with pytest.MonkeyPatch.context() as patch:
                load = Command.load
                patch.setattr(Command, "load", lambda command: parsed_only(load(command)))
                code, _, err = self.msssl(*words[1:], *(["--print_config"] if words[1] in OF_DATA else []))
            assert code == 0, f"{where}{err}"

    def config(self, where, path):
        content = yaml.safe_load(path.read_text())
        if "arms" in content:
            read(path)
        else:
            whole = all("class_path" in content.get(part, {}) for part in ("model", "data"))
            base = [] if whole else ["--config", "demo.yaml"]
            self.command(where, "msssl", ["msssl", "fit", *base, "--config", str(path)])


class Follow:
    """Runs commands, those of one process in this one, and keeps what failed."""

    def __init__(self, msssl):
        self.msssl = msssl
        self.failed = []

    def command(self, where, kind, words):
        if kind in NOT_RUN:
            return
        if kind == "msssl" and words[1] != "--version" and not starts_processes(kind, words):
            code, out, err = self.msssl(*words[1:])
        else:
            done = subprocess.run([*PROGRAMS.get(kind, [kind]), *words[1:]], capture_output=True, text=True)
            code, out, err = done.returncode, done.stdout, done.stderr
        if code:
            self.failed.append(f"{where}{' '.join(words)}\n{out[-2000:]}{err[-2000:]}")


def test_every_block_is_executed(capsys):
    """Counted twice: by the parser that executes them, and by another."""
    executed, commands = 0, []
    for path in PAGES:
        languages = blocks(path)
        assert {*languages} <= {*LANGUAGES, *OUTPUT}
        examples = list(Page(path, None, None).document.examples())
        assert len(examples) == sum(language in LANGUAGES for language in languages), path
        executed += len(examples)
        commands += commands_of(path)
    several = sum(starts_processes(*each) for each in commands if each[0] not in NOT_RUN)
    not_run = Counter(kind for kind, _ in commands if kind in NOT_RUN)
    with capsys.disabled():
        lines = [
            f"\n{executed} of {executed} blocks of {len(PAGES)} pages; {len(commands)} commands, of which",
            f"  {several} of several processes are parsed here, and run by `make docs-test`; and not run:",
            *(f"  {number} x {name}: {NOT_RUN[name]}" for name, number in not_run.items()),
        ]
        sys.stdout.write("\n".join(lines) + "\n")


def parsed_only(function):
    """A function of the same arguments that does nothing."""

    @functools.wraps(function)
    def nothing(*args, **kwargs):
        return None

    return nothing


def read(study):
    from msssl.studies import read_study

    assert read_study([str(study)]).rows


def is_there(kind, words):
    """Whether what a command names that is not run is there."""
    if kind == "make":
        return re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    if kind == "pip":
        text = (ROOT / "pyproject.toml").read_text()
        extras = re.findall(r"msssl\[(.+?)\]", " ".join(words))
        return all(
            re.search(rf"^{name} = \[", text, flags=re.MULTILINE) for name in ",".join(extras).split(",") if name
        )
    if kind == "docker":
        return (ROOT / words[words.index("-f") + 1]).is_file()
    if kind == "benchmarks":
        text = (ROOT / words[1]).read_text()
        own = [word[2:] for word in words if word.startswith("--") and word != "--config"]
        return all(re.search(rf"\b{name}\b", text) for name in own)
    if kind == "sbatch":
        return len(list((CONFIGS / "examples").glob(words[1].rpartition("/")[2]))) == 1
    return True


@functools.cache
def nodes():
    """Of the syntax trees of the source."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "src" / "msssl").rglob("*.py"))
    return [node for tree in trees for node in ast.walk(tree)]


def template(node):
    """The fixed parts of a string, with `…` between them; nothing for what is no string."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    known = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return re.sub(r"%[\d.]*[sdgf]|\{\}", "…", node.value) if known else ""


def raised():
    """What is raised with a message of letters."""
    calls = [node.exc for node in nodes() if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    messages = [template(call.args[0]) for call in calls if call.args]
    return [message for message in messages if re.search("[a-z]", message) and message not in INTERNAL]


def test_messages_of_the_page_of_errors_are_those_of_the_source():
    """Each that is quoted exists; each that is raised is quoted, unless it says itself what it expects."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^\| `(.+?)` \|", text, flags=re.MULTILINE)
    known = "\0".join({text for text in map(template, nodes()) if len(text) < 400})  # docstrings are longer
    patterns = [r"[^\0]*".join(map(re.escape, message.split("…"))) for message in quoted]
    assert [message for message, each in zip(quoted, patterns, strict=True) if not re.search(each, known)] == []
    unlisted = [message for message in raised() if not any(re.search(each, message) for each in patterns)]
    assert [message for message in unlisted if not SELF_EXPLANATORY.search(message)] == []


def test_formulas_become_mathml_within_their_paragraph():
    pytest.importorskip("latex2mathml")
    hooks = load(ROOT / "docs" / "hooks.py")
    page = "$a_s$ are `$x$` directions of $S = 3$ lines: $$\\frac1N$$ and ```\n$y$\n``` as they are; 5 $ and 6 $."
    made = hooks.FORMULA.sub(hooks._as_mathml, page)
    assert made.startswith("<span><math")  # a paragraph that begins with <math> is taken for a block of HTML
    assert made.count("<math") == 3
    assert 'display="block"' in made
    assert "`$x$`" in made
    assert "```\n$y$\n```" in made
    assert made.endswith("5 $ and 6 $.")
