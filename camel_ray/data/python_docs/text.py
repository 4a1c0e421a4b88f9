"""Pretraining text: the language reference's topics and the documentation of modules, classes and functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from camel_ray.data.python_docs.extract import Documented


def documents(objects: Sequence[Documented]) -> Iterator[tuple[None, dict[str, Any]]]:
    """One document for each topic, module, function, and class with its methods. The split is left to their content."""
    # Imported here: one large dictionary that only this view needs.
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield None, {"text": topics[name].strip(), "object": name, "kind": "topic"}
    for owner, members in groupby(objects, key=_owner):
        entries = list(members)
        yield None, {"text": "\n\n".join(map(_rendered, entries)), "object": owner, "kind": entries[0].kind}


def _owner(entry: Documented) -> str:
    """The class of a method, else the object itself: what one document is about."""
    return entry.name.rpartition(".")[0] if entry.kind in ("method", "property") else entry.name


def _rendered(entry: Documented) -> str:
    signature = "" if entry.arguments is None else f"({entry.arguments})"
    return f"{entry.kind} {entry.name}{signature}\n{entry.doc.strip()}"
