"""Turns a `DataSpec` into a clean, split data set, for the `data` stage and stages whose data is described in place.

Rows stream through once: read, bound to a format, normalised, filtered, deduplicated, and packed into Arrow batches;
per row only two 16-byte keys stay as Python objects. Split and order follow from the keys at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from camel_ray.api.data import DataFormat, DataSpec
from camel_ray.data.dataset import SCHEMAS, DataReport, PreparedDataset, RejectedExample, in_memory
from camel_ray.data.filters import content_key, held_out, named_key, question_key, shuffled, texts
from camel_ray.data.formats import Binding, bind, no_format
from camel_ray.data.rows import Rejected, RejectedRows, SourceRow, Unusable
from camel_ray.data.sources import Side, Source
from camel_ray.errors import DataError
from camel_ray.progress import Progress

DUPLICATE = "duplicate"
ALSO_IN_VALIDATION = "also in validation"
TOO_SHORT = "too short"
TOO_LONG = "too long"
_ASKED_FOR = frozenset((DUPLICATE, ALSO_IN_VALIDATION, TOO_SHORT, TOO_LONG))
"""Reasons the user asked to leave rows out for. They are counted, but say nothing about the health of the source."""

_BATCH = 1000
_DETECT_FROM = 100
"""Rows the format is detected from."""
_TELL_EVERY = 5000


def prepare(spec: DataSpec, *, base_dir: Path, seed: int, progress: Progress) -> PreparedDataset:
    """Read, clean, deduplicate, split and order the rows of `spec`. Relative paths start at `base_dir`.

    The result depends on the rows and the seed only. Raises DataError if a source cannot be read, no format fits, too
    many rows are rejected, or no training row is left; StorageUnavailable if a remote source cannot be reached.
    """
    sources = _sources(spec.source, spec, base_dir)
    validation_sources = _sources(spec.validation_source, spec, base_dir)
    if not validation_sources:
        validation_sources = [source for source in sources if source.has_validation_files()]
    cleaner = _Cleaner(spec, progress)
    # Validation first: training rows that also stand there are dropped.
    validation = cleaner.clean(_rows(validation_sources, "validation")) if validation_sources else None
    train = cleaner.clean(_rows(sources, "train"))
    progress.finish("read")
    cleaner.check(spec.source)
    if validation is not None and not validation.keys:
        raise DataError(
            f"{_joined(spec.validation_source or spec.source)} has no usable validation row; correct `validationSource`"
        )
    assert cleaner.format is not None
    names = _number_labels([train, *([validation] if validation else [])]) if cleaner.format == "labelled" else []

    if validation is None:
        outside = held_out(train.split_keys, spec.validation)
        sides = [[i for i, out in enumerate(outside) if out is side] for side in (False, True)]
        tables = [train, train]
    else:
        sides = [list(range(len(train.keys))), list(range(len(validation.keys)))]
        tables = [train, validation]
    orders = _limited([_ordered(rows, side, spec, seed) for rows, side in zip(tables, sides, strict=True)], spec.limit)
    if not orders[0]:
        raise DataError(
            f"{_joined(spec.source)} has no training row left beside the validation rows; "
            "add rows or lower `validation`"
        )

    both = [in_memory(cleaner.format, rows.batches).select(order) for rows, order in zip(tables, orders, strict=True)]
    report = DataReport(
        format=cleaner.format,
        sources=[source.uri for source in sources],
        rows_read=cleaner.rows_read,
        rows_train=len(orders[0]),
        rows_validation=len(orders[1]),
        rejected=dict(sorted(cleaner.rejected.counts.items())),
        examples=[RejectedExample(r.place.file, r.place.line, r.reason, r.detail) for r in cleaner.rejected.examples],
        labels=names,
    )
    progress.update("clean", report.rows_train + report.rows_validation, cleaner.rows_read, unit="rows")
    progress.finish("clean")
    return PreparedDataset(cleaner.format, both[0], both[1], report)


@dataclass
class _Rows:
    """Clean rows as Arrow batches, with the keys of each row."""

    batches: list[pa.RecordBatch] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    split_keys: list[bytes] = field(default_factory=list)


class _Cleaner:
    """Normalises and filters rows. Knows the format, what was seen and what was rejected, over all sources."""

    def __init__(self, spec: DataSpec, progress: Progress) -> None:
        self.spec = spec
        self.progress = progress
        self.format: DataFormat | None = spec.format
        self.rejected = RejectedRows()
        self.rows_read = 0
        self._seen: set[bytes] = set()
        self._bindings: dict[frozenset[str], Binding | None] = {}

    def clean(self, rows: Iterable[SourceRow | Rejected]) -> _Rows:
        """The usable rows of one side. Rows that an earlier call has returned are dropped as "also in validation"."""
        earlier = frozenset(self._seen)
        result, waiting = _Rows(), list[dict[str, Any]]()
        for source_row in self._with_format(iter(rows)):
            self.rows_read += 1
            if self.rows_read % _TELL_EVERY == 0:
                self.progress.update("read", self.rows_read, unit="rows")
            if isinstance(source_row, Rejected):
                self.rejected.add(source_row)
                continue
            try:
                row, key = self._normalise(source_row, earlier)
            except Unusable as error:
                self.rejected.add(Rejected(source_row.place, error.reason, str(error)))
                continue
            assert self.format is not None
            result.keys.append(key)
            name = source_row.split_key
            result.split_keys.append(question_key(row, self.format) if name is None else named_key(name))
            waiting.append(row)
            if len(waiting) == _BATCH:
                result.batches.append(self._batch(waiting))
                waiting = []
        if waiting:
            result.batches.append(self._batch(waiting))
        return result

    def _with_format(self, rows: Iterator[SourceRow | Rejected]) -> Iterator[SourceRow | Rejected]:
        """The same rows.

        Before the first one is given, the format most of the first rows have becomes the data set's.
        """
        first = list(islice(rows, _DETECT_FROM))
        usable = [row for row in first if isinstance(row, SourceRow)]
        if usable:
            bindings = [bind(frozenset(map(str, row.columns)), self.spec.columns, self.format) for row in usable]
            formats = Counter(binding.format for binding in bindings if binding is not None)
            if not formats:
                raise no_format(usable[0].columns, self.spec.columns, self.format, str(usable[0].place))
            self.format = formats.most_common(1)[0][0]
        yield from chain(first, rows)

    def check(self, source: str | list[str]) -> None:
        """Raise DataError if nothing was read or too much was rejected."""
        name = _joined(source)
        if self.rows_read == 0:
            raise DataError(f"{name} is empty; a data set needs at least one row")
        faults = {reason: n for reason, n in self.rejected.counts.items() if reason not in _ASKED_FOR}
        kept = self.rows_read - self.rejected.counts.total()
        if kept > 0 and sum(faults.values()) <= self.spec.max_rejected * self.rows_read:
            return
        reasons = ", ".join(f"{reason}: {count}" for reason, count in self.rejected.counts.most_common())
        worst = max(faults or self.rejected.counts, key=self.rejected.counts.__getitem__)
        example = next(row for row in self.rejected.examples if row.reason == worst)
        remedy = "repair the rows or raise `maxRejected`" if kept else "repair the rows or relax the filters"
        raise DataError(
            f"{name}: {self.rejected.counts.total()} of {self.rows_read} rows were rejected ({reasons}), "
            f"for example {example.place}: {example.detail}; {remedy}"
        )

    def _normalise(self, source_row: SourceRow, earlier: frozenset[bytes]) -> tuple[dict[str, Any], bytes]:
        binding = self._binding(source_row)
        row = binding.normalise(source_row)
        length = sum(map(len, texts(row, binding.format)))
        if length < self.spec.min_characters:
            raise Unusable(TOO_SHORT, f"{length} characters, `minCharacters` is {self.spec.min_characters}")
        if self.spec.max_characters is not None and length > self.spec.max_characters:
            raise Unusable(TOO_LONG, f"{length} characters, `maxCharacters` is {self.spec.max_characters}")
        key = content_key(row, binding.format)
        if self.spec.deduplicate:
            if key in self._seen:
                reason = ALSO_IN_VALIDATION if key in earlier else DUPLICATE
                raise Unusable(reason, f"the content of this row was seen before ({reason})")
            self._seen.add(key)
        return row, key

    def _binding(self, row: SourceRow) -> Binding:
        columns = frozenset(map(str, row.columns))
        if columns not in self._bindings:
            self._bindings[columns] = bind(columns, self.spec.columns, self.format)
        binding = self._bindings[columns]
        if binding is None:
            raise Unusable(
                "missing column", f"columns {', '.join(sorted(columns))} do not fit the format {self.format!r}"
            )
        return binding

    def _batch(self, rows: list[dict[str, Any]]) -> pa.RecordBatch:
        assert self.format is not None
        return pa.RecordBatch.from_pylist(rows, schema=SCHEMAS[self.format])


def _sources(value: str | list[str] | None, spec: DataSpec, base_dir: Path) -> list[Source]:
    uris = [] if value is None else [value] if isinstance(value, str) else value
    return [Source(uri, base_dir, spec.subset, spec.split) for uri in uris]


def _rows(sources: Iterable[Source], side: Side) -> Iterator[SourceRow | Rejected]:
    for source in sources:
        yield from source.read(side)


def _ordered(rows: _Rows, side: list[int], spec: DataSpec, seed: int) -> list[int]:
    if not spec.shuffle:
        return side
    return [side[i] for i in shuffled([rows.keys[i] for i in side], seed)]


def _limited(orders: list[list[int]], limit: int | None) -> list[list[int]]:
    """At most `limit` training rows, and validation rows in proportion (rounded up)."""
    train, validation = orders
    if limit is None or len(train) <= limit:
        return orders
    return [train[:limit], validation[: -(-len(validation) * limit // len(train))]]


def _number_labels(sides: list[_Rows]) -> list[str]:
    """Number classes that are only named: by position in sorted order, or by their own value if all are integers.

    Returns the names, by label where labels run from 0.
    """
    columns = [batch.select(["label", "label_name"]).to_pylist() for rows in sides for batch in rows.batches]
    pairs = {(row["label"], row["label_name"]) for batch in columns for row in batch}
    names = sorted({name for label, name in pairs if label is None})
    if not names:
        by_label = dict(sorted((label, name) for label, name in pairs if label is not None))
        return list(by_label.values())
    if len(names) < len(pairs):
        raise DataError("the labels are partly names and partly integers; use one of them for all rows")
    digits = all(name.isdecimal() for name in names)
    numbers = {name: int(name) if digits else position for position, name in enumerate(names)}
    for rows in sides:
        rows.batches = [
            batch.set_column(
                batch.schema.get_field_index("label"),
                SCHEMAS["labelled"].field("label"),
                pa.array([numbers[name] for name in batch["label_name"].to_pylist()], pa.int64()),
            )
            for batch in rows.batches
        ]
    return sorted(numbers, key=numbers.__getitem__)


def _joined(source: str | list[str]) -> str:
    return source if isinstance(source, str) else ", ".join(source)
