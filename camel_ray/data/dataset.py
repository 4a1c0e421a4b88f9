"""A prepared data set: two `datasets.Dataset` in one of five formats, and the report of how they came about.

On disk it is one Arrow stream per side plus `report.json`. The files are written by us rather than by `save_to_disk`,
because that stores random fingerprints and the same rows have to give the same bytes: an artifact is known by its
digest. Loading maps the files into memory, so a data set larger than RAM is fine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import datasets
import pyarrow as pa

from camel_ray.api.data import DataFormat
from camel_ray.errors import DataError
from camel_ray.manifest import disk_errors, json_digest

# large_string: 64-bit offsets, so that a column may pass 2 GiB.
_MESSAGES = pa.list_(pa.struct([("role", pa.large_string()), ("content", pa.large_string())]))
_ROW = ("row", pa.large_string())

SCHEMAS: dict[DataFormat, pa.Schema] = {
    "text": pa.schema([("text", pa.large_string()), _ROW]),
    "prompt-completion": pa.schema([("prompt", _MESSAGES), ("completion", pa.large_string()), _ROW]),
    "messages": pa.schema([("messages", _MESSAGES), _ROW]),
    "preference": pa.schema(
        [("prompt", _MESSAGES), ("chosen", pa.large_string()), ("rejected", pa.large_string()), _ROW]
    ),
    "labelled": pa.schema(
        [("text", pa.large_string()), ("label", pa.int64()), ("label_name", pa.large_string()), _ROW]
    ),
}
"""Columns of each format. `row` is a JSON object with the other columns of the source row."""

_REPORT = "report.json"
_SIDES = ("train", "validation")
_BATCH = 1000


@dataclass(frozen=True)
class RejectedExample:
    """A rejected row as the report shows it."""

    file: str
    line: int
    reason: str
    detail: str


@dataclass(frozen=True)
class DataReport:
    """What was read, kept and left out.

    `rejected` counts rows by reason; `examples` lists up to 100 of them with their place.
    """

    format: DataFormat
    sources: list[str]
    rows_read: int
    rows_train: int
    rows_validation: int
    rejected: dict[str, int] = field(default_factory=dict)
    examples: list[RejectedExample] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    """Names of the classes of a `labelled` data set; the position is the label where labels run from 0."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return {**self.__dict__, "examples": [dict(example.__dict__) for example in self.examples]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> DataReport:
        """The inverse of `to_json`. Raises TypeError or KeyError if the object is something else."""
        return cls(**{**value, "examples": [RejectedExample(**example) for example in value["examples"]]})

    def metrics(self) -> dict[str, Any]:
        """The figures kept with the artifact."""
        return {
            "format": self.format,
            "rows_read": self.rows_read,
            "rows_train": self.rows_train,
            "rows_validation": self.rows_validation,
            "rejected": dict(self.rejected),
        }


@dataclass(frozen=True)
class PreparedDataset:
    """Rows of one format, split into a training and a validation side (which may be empty). Columns: see `SCHEMAS`."""

    format: DataFormat
    train: datasets.Dataset
    validation: datasets.Dataset
    report: DataReport

    def save(self, directory: Path) -> None:
        """Write both sides and the report into `directory`. Raises StorageUnavailable if there is no space."""
        with disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            for side in _SIDES:
                self._write(getattr(self, side), directory / f"{side}.arrow")
            text = json.dumps(self.report.to_json(), indent=1, ensure_ascii=False) + "\n"
            (directory / _REPORT).write_text(text, encoding="utf-8")

    def _write(self, side: datasets.Dataset, path: Path) -> None:
        schema = SCHEMAS[self.format]
        with path.open("wb") as file, pa.ipc.new_stream(file, schema) as stream:
            for start in range(0, len(side), _BATCH):
                table = side.with_format("arrow")[start : start + _BATCH]
                stream.write_table(table.cast(schema).combine_chunks())

    @classmethod
    def load(cls, directory: Path) -> PreparedDataset:
        """Map a saved data set into memory. Raises DataError if `directory` does not hold a whole one."""
        try:
            report = DataReport.from_json(json.loads((directory / _REPORT).read_text(encoding="utf-8")))
            if report.format not in get_args(DataFormat):
                raise ValueError(f"unknown format {report.format!r}")
            sides = [datasets.Dataset.from_file(str(directory / f"{side}.arrow")) for side in _SIDES]
            lengths = [report.rows_train, report.rows_validation]
            if [len(side) for side in sides] != lengths:
                raise ValueError(f"{[len(side) for side in sides]} rows instead of {lengths}")
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
            raise DataError(
                f"{directory} does not hold a whole data set ({error}); run its data stage again"
            ) from error
        return cls(report.format, sides[0], sides[1], report)


def in_memory(format: DataFormat, batches: list[pa.RecordBatch]) -> datasets.Dataset:
    """A data set over Arrow batches, with a fingerprint that depends on its size only.

    The fingerprint names cache files of `datasets`, which nothing in memory has; computing the default one hashes all
    rows.
    """
    table = pa.Table.from_batches(batches, schema=SCHEMAS[format])
    return datasets.Dataset(
        datasets.table.InMemoryTable(table), fingerprint=json_digest([format, table.num_rows, table.nbytes])[:16]
    )
