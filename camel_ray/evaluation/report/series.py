"""From progress events to the points of a curve: the last line of a step wins, gaps and spikes stay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_POINTS = 240
"""More points than this cannot be told apart at the width of a chart."""

Point = tuple[float, float | None]
"""Step and value; None where the value was not a finite number."""


@dataclass(frozen=True)
class Series:
    """A named line of a chart."""

    name: str
    points: tuple[Point, ...]
    held_out: bool = False
    """Measured on rows that are not trained on: drawn in the second colour everywhere."""

    @property
    def finite(self) -> list[tuple[float, float]]:
        """The points that have a value."""
        return [(x, y) for x, y in self.points if y is not None]


def series(
    events: Sequence[Mapping[str, Any]], task: str, metric: str, name: str, *, held_out: bool = False
) -> Series | None:
    """The curve of one metric of one task, thinned, or None if it was never reported.

    Unlike `camel_ray.progress.curve`, steps whose value was not finite are kept, as gaps.
    """
    points: dict[float, float | None] = {}
    for event in events:
        if event.get("event") != "update" or event.get("task") != task:
            continue
        metrics, step = event.get("metrics"), event.get("done")
        if isinstance(metrics, Mapping) and metric in metrics and isinstance(step, int | float):
            value = metrics[metric]
            points[step] = float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    return Series(name, tuple(thin(sorted(points.items()))), held_out) if points else None


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most about `limit` points: first, last, and the lowest and highest of each of equally many steps in between.

    A gap inside a bucket is kept when it holds nothing else, so one lost step does not tear a long curve.
    """
    if len(points) <= limit:
        return list(points)
    buckets = (limit - 2) // 2
    inner = points[1:-1]
    kept: list[Point] = [points[0]]
    for k in range(buckets):
        bucket = inner[k * len(inner) // buckets : (k + 1) * len(inner) // buckets]
        values = [(y, i) for i, (_, y) in enumerate(bucket) if y is not None]
        chosen = {min(values)[1], max(values)[1]} if values else {0}
        kept.extend(bucket[i] for i in sorted(chosen))
    kept.append(points[-1])
    return kept
