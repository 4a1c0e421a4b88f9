"""The API server's clock, which all replicas share whatever their machines' clocks say or do.

Statuses hold moments (a retry at, an attempt since) that another replica compares with its own now. So now is not this
machine's: it is read from the `Date` of the server's answers and carried on by a clock that nobody sets. That somebody
puts a machine's clock forward or back by an hour then ends no wait too soon and none too late. If the server's own
clock jumps, we follow it by at most a tenth of the time that passes: what waits a minute waits 66 s at most.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_SLEW = 0.1
_OFTEN_SECONDS = 1.0
# Counts while the machine is suspended, which `monotonic` does not; macOS's monotonic clock is the best there is.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_seconds() -> float:
    """Seconds since the machine was started, suspended ones included: no one can set this clock."""
    return time.clock_gettime(_CLOCK)


class ServerClock:
    """Tells the server's time. Safe for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ahead: float | None = None
        """How far the server's clock (seconds of Unix) is ahead of `boot_seconds`; None: it never told."""
        self._heard = 0.0

    def heard(self, date: str | None) -> None:
        """Take in the `Date` header of an answer that came just now."""
        at = boot_seconds()
        if date is None or (self._ahead is not None and at < self._heard + _OFTEN_SECONDS):
            return
        try:
            ahead = parsedate_to_datetime(date).timestamp() + 0.5 - at  # it was cut to whole seconds
        except ValueError:
            return
        with self._lock:
            if self._ahead is None:
                self._ahead = ahead
            else:
                most = max(0.0, at - self._heard) * _SLEW
                self._ahead += max(-most, min(most, ahead - self._ahead))
            self._heard = at

    def now(self) -> datetime:
        """The server's time, and this machine's before the first answer. It never goes back after that."""
        seconds = time.time() if self._ahead is None else boot_seconds() + self._ahead
        return datetime.fromtimestamp(seconds, UTC)
