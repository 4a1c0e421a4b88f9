"""HTML that escapes by construction: only what `element` returned is markup, every other value becomes text."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

_VOID = frozenset({"br", "hr", "meta"})
# Control characters are forbidden in HTML, and lone surrogates cannot be written as UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class Html(str):
    """Text that already is markup."""

    __slots__ = ()


def element(tag: str, *children: object, **attributes: object) -> Html:
    """`<tag ...>children</tag>`.

    Children are escaped unless they are `Html`; lists are flattened and None is left out. In attribute names a trailing
    underscore is dropped and others become dashes (`class_`, `stroke_width`); None and False leave an attribute out,
    True writes its name only.
    """
    start = tag + "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Html(f"<{start}>")
    return Html(f"<{start}>{join(*children)}</{tag}>")


def join(*children: object) -> Html:
    """Children one after another, escaped unless they are `Html`."""
    return Html("".join(_flat(children)))


def text(value: object) -> Html:
    """Any value as escaped text; characters HTML cannot hold become U+FFFD."""
    return Html(html.escape(_UNPRINTABLE.sub("\ufffd", str(value)), quote=True))


def _flat(children: Iterable[object]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            yield child
        elif isinstance(child, Iterable) and not isinstance(child, str):
            yield from _flat(child)
        else:
            yield text(child)


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{text(value)}"'
