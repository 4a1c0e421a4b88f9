"""The operator's logs: one line per event, as text for people or as JSON for a log store.

    with logs.context(namespace="team-a", pipeline="support"):
        log.info("attempt created", extra={"stage": "sft", "attempt": 2})

What a thread works on is held in a context variable, so that also the lines of the API client and of libraries below
carry namespace and pipeline. Text that comes from elsewhere (answers of the API server, tracebacks) is put on one line,
and whatever looks like a bearer token is taken out.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Literal, TextIO

LogFormat = Literal["text", "json"]
FIELDS = ("namespace", "pipeline", "stage", "attempt", "error")
"""What a line may carry beside time, level, logger and message, in this order."""

_context: ContextVar[Mapping[str, object]] = ContextVar("camel_ray_log_context", default=MappingProxyType({}))
_SECRET = re.compile(
    r"(?i)(bearer\s+)[\w.~+/=-]+"  # an Authorization header
    r"|\bey[\w-]{8,}\.ey[\w-]{8,}\.[\w-]+"  # a JSON web token: both parts begin with `{"` in base64
)


@contextmanager
def context(**fields: object) -> Iterator[None]:
    """Adds fields (of `FIELDS`) to all lines of this thread within it."""
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def set_up(log_format: LogFormat = "text", *, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Sends all logs of the process to `stream` (default: stderr). A second call replaces the first.

    Raises ValueError if there is no such level.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.setLevel(level)
    root.handlers[:] = [handler]
    logging.captureWarnings(True)
    logging.getLogger("urllib3").setLevel(max(logging.WARNING, root.level))  # its retries are told by our client


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line: dict[str, object] = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _clean(record.getMessage()),
        }
        line.update({key: _plain(value) for key, value in _fields(record).items()})
        if record.exc_info:
            line["traceback"] = _clean(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """`2026-11-23T07:00:00.123Z INFO message [namespace=team-a pipeline=support]`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record; a traceback follows on lines of its own, for it is there for people."""
        fields = " ".join(f"{key}={_one_line(str(_plain(value)))}" for key, value in _fields(record).items())
        message = _one_line(_clean(record.getMessage()))
        line = f"{_time(record.created)} {record.levelname} {message}" + (f" [{fields}]" if fields else "")
        if record.exc_info:
            line += "\n" + _clean(self.formatException(record.exc_info))
        return line


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """The fields of a line: those of the context, then the record's own, then the exception's words."""
    own = {key: record.__dict__[key] for key in FIELDS if key in record.__dict__}
    found = {**_context.get(), **own}
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and "error" not in found:
        found["error"] = f"{type(error).__name__}: {error}"
    return {key: found[key] for key in FIELDS if key in found and found[key] is not None}


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float) else _clean(str(value))


def _clean(text: str) -> str:
    return _SECRET.sub(lambda match: f"{match[1] or ''}(removed)", text)


def _one_line(text: str) -> str:
    """Text without line breaks and terminal control codes, which whoever wrote it could forge lines with."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _time(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"
