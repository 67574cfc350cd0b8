"""Prepares pages for the site: links to files outside of this folder, such as `../configs/cifar.yaml`, and formulas."""

import os
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?:\.\./)+[\w/.-]+")
# A code block, a code span, or a formula. The first two stay as they are.
FORMULA = re.compile(r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|\$(?=\S)([^$\n]+?)(?<=\S)\$(?!\w)", re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add files outside of this folder to which a page links, in a folder of the same name."""
    linked = {target for file in files.documentation_pages() for target in _outside(file, file.content_string).values()}
    for path in sorted(linked):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Link to these files where they are on the site, and write formulas as MathML, which needs no script."""
    if page.file.generated_by:
        return markdown
    targets = _outside(page.file, markdown)
    folder = Path(page.file.src_uri).parent
    markdown = LINK.sub(
        lambda link: os.path.relpath(targets[link[0]], folder) if link[0] in targets else link[0], markdown
    )
    return FORMULA.sub(_as_mathml, markdown)


def _outside(file: File, markdown: str) -> dict[str, str]:
    """Links of a page to files outside of this folder, and their paths from the root of the repository."""
    folder = Path("docs", file.src_uri).parent
    paths = {link: os.path.normpath(folder / link) for link in LINK.findall(markdown)}
    return {link: path for link, path in paths.items() if not path.startswith("docs" + os.sep)}


def _as_mathml(match: re.Match[str]) -> str:
    code, block, inline = match.groups()
    if code is not None:
        return code
    # Within a span: a paragraph that begins with <math> would be taken for a block of HTML.
    return convert(block, display="block") if block is not None else f"<span>{convert(inline)}</span>"
