"""Where rows come from and what shape they have."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from camel_ray.api.base import Spec

DataFormat = Literal["text", "prompt-completion", "messages", "preference", "labelled"]


class ColumnSpec(Spec):
    """Names of the columns to read, where they differ from the usual ones."""

    text: str | None = None
    """Column with the text of a `text` or `labelled` row."""
    prompt: str | None = None
    """Column with the prompt: a string, or a list of `{role, content}` messages."""
    completion: str | None = None
    """Column with the wanted answer of a `prompt-completion` row."""
    input: str | None = None
    """Optional column whose text is appended to the prompt after an empty line (Alpaca's `input`)."""
    messages: str | None = None
    """Column with a list of `{role, content}` messages."""
    chosen: str | None = None
    """Column with the preferred answer of a `preference` row."""
    rejected: str | None = None
    """Column with the other answer of a `preference` row."""
    label: str | None = None
    """Column with the class of a `labelled` row: an integer or a name."""


class DataSpec(Spec):
    """A data set: where its rows are, their format, and how they are cleaned and split."""

    source: str | list[str] = Field(min_length=1)
    """One or several of: `builtin://python-docs/text`, `/instructions` or `/preferences`; a file or directory of
    .jsonl, .json, .csv, .parquet or .txt (optionally .gz); `hf://owner/name`; any fsspec URI such as
    `s3://bucket/data.jsonl`."""
    validation_source: str | list[str] | None = None
    """Rows for validation, from the same kinds of places. Without it, `validation` of the rows is held out."""
    format: DataFormat | None = None
    """Shape of a row. Left out, it is detected from the columns, and a row that fits no format is an error."""
    columns: ColumnSpec = ColumnSpec()
    """Names of the columns to read, where they differ from the usual ones."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    split: str = "train"
    """Split of a hub data set to read."""
    validation: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Share of the rows held out for validation, chosen by a hash of their content, so that the same row always falls
    on the same side. 0 holds out nothing."""
    deduplicate: bool = True
    """Drop rows whose normalised content was seen before, and training rows that also stand in validation."""
    min_characters: int = Field(default=1, ge=0)
    """Shortest text (all fields of a row together) that is kept, in characters."""
    max_characters: int | None = Field(default=None, ge=1)
    """Longest text (all fields of a row together) that is kept, in characters."""
    limit: int | None = Field(default=None, ge=1)
    """Keep at most this many training rows (and in proportion validation rows), in their order, after cleaning."""
    shuffle: bool = True
    """Put rows into a deterministic pseudo-random order (by hash of content and seed)."""
    max_rejected: float = Field(default=0.5, ge=0.0, le=1.0)
    """Largest share of rows that may be rejected before the stage fails instead of training on what is left."""


DataRef = str | DataSpec
"""A data stage's name, or a data set described in place."""
