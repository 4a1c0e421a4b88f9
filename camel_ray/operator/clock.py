"""Times as Kubernetes writes them: RFC 3339, UTC, whole seconds."""

from __future__ import annotations

from datetime import UTC, datetime


def stamp(moment: datetime) -> str:
    """The moment as text."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime:
    """The text as a moment; text that is none is the beginning of time, so that a broken stamp never waits for ever."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


def seconds_since(text: str, now: datetime) -> float:
    """Seconds from the stamp to now; never negative, whatever the clocks did."""
    return max(0.0, (now - moment(text)).total_seconds())
