"""Shows the doctests of docstrings as code."""

import re
from typing import Any

from griffe import Extension, Object

PARAGRAPH = re.compile(r"^>>> .*(?:\n.+)*", flags=re.MULTILINE)


class Doctests(Extension):
    """Puts a fence around each paragraph that begins with a prompt."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Change the docstring before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = PARAGRAPH.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
