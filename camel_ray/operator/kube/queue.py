"""The work queue between what changes and who reconciles: each key waits once, and never runs twice at a time.

The same promises as client-go's: a key added many times is handed out once; one added while it is worked on comes
again when that is done; failures come back after a delay that doubles. Beside them there is a short cut for what nobody
has looked at yet, as controller-runtime's priority queue has one.
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections import deque
from typing import Protocol

SHORT_CUTS = 3
"""How many keys in a row may come before those that wait for longer."""


class QueueMetrics(Protocol):
    """Told of what happens in a queue, under its lock: must be quick and must not call back."""

    def added(self) -> None:
        """A key began to wait."""

    def retried(self) -> None:
        """A key failed and will come again."""

    def waited(self, seconds: float) -> None:
        """A key was handed out after waiting for so long (from when it was due)."""

    def worked(self, seconds: float) -> None:
        """Work on a key took so long."""


class WorkQueue:
    """Keys that want attention. Safe for any number of threads; until `shut_down` it has one itself, for delayed keys.

    `first_delay_seconds` and `max_delay_seconds` bound the delay of a key that fails again and again.
    """

    def __init__(
        self,
        *,
        first_delay_seconds: float = 0.005,
        max_delay_seconds: float = 60.0,
        metrics: QueueMetrics | None = None,
    ) -> None:
        self._first_delay = first_delay_seconds
        self._max_delay = max_delay_seconds
        self._metrics = metrics
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        """There is a key, or there will be none any more."""
        self._sooner = threading.Condition(lock)
        """A delayed key is due before all others."""
        self._ready: deque[str] = deque()
        self._first: deque[str] = deque()
        """Keys that are handed out before the ready ones, for the most part."""
        self._passed = 0
        """Keys of `_first` that were handed out since the last one of `_ready`."""
        self._dirty: dict[str, float] = {}
        """Keys that want work, since when: the ready ones, and those that are worked on and changed meanwhile."""
        self._working: dict[str, float] = {}
        """Keys that are worked on, since when."""
        self._due: dict[str, float] = {}
        """Delayed keys, and when they are due; the heap may hold older times of them, which count no more."""
        self._heap: list[tuple[float, str]] = []
        self._failures: dict[str, int] = {}
        self._shut = False
        self._timer = threading.Thread(target=self._keep_time, name="queue-timer", daemon=True)
        self._timer.start()

    def add(self, key: str, *, first: bool = False) -> None:
        """The key wants work now. Ignored after `shut_down`.

        With `first` it comes before the keys that wait, unless it waits or is worked on already. One key of the others
        is handed out after every `SHORT_CUTS`, so that they go on under any load.
        """
        with self._changed:
            self._add(key, time.monotonic(), first)

    def add_after(self, key: str, seconds: float) -> None:
        """The key wants work in a while, or sooner if it has a sooner date already."""
        with self._changed:
            self._add_after(key, seconds)

    def retry(self, key: str) -> None:
        """Work on the key failed: it comes again, each time twice as late (up to a tenth later: not all at once)."""
        with self._changed:
            failures = self._failures.get(key, 0)
            self._failures[key] = failures + 1
            if self._metrics:
                self._metrics.retried()
            delay = min(self._first_delay * 2 ** min(failures, 40), self._max_delay)
            self._add_after(key, delay * random.uniform(1.0, 1.1))

    def forget(self, key: str) -> None:
        """Work on the key succeeded: its next failure is its first."""
        with self._changed:
            self._failures.pop(key, None)

    def failures(self, key: str) -> int:
        """How often work on the key failed in a row."""
        return self._failures.get(key, 0)

    def get(self, timeout: float | None = None) -> str | None:
        """The next key, the caller's own until `done`. None after `timeout` seconds, or at the end (`shut_down`)."""
        with self._changed:
            self._changed.wait_for(lambda: len(self) or self._shut, timeout)
            if not len(self):
                return None
            key = self._next()
            since, now = self._dirty.pop(key), time.monotonic()
            self._working[key] = now
            if self._metrics:
                self._metrics.waited(now - since)
            return key

    def done(self, key: str) -> None:
        """Work on the key is over; if it was added meanwhile it waits again."""
        with self._changed:
            started = self._working.pop(key)
            if self._metrics:
                self._metrics.worked(time.monotonic() - started)
            if key in self._dirty:
                self._ready.append(key)
                self._changed.notify()

    def shut_down(self) -> None:
        """Take no more keys and drop those that wait: whoever comes next looks at everything. `get` returns None."""
        with self._changed:
            self._shut = True
            self._ready.clear()
            self._first.clear()
            self._dirty.clear()
            self._due.clear()
            self._heap.clear()
            self._changed.notify_all()
            self._sooner.notify()
        self._timer.join()

    def __len__(self) -> int:
        """Keys that wait to be handed out, without the delayed ones."""
        return len(self._ready) + len(self._first)

    def longest_work_seconds(self) -> float:
        """How long the key that is worked on for the longest has been; 0 if none is."""
        with self._changed:
            return time.monotonic() - min(self._working.values()) if self._working else 0.0

    def _next(self) -> str:
        if self._first and (self._passed < SHORT_CUTS or not self._ready):
            self._passed += 1
            return self._first.popleft()
        self._passed = 0
        return self._ready.popleft()

    def _add(self, key: str, since: float, first: bool = False) -> None:
        if self._shut or key in self._dirty:
            return
        self._dirty[key] = since
        if self._metrics:
            self._metrics.added()
        if key not in self._working:
            (self._first if first else self._ready).append(key)
            self._changed.notify()

    def _add_after(self, key: str, seconds: float) -> None:
        date = time.monotonic() + seconds
        if self._shut or self._due.get(key, date + 1) <= date:
            return
        self._due[key] = date
        heapq.heappush(self._heap, (date, key))
        if self._heap[0][1] == key:
            self._sooner.notify()

    def _keep_time(self) -> None:
        with self._sooner:
            while not self._shut:
                now = time.monotonic()
                while self._heap and self._heap[0][0] <= now:
                    date, key = heapq.heappop(self._heap)
                    if self._due.get(key) == date:
                        del self._due[key]
                        self._add(key, date)
                self._sooner.wait(self._heap[0][0] - now if self._heap else None)
