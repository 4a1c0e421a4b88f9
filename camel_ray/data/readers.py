"""Reads one open file of a known type, row by row.

The parsers are the standard library's and pyarrow's rather than the loaders of `datasets`: those stop at the first
bad line, name no line, and copy every file into a cache in the home directory first. Nothing is ever unpickled and no
code of a data set runs.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet

from camel_ray.data.rows import Place, Rejected, SourceRow
from camel_ray.errors import DataError

Reader = Callable[[BinaryIO, str], Iterator[SourceRow | Rejected]]

DOCUMENT_CHARACTERS = 2000
"""A .txt file becomes documents of whole paragraphs of about this many characters, so that it can be split and
shuffled.
"""

_WRAPPERS = ("data", "rows", "examples", "instances")
"""Names under which a JSON object holds the list of rows."""
_BOM = b"\xef\xbb\xbf"


def read_jsonl(file: BinaryIO, name: str) -> Iterator[SourceRow | Rejected]:
    """One JSON object a line; empty lines are skipped."""
    for number, line in enumerate(_lines(file, name), start=1):
        place = Place(name, number)
        try:
            text = line.decode("utf-8")
            if text.strip():
                yield _object(json.loads(text, parse_constant=_no_number), place)
        except UnicodeDecodeError as error:
            yield Rejected(place, "bad UTF-8", f"byte {error.start + 1} of the line is not UTF-8")
        except RecursionError:
            yield Rejected(place, "invalid JSON", "the value is nested too deeply")
        except ValueError as error:
            yield Rejected(place, "invalid JSON", str(error))


def read_json(file: BinaryIO, name: str) -> Iterator[SourceRow | Rejected]:
    """A JSON array of objects, an object that holds one (`{"data":

    [...]}`), one row, or JSON Lines under another name.
    """
    content = b"".join(_lines(file, name))
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}, line {line}: not UTF-8; convert the file to UTF-8") from error
    except json.JSONDecodeError as error:
        if content.lstrip().startswith(b"{") and _is_object(content.lstrip().splitlines()[0]):
            yield from read_jsonl(io.BytesIO(content), name)
            return
        raise DataError(
            f"{name}, line {error.lineno}: not valid JSON ({error.msg}); repair or download the file again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not valid JSON ({error}); repair the file") from error
    if isinstance(value, dict):
        value = next((value[name] for name in _WRAPPERS if isinstance(value.get(name), list)), [value])
    if not isinstance(value, list):
        raise DataError(f"{name} holds a JSON {type(value).__name__}; a list of objects is needed")
    for number, entry in enumerate(value, start=1):
        yield _object(entry, Place(name, number, "entry"))


def read_csv(file: BinaryIO, name: str) -> Iterator[SourceRow | Rejected]:
    """Comma-separated values (RFC 4180) with a header line."""
    csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is less than a long document
    text = io.TextIOWrapper(
        io.BufferedReader(_Stream(_lines(file, name))), "utf-8", errors="surrogateescape", newline=""
    )
    rows = csv.reader(text, strict=True)
    try:
        header = next(rows, None)
        if header is None:
            return
        _check_header(header, name)
        for values in rows:
            place = Place(name, rows.line_num)
            if not values:
                continue
            if len(values) != len(header):
                detail = f"{len(values)} fields, but the header has {len(header)}"
                yield Rejected(place, "wrong number of fields", detail)
            elif any(_has_bad_bytes(value) for value in values):
                yield Rejected(place, "bad UTF-8", "a field is not UTF-8")
            else:
                yield SourceRow(dict(zip(header, values, strict=True)), place)
    except csv.Error as error:
        raise DataError(
            f"{name}, line {rows.line_num}: not valid CSV ({error}); check the quotes around that line"
        ) from error


def read_parquet(file: BinaryIO, name: str) -> Iterator[SourceRow | Rejected]:
    """Apache Parquet, a batch of rows at a time."""
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1000):
            for columns in batch.to_pylist():
                number += 1
                yield SourceRow(columns, Place(name, number, "row"))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name}, row {number + 1}: not a whole Parquet file ({reason}); it may be truncated, "
            "write or download it again"
        ) from error


def read_text(file: BinaryIO, name: str) -> Iterator[SourceRow | Rejected]:
    """Plain text: whole paragraphs joined to documents of about `DOCUMENT_CHARACTERS`.

    A document ends at an empty line once it is that long, at any line end once it is twice that long, and before a line
    that is not UTF-8, which is left out.
    """
    lines: list[str] = []
    start, size, bad = 1, 0, False
    for number, raw in enumerate(_lines(file, name), start=1):
        try:
            line = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield Rejected(Place(name, number), "bad UTF-8", f"byte {error.start + 1} of the line is not UTF-8")
            bad = True
            line = ""
        if bad or (size >= DOCUMENT_CHARACTERS and not line.strip()) or size >= 2 * DOCUMENT_CHARACTERS:
            if "".join(lines).strip():
                yield SourceRow({"text": "\n".join(lines).strip("\n")}, Place(name, start))
            lines, start, size, bad = [], number, 0, False
        lines.append(line)
        size += len(line) + 1
    if "".join(lines).strip():
        yield SourceRow({"text": "\n".join(lines).strip("\n")}, Place(name, start))


READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_text,
}
"""Reader by file name suffix (before an optional .gz)."""


def _lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Lines of a file without a byte order mark.

    UTF-16 is refused here: each of its lines would be a puzzle of its own.
    """
    for number, line in enumerate(file):
        if number == 0:
            if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise DataError(f"{name} is UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")
            line = line.removeprefix(_BOM)
        yield line


class _Stream(io.RawIOBase):
    """Lines of bytes as a raw stream, so that a text layer can read them."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._rest or next(self._lines, b"")
        self._rest = chunk[len(buffer) :]
        buffer[: min(len(chunk), len(buffer))] = chunk[: len(buffer)]
        return min(len(chunk), len(buffer))


def _object(value: Any, place: Place) -> SourceRow | Rejected:
    if not isinstance(value, dict):
        return Rejected(place, "not an object", f"a JSON {type(value).__name__} instead of an object with columns")
    return SourceRow(value, place)


def _no_number(_: str) -> None:
    """NaN and Infinity are no JSON, but Python writes them; here they are missing values."""
    return


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _check_header(header: list[str], name: str) -> None:
    if any(_has_bad_bytes(column) for column in header):
        raise DataError(f"{name}, line 1: the header is not UTF-8; convert the file to UTF-8")
    repeated = next((column for column in header if header.count(column) > 1), None)
    if repeated is not None:
        raise DataError(f"{name}, line 1: the column {repeated!r} appears twice; rename one of them")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        raise DataError(
            f"{name}, line 1: the fields are not separated by commas; write the file as comma-separated CSV"
        )


def _has_bad_bytes(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text) if not text.isascii() else False
