"""Pairs of answers to the same question: the documented one, and a plausible wrong one.

The wrong answers are the ways in which people and small language models get it wrong; `kind` in a row says which, so
that accuracy can be given for each. Some show in the language alone (a repeated phrase, words out of order), others
only to who knows the object. Length does not give the answer away: "the longer answer wins" is right on about half of
the pairs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from camel_ray.data.python_docs.answers import answers, number, pick
from camel_ray.data.python_docs.extract import Documented
from camel_ray.data.python_docs.instructions import question

PAIRS_PER_OBJECT = 2

_VAGUE = (
    "It depends.", "It does what its name says.", "It is used in Python programs.", "See the documentation.",
    "It is a useful {kind}.", "You can use it when you need it.", "It has many uses.",
    "It works as you would expect.", "That is hard to say in general.", "There are several ways to use it.",
    "It is part of the {module} module.", "Many programs use it for all kinds of things.",
    "It does something with its arguments, depending on the situation.",
    "You should read the documentation of {module} to find out more about it.",
    "It can be helpful in some cases, but there may be better ways to do it.",
    "This {kind} is one of the things that Python offers, and it can be used in different ways.",
    "I am not sure what it does, but it is probably related to {module}.",
    "What it does exactly depends on the version of Python and on how it is called.",
)  # fmt: skip

_OPPOSITES = (
    ("return", "remove"), ("returns", "removes"), ("true", "false"), ("first", "last"), ("open", "close"),
    ("read", "write"), ("create", "delete"), ("add", "remove"), ("all", "none of"), ("start", "stop"),
    ("get", "set"), ("encode", "decode"), ("encoded", "decoded"), ("input", "output"), ("left", "right"),
    ("uppercase", "lowercase"), ("before", "after"), ("with", "without"), ("if", "unless"), ("is", "is not"),
    ("are", "are not"), ("can", "cannot"), ("string", "number"), ("list", "dictionary"), ("file", "socket"),
    ("from", "into"), ("maximum", "minimum"), ("new", "old"), ("class", "string"), ("function", "file"),
    ("object", "directory"), ("send", "receive"), ("begin", "end"), ("start", "end"), ("time", "name"),
    ("path", "thread"), ("value", "error"), ("and", "but not"), ("given", "unknown"), ("current", "previous"),
    ("used", "ignored"), ("raise", "catch"), ("convert", "compare"), ("same", "opposite"), ("one", "several"),
    ("server", "keyboard"), ("must", "must not"),
)  # fmt: skip
_SWAPS = {a: b for pair in _OPPOSITES for a, b in (pair, pair[::-1]) if " " not in a}
_MOST_SWAPS = 3


@dataclass(frozen=True)
class _Case:
    """One pair in the making. `salt` makes its choices."""

    entry: Documented
    answer: str
    others: Sequence[str]
    salt: tuple[str, ...]

    @property
    def target(self) -> int:
        """Length the wrong answer aims at: shorter in 5 of 8 cases, because most kinds cannot shrink much."""
        step = number("length", *self.salt) % 8
        return int(len(self.answer) * (0.5 + 0.08 * step if step < 5 else 1.15 + 0.2 * (step - 5)))

    def other(self, wanted: int) -> str:
        """Another object's answer, of about the wanted length."""
        candidates = [pick(self.others, "other", str(i), *self.salt) for i in range(24)]
        return min((c for c in candidates if c != self.answer), key=lambda c: abs(len(c) - wanted), default=self.answer)


