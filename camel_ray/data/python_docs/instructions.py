"""Questions about documented objects, each with an answer that the documentation gives.

Most rows ask what an object does. Others have short answers that can be checked exactly: the reverse question (which
object does this?), the parameters, and what kind of object it is. `kind` in a row says which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from camel_ray.data.python_docs.answers import answers, number, pick
from camel_ray.data.python_docs.extract import Documented

_DO = (
    "What does {name} do?",
    "What does {name}() do?",
    "Explain {name} in one sentence.",
    "What is {name} for?",
    "Describe the {kind} {name}.",
    "In Python, what does {name} do?",
)
_IS = (
    "What is {name}?",
    "What is the {kind} {name} for?",
    "Explain {name} in one sentence.",
    "Describe the {kind} {name}.",
    "In Python, what is {name}?",
)
_REVERSE = (
    'Which {kind} has this description? "{answer}"',
    "Which {kind} is this? {answer}",
    "Name the {kind} described as: {answer}",
)
_ARGUMENTS = (
    "Which arguments does {name} take?",
    "What are the parameters of {name}?",
    "How is {name} called?",
)
_KIND = ("Is {name} a module, a class, a function, a method or a property?", "What kind of object is {name}?")
_LONGEST_ARGUMENTS = 80


def instructions(objects: Sequence[Documented]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows (object name, columns) of the instruction data set, in the order of the objects."""
    documented = answers(objects)
    for entry in objects:
        answer = documented.get(entry.name)
        if answer is None:
            continue
        yield entry.name, _row(entry, "describe", question(entry, "instruction"), answer)
        fields = {"name": entry.name, "kind": entry.kind, "answer": answer}
        choice = number("extra", entry.name) % 8
        if choice in (0, 1) and _last(entry).lower() not in answer.lower():
            yield (
                entry.name,
                _row(entry, "reverse", pick(_REVERSE, "reverse", entry.name).format(**fields), f"{entry.name}."),
            )
        elif choice in (2, 3) and entry.arguments is not None and len(entry.arguments) <= _LONGEST_ARGUMENTS:
            asked = pick(_ARGUMENTS, "arguments", entry.name).format(**fields)
            yield entry.name, _row(entry, "arguments", asked, f"{entry.name}({entry.arguments})")
        elif choice == 4:
            owner = entry.name.rpartition(".")[0]
            of = "of" if entry.kind in ("method", "property") else "in"
            described = f"It is a {entry.kind} {of} {owner}." if owner else f"It is a {entry.kind}."
            yield entry.name, _row(entry, "kind", pick(_KIND, "kind", entry.name).format(**fields), described)


def question(entry: Documented, salt: str) -> str:
    """A question about what an object does, in one of several phrasings."""
    templates = _DO if entry.kind in ("function", "method") else _IS
    return pick(templates, salt, entry.name).format(name=entry.name, kind=entry.kind)


def _last(entry: Documented) -> str:
    return entry.name.rpartition(".")[2]


def _row(entry: Documented, kind: str, prompt: str, completion: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "object": entry.name, "kind": kind}
