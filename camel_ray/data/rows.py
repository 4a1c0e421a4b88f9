"""What flows from a source to the data set: rows with their place, and rows that could not be used.

A reader never stops at a bad row: it yields a `Rejected` with file, line and reason, and the next row. Only a file
that cannot be read at all raises (`DataError`). So one broken line costs one row and can still be found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_EXAMPLES = 100
"""Rejected rows kept with their place in a report."""
_MAX_EXAMPLES_PER_REASON = 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands. `line` counts from 1: a line of a text file, else the number of the row."""

    file: str
    line: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.line}"


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row as the source has it.

    `split_key`: rows with the same key fall on the same side of the split; None leaves it to the row's first question
    or text.
    """

    columns: Mapping[str, Any]
    place: Place
    split_key: str | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used. `reason` is a short name to count by, `detail` says what is wrong with this one."""

    place: Place
    reason: str
    detail: str


class Unusable(ValueError):
    """Raised inside the conversion of one row; `prepare` turns it into a `Rejected`."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        super().__init__(detail)


@dataclass
class RejectedRows:
    """Counts rejected rows by reason and keeps the first few of each as examples."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[Rejected] = field(default_factory=list)

    def add(self, row: Rejected) -> None:
        """Count one row, and keep it while there is room."""
        self.counts[row.reason] += 1
        if len(self.examples) < MAX_EXAMPLES and self.counts[row.reason] <= _MAX_EXAMPLES_PER_REASON:
            self.examples.append(row)
