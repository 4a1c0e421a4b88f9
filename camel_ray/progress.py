"""How a stage tells what it is doing: one JSON line per event, appended to a file next to its work.

The terminal's bars, the report's curves and (on a cluster) the operator's progress all read these lines, so a stage
needs to know none of them. A `Progress` holds a path and nothing else, so it travels to Ray workers. After a resume
some steps are written again; readers keep the last line of a step.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from camel_ray.manifest import disk_errors

Unit = Literal["steps", "rows", "tokens", "batches"]
_WINDOW_SECONDS = 20.0
"""Rates are means over the events of this time, so that a change of speed shows soon and a single slow step does
not."""


@dataclass(frozen=True)
class Progress:
    """Appends events of one stage to `path`. Safe for several processes: every event is one short append."""

    path: Path

    def update(
        self,
        task: str,
        done: int,
        total: int | None = None,
        *,
        unit: Unit = "steps",
        tokens: int | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """`done` of `total` units of `task` ("train", "generate", ...) are finished.

        `tokens`: tokens worked on since the task began, for a rate. `metrics`: figures of this step (loss, reward,
        kl, ...), the points of the report's curves. Not-a-number and infinity are kept as null.
        """
        event: dict[str, Any] = {"event": "update", "task": task, "done": done, "total": total, "unit": unit}
        if tokens is not None:
            event["tokens"] = tokens
        if metrics:
            event["metrics"] = {k: (float(v) if math.isfinite(v) else None) for k, v in metrics.items()}
        self._write(event)

    def finish(self, task: str) -> None:
        """`task` is over: its bar goes away."""
        self._write({"event": "finish", "task": task})

    def note(self, message: str, *, level: Literal["info", "warning"] = "info") -> None:
        """A sentence for the user: shown on the terminal and listed in the report."""
        self._write({"event": "note", "level": level, "message": message})

    def _write(self, event: dict[str, Any]) -> None:
        line = json.dumps({"time": round(time.time(), 3), **event}) + "\n"
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)


@dataclass
class ProgressReader:
    """Reads the events of a file as they are appended."""

    path: Path
    _offset: int = field(default=0, init=False)

    def new_events(self) -> list[dict[str, Any]]:
        """Events since the last call; a line still being written is left for the next call."""
        if not self.path.is_file():
            return []  # nothing written yet; or a device, whose end a read may never reach
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        self._offset += end
        return [event for line in data[:end].splitlines() if (event := _event(line)) is not None]


def _event(line: bytes) -> dict[str, Any] | None:
    """None for a line that a full disk, or two writers over a network, has torn."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


class Rate:
    """Speed of one task: units and tokens per second over the last events of this attempt."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, float, float]] = deque()

    def add(self, at: float, done: float, tokens: float) -> None:
        """At epoch second `at`, `done` units and `tokens` tokens were finished. Going back (a new attempt) starts
        over.
        """
        if self._points and (done < self._points[-1][1] or tokens < self._points[-1][2]):
            self._points.clear()
        self._points.append((at, done, tokens))
        while len(self._points) > 2 and at - self._points[0][0] > _WINDOW_SECONDS:
            self._points.popleft()

    def per_second(self) -> tuple[float, float]:
        """Units and tokens per second; 0 before there are two events."""
        if len(self._points) < 2:
            return 0.0, 0.0
        (start, done, tokens), (end, done_now, tokens_now) = self._points[0], self._points[-1]
        seconds = end - start
        return ((done_now - done) / seconds, (tokens_now - tokens) / seconds) if seconds > 0 else (0.0, 0.0)


def curve(events: list[dict[str, Any]], task: str, metric: str) -> list[tuple[int, float]]:
    """Points (step, value) of one metric of one task, in step order, the last line of a step winning."""
    points: dict[int, float] = {}
    for event in events:
        if event.get("event") == "update" and event.get("task") == task:
            value = (event.get("metrics") or {}).get(metric)
            if value is not None:
                points[int(event["done"])] = float(value)
    return sorted(points.items())
