"""Runs a module with a wall clock that a test puts forward and back: `python -P jumping.py FILE MODULE ARGUMENTS...`.

FILE holds seconds, and is read at every look at the clock. Shifted are `time.time` and what `datetime` makes of it, so
all that Python code knows of the date. `time.monotonic` and its kin run on, as they do on a machine whose date is set.
"""

from __future__ import annotations

import datetime
import runpy
import sys
import time
from pathlib import Path
from typing import Any

_FILE = Path(sys.argv[1])
_time, _time_ns, _gmtime, _localtime = time.time, time.time_ns, time.gmtime, time.localtime


def _offset() -> float:
    return float(_FILE.read_text() or 0)


class _Kind(type):
    """What C code makes, such as pydantic's, is of the class it knows; it counts as ours."""

    def __instancecheck__(cls, thing: object) -> bool:
        return isinstance(thing, _RealDatetime)


_RealDatetime = datetime.datetime


class _Datetime(datetime.datetime, metaclass=_Kind):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return cls.fromtimestamp(_time() + _offset(), tz)

    @classmethod
    def utcnow(cls) -> Any:
        return cls.now(datetime.UTC).replace(tzinfo=None)


def main() -> None:
    time.time = lambda: _time() + _offset()
    time.time_ns = lambda: _time_ns() + int(_offset() * 1e9)
    time.gmtime = lambda seconds=None: _gmtime(time.time() if seconds is None else seconds)
    time.localtime = lambda seconds=None: _localtime(time.time() if seconds is None else seconds)
    datetime.datetime = _Datetime  # type: ignore[misc]
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
