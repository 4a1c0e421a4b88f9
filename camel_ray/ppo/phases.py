"""Where a round's time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds per phase of a round, as metrics `seconds_<phase>`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._start = time.monotonic()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the body as `phase`; several bodies of one phase add up."""
        start = time.monotonic()
        yield
        self._seconds[f"seconds_{phase}"] += time.monotonic() - start

    @property
    def seconds(self) -> dict[str, float]:
        """By phase."""
        return dict(self._seconds)

    @property
    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.monotonic() - self._start