def preferences(objects: Sequence[Documented]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows (object name, columns) of the preference data set, in the order of the objects."""
    documented = answers(objects)
    others = list(documented.values())
    for entry in objects:
        if entry.name not in documented:
            continue
        first = number("kind", entry.name)
        for index in range(PAIRS_PER_OBJECT):
            case = _Case(entry, documented[entry.name], others, (entry.name, str(index)))
            kind = _SCHEDULE[(first + index * (len(_SCHEDULE) // PAIRS_PER_OBJECT)) % len(_SCHEDULE)]
            kind, rejected = next(_wrong_answers(case, kind))
            yield (
                entry.name,
                {
                    "prompt": question(entry, f"preference {index}"),
                    "chosen": case.answer,
                    "rejected": rejected,
                    "object": entry.name,
                    "kind": kind,
                },
            )


def _wrong_answers(case: _Case, kind: str) -> Iterator[tuple[str, str]]:
    """A wrong answer of the wanted kind if this answer lends itself to it, then of kinds that suit more answers."""
    for candidate in (kind, "garbled", "vague"):
        rejected = _KINDS[candidate](case)
        if rejected is not None and rejected != case.answer:
            yield candidate, rejected


def _other_object(case: _Case) -> str:
    return case.other(case.target)


def _vague(case: _Case) -> str:
    """Sentences that would answer any question, up to the target length."""
    text, index = "", 0
    while not text or len(text) < case.target - 30:
        sentence = pick(_VAGUE, "vague", str(index), *case.salt).format(kind=case.entry.kind, module=case.entry.module)
        text = text if sentence in text else f"{text} {sentence}".strip()
        index += 1
    return text


def _opposite(case: _Case) -> str | None:
    """The documented answer with up to three words turned into their opposite or into another term."""
    words = re.findall(r"\w+|\W+", case.answer)
    places = [index for index, word in enumerate(words) if word.lower() in _SWAPS]
    if not places:
        return None
    start = number("swap", *case.salt) % len(places)
    for place in (places[start:] + places[:start])[:_MOST_SWAPS]:
        word, swapped = words[place], _SWAPS[words[place].lower()]
        words[place] = swapped.capitalize() if word[0].isupper() else swapped
    return "".join(words)


def _repeating(case: _Case) -> str | None:
    """The beginning of the answer, then one phrase of it again and again."""
    words = case.answer.rstrip(".").split()
    length = 2 + number("phrase", *case.salt) % 3
    if len(words) < length + 1:
        return None
    start = number("from", *case.salt) % max(1, (len(words) - length) // 2)
    text = " ".join(words[: start + length])
    phrase = " ".join(words[start : start + length])
    text = f"{text} {phrase}"
    while len(text) + len(phrase) < case.target:
        text = f"{text} {phrase}"
    return f"{text}."


def _garbled(case: _Case) -> str | None:
    """The words of the answer out of order, some missing or doubled."""
    words = case.answer.rstrip(".").split()
    if len(words) < 4:
        return None
    order = sorted(range(len(words)), key=lambda i: i + number("garble", str(i), *case.salt) % 6)
    mixed = [words[i] for i in order]
    missing = case.target - len(case.answer)
    while missing < -6 and len(mixed) > 3:
        missing += len(mixed.pop(number("drop", str(len(mixed)), *case.salt) % len(mixed))) + 1
    while missing > 6:
        word = pick(words, "double", str(missing), *case.salt)
        mixed.insert(number("at", str(missing), *case.salt) % len(mixed), word)
        missing -= len(word) + 1
    text = " ".join(mixed)
    return f"{text[0].upper()}{text[1:]}."


def _spliced(case: _Case) -> str | None:
    """The first words of the answer, continued by the last words of another object's."""
    words = case.answer.split()
    head = " ".join(words[: max(2, len(words) // 2)])
    tail = case.other(2 * max(10, case.target - len(head))).split()
    return f"{head} {' '.join(tail[len(tail) // 2 :])}"


def _unfinished(case: _Case) -> str | None:
    """An answer that stops in the middle of a sentence."""
    text = case.answer
    if case.target > len(text):
        text = f"{text} {case.other(80)}"
    words = text[: case.target].rsplit(" ", 1)[0].rstrip(".,;: ")
    return words if words.count(" ") >= 2 and not text.startswith(f"{words}.") else None


_KINDS: dict[str, Callable[[_Case], str | None]] = {
    "other object": _other_object,
    "vague": _vague,
    "opposite": _opposite,
    "repeating": _repeating,
    "garbled": _garbled,
    "spliced": _spliced,
    "unfinished": _unfinished,
}
_SHARES = {"garbled": 5, "vague": 4, "repeating": 4, "unfinished": 2, "opposite": 2, "other object": 2, "spliced": 1}
_SCHEDULE = [kind for kind, share in _SHARES.items() for _ in range(share)]
"""Kinds in proportion to their share (in twentieths). Two thirds show in the language alone."""
