"""Plain words for the types of the schema: what a value should be, and what lies below a field.

The loader's sentences, `camel-ray explain` and the generated reference say the same thing because they all ask here.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from camel_ray.api.base import Spec
from camel_ray.api.cluster import PATTERN_WORDS

_SCALARS: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Any: "any value",
}
_PLURALS = {
    "text": "texts",
    "a mapping": "mappings",
    "a number": "numbers",
    "a whole number": "whole numbers",
    "text or a mapping": "texts or mappings",
}
_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
_PATTERN = re.compile(r"\^\[a-z(0-9)?\]\(\[-a-z0-9\]\{0,(\d+)\}\[a-z0-9\]\)\?\$")


def fields(model: type[Spec]) -> dict[str, FieldInfo]:
    """The fields of a spec model by the name a user writes."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def alternatives(annotation: Any) -> list[Any]:
    """The types a value may have: unions opened, `Annotated` removed."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [a for member in typing.get_args(annotation) for a in alternatives(member)]
    return [annotation]


def models(annotation: Any) -> list[type[Spec]]:
    """The spec models a value may be, also as items of a list."""
    found: list[type[Spec]] = []
    for option in alternatives(annotation):
        if isinstance(option, type) and issubclass(option, Spec):
            found.append(option)
        elif typing.get_origin(option) is list:
            found.extend(models(typing.get_args(option)[0]))
    return list(dict.fromkeys(found))


def choices(annotation: Any) -> list[Any]:
    """The allowed values of a field that has a fixed set of them, also as items of lists; else nothing."""
    found: list[Any] = []
    for option in alternatives(annotation):
        if typing.get_origin(option) is Literal:
            found.extend(typing.get_args(option))
        elif typing.get_origin(option) in (list, tuple):
            for item in typing.get_args(option):
                found.extend(choices(item))
    return list(dict.fromkeys(found))


def expected(annotation: Any, metadata: list[Any] | None = None) -> str:
    """What a value should be, such as `a whole number, at least 1` or `text or a list of text`."""
    words = " or ".join(dict.fromkeys(_one(option) for option in alternatives(annotation) if option is not type(None)))
    several = any(typing.get_origin(option) in (list, tuple, dict) for option in alternatives(annotation))
    bounds = " and ".join(_bounds(metadata or [], "entries" if several else "characters"))
    return f"{words}, {bounds}" if bounds else words


def default(info: FieldInfo) -> Any:
    """The default in the form a user would write; PydanticUndefined for a required field."""
    value = info.get_default(call_default_factory=True)
    if isinstance(value, Spec):
        return value.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
    return list(value) if isinstance(value, tuple) else value


def is_required(info: FieldInfo) -> bool:
    """Whether a user has to write the field."""
    return info.default is PydanticUndefined and info.default_factory is None


def locate(root: type[Spec], path: typing.Sequence[str | int]) -> tuple[Any, list[Any]] | None:
    """Annotation and constraints of the value at a path of keys and indices below `root`, or None if the schema has
    none.
    """
    annotation: Any = root
    metadata: list[Any] = []
    for part in path:
        step = _step(annotation, part)
        if step is None:
            return None
        annotation, metadata = step
    return annotation, metadata


def _step(annotation: Any, part: str | int) -> tuple[Any, list[Any]] | None:
    for option in alternatives(annotation):
        arguments = typing.get_args(option)
        if isinstance(part, int):
            if typing.get_origin(option) is list:
                return _unwrap(arguments[0])
            if typing.get_origin(option) is tuple and part < len(arguments):
                return _unwrap(arguments[part])
        elif isinstance(option, type) and issubclass(option, Spec):
            if (info := fields(option).get(part)) is not None:
                return info.annotation, info.metadata
        elif typing.get_origin(option) is dict:
            return _unwrap(arguments[1])
    return None


def _unwrap(annotation: Any) -> tuple[Any, list[Any]]:
    """An item's type and its constraints; pydantic moves them to `FieldInfo.metadata` for fields, but not inside
    lists.
    """
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *extras = typing.get_args(annotation)
        return inner, [m for extra in extras for m in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
    return annotation, []


def _one(option: Any) -> str:
    origin, arguments = typing.get_origin(option), typing.get_args(option)
    if origin is Literal:
        return choice_words(list(arguments))
    if origin is list:
        return f"a list of {_plural(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)} numbers"
    if origin is dict:
        return "a mapping" if arguments[1] is Any else f"a mapping of names to {_plural(arguments[1])}"
    if isinstance(option, type) and issubclass(option, Spec):
        return "a mapping"
    return _SCALARS[option]


def _plural(annotation: Any) -> str:
    item, metadata = _unwrap(annotation)
    words = expected(item, metadata)
    if words.startswith("one of "):
        return "any of " + words.removeprefix("one of ")
    return _PLURALS.get(words, words).replace("a list of", "lists of")


def choice_words(values: list[Any]) -> str:
    """`x`, `x or y`, `one of x, y, z`."""
    if len(values) <= 2:
        return " or ".join(str(v) for v in values)
    return "one of " + ", ".join(str(v) for v in values)


def _bounds(metadata: list[Any], counted: str) -> Iterator[str]:
    for constraint in metadata:
        for name, words in _BOUNDS.items():
            if (limit := getattr(constraint, name, None)) is not None:
                yield words.format(int(limit) if limit == int(limit) else limit)
        if (least := getattr(constraint, "min_length", None)) is not None:
            yield "not empty" if least == 1 else f"with at least {least} {counted}"
        if (most := getattr(constraint, "max_length", None)) is not None:
            yield f"with at most {most} {counted}"
        if pattern := getattr(constraint, "pattern", None):
            yield _pattern_words(str(pattern))


def _pattern_words(pattern: str) -> str:
    """A pattern in words: labels as Kubernetes knows them, those of `cluster.py`; any other is shown as it is."""
    match = _PATTERN.fullmatch(pattern)
    if match is None:
        return PATTERN_WORDS.get(pattern, f"matching {pattern}")
    first = "a letter or digit" if match.group(1) else "a letter"
    return (
        f"at most {int(match.group(2)) + 2} lower-case letters, digits and dashes, with {first} first and no dash last"
    )
