import ast
import re
import tomllib
from pathlib import Path

import lightning
import yaml

SOURCE = Path(__file__).parents[1] / "src" / "msssl"


def test_readme_is_short():
    assert len((SOURCE.parents[1] / "README.md").read_text().splitlines()) <= 120


def test_newest_heading_of_the_changelog_is_unreleased_or_the_version():
    from msssl import __version__

    changelog = (SOURCE.parents[1] / "CHANGELOG.md").read_text()
    heading = next(line for line in changelog.splitlines() if line.startswith("## "))
    assert heading in ("## [Unreleased]", f"## [{__version__}]")


def test_a_citation_is_of_this_version():
    from msssl import __version__

    citation = yaml.safe_load((SOURCE.parents[1] / "CITATION.cff").read_text())
    assert (citation["title"], citation["version"]) == ("msssl", __version__)


def test_the_oldest_pytorch_that_is_tested_is_the_oldest_that_is_allowed():
    root = SOURCE.parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    (allowed,) = (each.removeprefix("torch>=") for each in project["dependencies"] if each.startswith("torch>="))
    (tested,) = re.findall(r"^OLDEST := torch==(\S+)", (root / "Makefile").read_text(), flags=re.MULTILINE)
    assert tested == f"{allowed}.0"


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def defined_in(tree):
    """Names of functions and classes, and those that something is assigned to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def used_of_lightning(tree, of_lightning):
    """Private names of Lightning that a file reads, sets, imports or overrides."""
    own = {*defined_in(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in of_lightning:
            on_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not (on_self and node.attr in own):
                yield node.attr
        elif isinstance(node, ast.FunctionDef) and node.name in of_lightning:
            if any(isinstance(each, ast.Name) and each.id == "override" for each in node.decorator_list):
                yield node.name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning"):
            yield from (each.name for each in node.names if is_private(each.name))


def test_private_names_of_lightning_stand_in_run_and_cli_alone_each_with_its_reason():
    package = Path(lightning.__file__).parent
    trees = (ast.parse(path.read_text()) for path in package.rglob("*.py"))
    of_lightning = {name for tree in trees for name in defined_in(tree) if is_private(name)}
    used = set()
    for path in SOURCE.rglob("*.py"):
        name = path.name if path.parent.name == "run" else path.relative_to(SOURCE).as_posix()
        used |= {(name, each) for each in used_of_lightning(ast.parse(path.read_text()), of_lightning)}
    table = (SOURCE / "run" / "README.md").read_text().partition("## Private names of Lightning")[2]
    listed = set()
    for line in re.findall(r"^\| (`_.+?) \| (`.+?) \| .+ \|$", table, flags=re.MULTILINE):
        names, files = (re.findall(r"`(.+?)`", cell) for cell in line)
        listed |= {(file, name) for file in files for name in names}
    assert used == listed
    assert {file.partition("/")[0] for file, _ in used if "/" in file} == {"cli"}


def test_every_file_of_run_stands_in_its_readme():
    table = (SOURCE / "run" / "README.md").read_text()
    listed = re.findall(r"^\| `(\w+\.py)` \|", table, flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in (SOURCE / "run").glob("*.py") if path.name != "__init__.py")
