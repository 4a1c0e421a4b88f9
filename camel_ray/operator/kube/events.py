"""Events for users (`kubectl events`), told by a thread of its own so that a slow server never holds up a decision.

The same event about the same object within ten minutes is one Event object whose series counts, as the API wants it.
Events are a courtesy: under pressure the oldest unsent ones are dropped and counted, and errors are only logged.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.errors import KubeError, NotFound
from camel_ray.operator.kube.kinds import EVENT

_MAX_WAITING = 1000
_MAX_SERIES = 1024  # 2 kB each
_SERIES_SECONDS = 600.0
_PATCH_SECONDS = 10.0
_MAX_MESSAGE = 1024  # the API refuses longer ones
_CLOSE_SECONDS = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Occurrence:
    regarding: Mapping[str, Any]
    type: str
    reason: str
    message: str
    action: str
    at: datetime

    @property
    def key(self) -> tuple[str, ...]:
        return (*(str(self.regarding.get(name, "")) for name in _REFERENCE), self.type, self.reason, self.message)


@dataclass(slots=True)
class _Series:
    """An Event object and what it does not say yet."""

    first: _Occurrence
    name: str
    count: int
    last: datetime
    written: float = field(default_factory=time.monotonic)
    """When the object last said all."""
    touched: float = field(default_factory=time.monotonic)


_REFERENCE = ("apiVersion", "kind", "namespace", "name", "uid")


class EventRecorder:
    """Records events as `controller` (a qualified name such as `camel-ray.dev/operator`), process `instance`."""

    def __init__(self, client: Client, *, controller: str, instance: str) -> None:
        self._client = client
        self._controller = controller
        self._instance = instance[:128]
        self._changed = threading.Condition()
        self._waiting: deque[_Occurrence] = deque()
        self._series: OrderedDict[tuple[str, ...], _Series] = OrderedDict()
        """Only the thread's, like the next; the longest untouched first."""
        self._unwritten: dict[tuple[str, ...], _Series] = {}
        """Those that count more than their objects say."""
        self._closing = False
        self.dropped = 0
        """Events that were never told."""
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def record(self, regarding: Mapping[str, Any], type: str, reason: str, message: str, action: str) -> None:
        """Tell an event about an object (a manifest or a reference). `type` is Normal or Warning. Never waits."""
        metadata = regarding.get("metadata", regarding)
        reference = {
            "apiVersion": regarding.get("apiVersion", ""),
            "kind": regarding.get("kind", ""),
            **{name: metadata[name] for name in ("namespace", "name", "uid") if metadata.get(name)},
        }
        text = message if len(message) <= _MAX_MESSAGE else message[: _MAX_MESSAGE - 3] + "..."
        with self._changed:
            if self._closing:
                return
            if len(self._waiting) >= _MAX_WAITING:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(_Occurrence(reference, type, reason, text, action, datetime.now(UTC)))
            self._changed.notify()

    def close(self) -> None:
        """Tell what is not told yet, for at most 5 s, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        closing = False
        while not closing:
            with self._changed:
                if not self._waiting and not self._closing:
                    self._changed.wait(self._pause())
                occurrences, closing = list(self._waiting), self._closing
                self._waiting.clear()
            for occurrence in occurrences:
                self._count(occurrence)
            self._write_series(everything=closing)

    def _pause(self) -> float | None:
        """Seconds until a series is to be written; None if none is."""
        dates = [series.written + _PATCH_SECONDS for series in self._unwritten.values()]
        return max(0.0, min(dates) - time.monotonic()) if dates else None

    def _count(self, occurrence: _Occurrence) -> None:
        now = time.monotonic()
        while self._series and next(iter(self._series.values())).touched < now - _SERIES_SECONDS:
            self._series.popitem(last=False)
        series = self._series.get(occurrence.key)
        if series is None:
            self._begin(occurrence)
            return
        series.count += 1
        series.last = occurrence.at
        series.touched = now
        self._unwritten[occurrence.key] = series
        self._series.move_to_end(occurrence.key)

    def _begin(self, occurrence: _Occurrence, count: int = 1) -> None:
        """Make a new Event object."""
        # Names must be new and valid; the beginning is for people.
        name = f"{occurrence.regarding.get('name', 'event')[:230]}.{uuid.uuid4().hex[:16]}"
        body: dict[str, Any] = {
            "metadata": {"name": name, "namespace": occurrence.regarding.get("namespace", "default")},
            "eventTime": _micro(occurrence.at),
            "reportingController": self._controller,
            "reportingInstance": self._instance,
            "regarding": occurrence.regarding,
            "type": occurrence.type,
            "reason": occurrence.reason[:128],
            "action": occurrence.action[:128],
            "note": occurrence.message,
        }
        if count > 1:
            body["series"] = {"count": count, "lastObservedTime": _micro(occurrence.at)}
        try:
            self._client.create(EVENT, body)
        except KubeError as error:
            self.dropped += 1
            _log.debug("an event was lost: %s", error)
            return
        self._series[occurrence.key] = _Series(occurrence, name, count, occurrence.at)
        if len(self._series) > _MAX_SERIES:
            self._series.popitem(last=False)

    def _write_series(self, *, everything: bool) -> None:
        now = time.monotonic()
        for key, series in list(self._unwritten.items()):
            if not everything and now < series.written + _PATCH_SECONDS:
                continue
            del self._unwritten[key]
            series.written = now
            patch = {"series": {"count": series.count, "lastObservedTime": _micro(series.last)}}
            try:
                self._client.patch(EVENT, series.name, series.first.regarding.get("namespace", "default"), patch)
            except NotFound:  # events live for an hour: this one is told anew
                self._series.pop(key, None)
                self._begin(series.first, series.count)
            except KubeError as error:
                _log.debug("the count of an event was lost: %s", error)


def _micro(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
