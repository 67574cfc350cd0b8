"""Puts files that pages link outside of this folder, such as `../configs/cifar.yaml`, onto the site."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"(?<=\]\()\.\./(?=[\w/.-]+[)#])")


def on_files(files: Files, config: Any) -> Files:
    """Add what is linked, in a folder of the same name."""
    text = "".join(file.content_string for file in files.documentation_pages())
    for path in sorted(set(re.findall(r"\]\(\.\./([\w/.-]+)", text))):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Link it there."""
    return markdown if page.file.generated_by else OUTSIDE.sub("", markdown)
