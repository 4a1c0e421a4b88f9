"""A real corpus that every machine has: the documentation inside the running Python's standard library.

Three views of it, each a source of its own:

    builtin://python-docs/text           reference topics and the documentation of modules, one class or function a row
    builtin://python-docs/instructions   questions ("What does os.path.join do?") with the documented answer
    builtin://python-docs/preferences    the same questions with the documented answer and a plausible wrong one

All rows about one object carry its name as `split_key`, so instructions and preferences hold out the same objects.
The text is what this Python version says; another version gives slightly other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from camel_ray.data.python_docs.extract import documented_objects
from camel_ray.data.python_docs.instructions import instructions
from camel_ray.data.python_docs.preferences import preferences
from camel_ray.data.python_docs.text import documents
from camel_ray.data.rows import Place, SourceRow
from camel_ray.errors import DataError

_PREFIX = "builtin://python-docs/"
_VIEWS: dict[str, Callable[[], Iterator[tuple[str | None, dict[str, Any]]]]] = {
    "text": lambda: documents(documented_objects()),
    "instructions": lambda: instructions(documented_objects()),
    "preferences": lambda: preferences(documented_objects()),
}


def rows(uri: str) -> Iterator[SourceRow]:
    """Rows of one view, in a fixed order. Raises DataError if there is no such view."""
    view = _VIEWS.get(uri.removeprefix(_PREFIX)) if uri.startswith(_PREFIX) else None
    if view is None:
        raise DataError(f"{uri} is not a builtin data set; there are {', '.join(_PREFIX + name for name in _VIEWS)}")
    for number, (key, columns) in enumerate(view(), start=1):
        yield SourceRow(columns, Place(uri, number, "row"), split_key=key)
