"""The one-sentence answer a docstring gives, and choices by hash.

Docstrings are written by hundreds of people over thirty years; what makes a good answer is decided here once: the
first sentence, in plain text, neither a stub nor an essay.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TypeVar

from camel_ray.data.python_docs.extract import Documented

T = TypeVar("T")

MIN_CHARACTERS, MAX_CHARACTERS = 20, 200
_MAX_SHARING = 3
"""An answer that more objects share ("Return a copy.") says too little about each."""

_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)[.!?](?=\s|$)|(?<=\w):(?=\s*$)|;(?=\s)")
_SIGNATURE = re.compile(r"^[\w.]+\([^)]*\)+(\s*(->|=|--)+\s*.*|\s*)$")
_STUB = re.compile(
    r"see (the )?(base|docs|help|doc|above|below)|deprecated|internal|not implemented|undocumented|xxx|todo", re.I
)
_MARKUP = (
    (re.compile(r":\w+(?::\w+)?:`~?([^`<]+?)\s*(?:<[^>]*>)?`"), r"\1"),  # :class:`Path`
    (re.compile(r"`{1,2}([^`]+)`{1,2}"), r"\1"),
    (re.compile(r"\*{1,2}(\w[^*\s]*)\*{1,2}"), r"\1"),
    (re.compile(r"\s+"), " "),
    (re.compile(r"\s+([,.;:])(?=\s|$)"), r"\1"),
)


def pick(options: Sequence[T], *key: str) -> T:
    """One of the options, always the same for the same key."""
    return options[number(*key) % len(options)]


def number(*key: str) -> int:
    """A large pseudo-random integer that depends on the key only."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(key).encode(), digest_size=8).digest(), "big")


def answers(objects: Sequence[Documented]) -> dict[str, str]:
    """The documented answer by object name, for objects that have a good one, in their order."""
    sentences = {entry.name: sentence for entry in objects if (sentence := first_sentence(entry.doc)) is not None}
    sharing: dict[str, int] = {}
    kept: dict[str, str] = {}
    for name, sentence in sentences.items():
        sharing[sentence] = sharing.get(sentence, 0) + 1
        if sharing[sentence] <= _MAX_SHARING:
            kept[name] = sentence
    return kept


def first_sentence(doc: str) -> str | None:
    """The first sentence of a docstring as plain text that ends with a full stop, or None if it makes no good
    answer.
    """
    paragraph: list[str] = []
    for line in doc.strip().splitlines():
        if not line.strip():
            if paragraph:
                break
        elif paragraph or not _SIGNATURE.match(line.strip()):
            paragraph.append(line.strip())
    text = " ".join(paragraph)
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    text = text.strip(" -")
    end = _SENTENCE_END.search(text, 12)
    if end is not None:
        text = text[: end.start()]
    text = text.strip(" .,;:-")
    if not text or ">>>" in text or "->" in text or "==" in text or _STUB.search(text):
        return None
    if text[0].islower() and re.match(r"[a-z]+(\s|$)", text):
        text = text[0].upper() + text[1:]
    text += "."
    plain = sum(character.isalpha() or character == " " for character in text) >= 0.8 * len(text)
    balanced = text.count("(") == text.count(")") and text.count('"') % 2 == 0
    fits = MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS and text.count(" ") >= 2
    return text if plain and balanced and fits and text.isascii() else None
