"""Finds out which format rows have, and brings each row into it.

The format follows from the columns: a `Binding` says which column plays which part. Common names of each part are known
(`question` and `instruction` are prompts, `output` and `answer` completions); `columns` in the spec overrides them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from camel_ray.api.data import ColumnSpec, DataFormat
from camel_ray.data.conversations import (
    Message,
    answer_of,
    messages_of,
    prompt_of,
    shared_prefix,
    text_of,
    transcript,
)
from camel_ray.data.rows import SourceRow, Unusable
from camel_ray.errors import DataError

ALIASES: dict[str, tuple[str, ...]] = {
    "text": ("text", "content", "document", "sentence", "body"),
    "prompt": ("prompt", "instruction", "question", "query", "problem"),
    "completion": ("completion", "output", "response", "answer", "solution", "target"),
    "input": ("input", "context"),
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog", "turns"),
    "chosen": ("chosen", "preferred", "accepted"),
    "rejected": ("rejected", "dispreferred"),
    "label": ("label", "labels", "category"),
    "label_name": ("label_name", "label_text"),
}
"""Column names that are known for each part of a row, the first match winning."""

_NEEDS: dict[DataFormat, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "labelled": ("text", "label"),
    "text": ("text",),
}
"""Parts each format needs, in the order in which formats are tried: the more telling ones first."""
_OPTIONAL: dict[DataFormat, tuple[str, ...]] = {
    "preference": ("prompt", "input"),
    "messages": (),
    "prompt-completion": ("input",),
    "labelled": ("label_name",),
    "text": (),
}
assert set(_NEEDS) == set(get_args(DataFormat))


@dataclass(frozen=True)
class Binding:
    """A format, and the column of each of its parts."""

    format: DataFormat
    columns: Mapping[str, str]

    def normalise(self, row: SourceRow) -> dict[str, Any]:
        """The columns of `dataset.SCHEMAS[format]`.

        Raises Unusable if a value has the wrong type, is empty or out of order.
        """
        fields = getattr(self, "_" + self.format.replace("-", "_"))(row.columns)
        used = set(self.columns.values())
        if self.format == "prompt-completion":
            used.discard(self.columns["completion"])  # a reward function checks against the reference answer
        fields["row"] = _json({name: value for name, value in row.columns.items() if name not in used})
        return dict(fields)

    def _get(self, columns: Mapping[str, Any], part: str) -> Any:
        name = self.columns[part]
        if name not in columns:
            raise Unusable("missing column", f"the row has no `{name}`")
        return columns[name]

    def _text(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        return {"text": text_of(self._get(columns, "text"), self.columns["text"])}

    def _labelled(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        label = self._get(columns, "label")
        name = columns.get(self.columns.get("label_name", ""))
        if isinstance(label, bool) or (isinstance(label, str) and label.strip()):
            number, named = None, str(label).strip()
        elif isinstance(label, int) and label >= 0:
            number, named = label, name if isinstance(name, str) and name else str(label)
        else:
            raise Unusable(
                "bad label", f"`{self.columns['label']}` is {label!r} instead of a name or an integer from 0"
            )
        return {**self._text(columns), "label": number, "label_name": named}

    def _messages(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        messages = messages_of(self._get(columns, "messages"), self.columns["messages"])
        if messages[-1]["role"] == "user":
            messages = messages[:-1]  # a question nobody answered teaches nothing
        if not any(message["role"] == "assistant" for message in messages):
            raise Unusable("no answer", f"`{self.columns['messages']}` has no assistant turn")
        return {"messages": messages}

    def _prompt(self, columns: Mapping[str, Any]) -> list[Message]:
        prompt = prompt_of(self._get(columns, "prompt"), self.columns["prompt"])
        extra = columns.get(self.columns.get("input", ""))
        if extra is None or (isinstance(extra, str) and not extra.strip()):
            return prompt
        joined = f"{prompt[-1]['content']}\n\n{text_of(extra, self.columns['input'])}"
        return [*prompt[:-1], Message(role="user", content=joined)]

    def _prompt_completion(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        completion = answer_of(self._get(columns, "completion"), self.columns["completion"])
        return {"prompt": self._prompt(columns), "completion": completion}

    def _preference(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        values = {part: self._get(columns, part) for part in ("chosen", "rejected")}
        values = {part: transcript(value) or value for part, value in values.items()}
        if all(isinstance(value, (list, tuple)) and len(value) > 1 for value in values.values()):
            chosen, rejected = (messages_of(values[part], self.columns[part]) for part in ("chosen", "rejected"))
            prompt = shared_prefix(chosen, rejected)
            answers = chosen[-1]["content"], rejected[-1]["content"]
        elif "prompt" in self.columns:
            prompt = self._prompt(columns)
            answers = (
                answer_of(values["chosen"], self.columns["chosen"]),
                answer_of(values["rejected"], self.columns["rejected"]),
            )
        else:
            raise Unusable(
                "missing column", "the row has no prompt: neither a column nor earlier turns in both answers"
            )
        if answers[0].strip() == answers[1].strip():
            raise Unusable("same answers", "`chosen` and `rejected` are the same")
        return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}


def bind(columns: Collection[str], overrides: ColumnSpec, format: DataFormat | None) -> Binding | None:
    """How rows with these columns are read: as `format`, or as the first format that fits. None if none does."""
    for candidate in _NEEDS if format is None else (format,):
        bound = {part: _column(part, columns, overrides) for part in (*_NEEDS[candidate], *_OPTIONAL[candidate])}
        if all(bound[part] is not None for part in _NEEDS[candidate]):
            return Binding(candidate, {part: name for part, name in bound.items() if name is not None})
    return None


def no_format(columns: Collection[str], overrides: ColumnSpec, format: DataFormat | None, place: str) -> DataError:
    """The error for rows that fit no format: the columns found, what the nearest one lacks, and what each needs."""
    missing = {
        candidate: [part for part in needs if _column(part, columns, overrides) is None]
        for candidate, needs in _NEEDS.items()
        if format in (None, candidate)
    }
    nearest = min(missing, key=lambda candidate: (len(missing[candidate]), -len(_NEEDS[candidate])))
    lacks = " and ".join(f"`{getattr(overrides, part, None) or part}`" for part in missing[nearest])
    found = ", ".join(sorted(columns)) or "none"
    needs = "" if format else " (" + "; ".join(f"{name}: {', '.join(parts)}" for name, parts in _NEEDS.items()) + ")"
    wanted = f"the format {format!r}" if format else f"any format{needs}, nearest is {nearest!r}"
    return DataError(
        f"{place}: columns {found} do not fit {wanted}: no column {lacks}; name the columns to read under `columns`"
    )


def _column(part: str, columns: Collection[str], overrides: ColumnSpec) -> str | None:
    chosen = getattr(overrides, part, None)
    if chosen is not None:
        return chosen if chosen in columns else None
    by_lower = {name.lower(): name for name in sorted(columns, reverse=True)}
    return next((by_lower[alias] for alias in ALIASES[part] if alias in by_lower), None)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, sort_keys=True)


def _plain(value: Any) -> Any:
    """A JSON value; numbers JSON lacks become null, bytes their length, and other types (dates, decimals) their
    text.
    """
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
