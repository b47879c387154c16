"""Show the `Example:` blocks of docstrings as code in the API pages."""

import re
from typing import Any

import griffe

_BLOCK = re.compile(r"^(?P<indent> *)Example:\n(?P<code>(?:(?P=indent) {4}.*\n|\n)+)", re.MULTILINE)


class DocstringExamples(griffe.Extension):
    """Fence the code of each `Example:` block, which would else be set as a paragraph."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = _BLOCK.sub(_fenced, obj.docstring.value + "\n").rstrip()


def _fenced(match: re.Match[str]) -> str:
    indent, code = match["indent"], match["code"].rstrip()
    return f"{indent}Example:\n{indent}    ```python\n{code}\n{indent}    ```\n\n"
