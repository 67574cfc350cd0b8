import re
import tomllib
from pathlib import Path

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
