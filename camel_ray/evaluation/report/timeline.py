"""When each stage ran: one row per stage with a bar on a common time axis, long idle times cut out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from camel_ray.evaluation.record import RunRecord, StageRecord
from camel_ray.evaluation.report.diagram import made
from camel_ray.evaluation.report.markup import Html, element
from camel_ray.evaluation.report.numbers import count, duration, plural

_GAP = 0.02
"""Share of the axis that an idle time takes after it was cut."""
_LONG = 0.15
"""An idle time longer than this share of the busy time is cut."""

_WORDS = {"done": "done", "skipped": "reused", "running": "running", "failed": "failed", "waiting": "waiting"}


def timeline(run: RunRecord) -> Html:
    """A table of all stages: state, bar, duration, what was made and how fast."""
    spans = {s.name: span for s in run.stages if (span := stage_span(s))}
    place = _axis(sorted(spans.values()))
    rows = [_row(stage, spans.get(stage.name), place) for stage in run.stages]
    head = element("tr", [element("th", t, scope="col", class_=c) for t, c in _COLUMNS])
    return element(
        "div", element("table", element("thead", head), element("tbody", rows), class_="timeline"), class_="scroll"
    )


def stage_span(stage: StageRecord) -> tuple[float, float] | None:
    """Start and end in epoch seconds. A stage without an end is drawn up to the last thing it reported."""
    if stage.started is None:
        return None
    last = max(
        (float(e["time"]) for e in stage.events if isinstance(e.get("time"), int | float)), default=stage.started
    )
    return stage.started, max(stage.started, stage.finished if stage.finished is not None else last)


def busy_seconds(run: RunRecord) -> float:
    """Time during which at least one stage ran."""
    return sum(end - start for start, end in _merged(sorted(s for s in map(stage_span, run.stages) if s)))


_COLUMNS = (
    ("Stage", "stage"),
    ("State", "state"),
    ("When", "when"),
    ("Time", "num"),
    ("Made", "made"),
    ("Speed", "num"),
)


def _row(stage: StageRecord, span: tuple[float, float] | None, place: Callable[[float], float]) -> Html:
    bar = None
    if span:
        left, right = place(span[0]), place(span[1])
        style = f"left:{100 * left:.2f}%;width:{100 * (right - left):.2f}%"
        bar = element("i", style=style, class_=stage.state)
    state = _WORDS[stage.state]
    if stage.attempts > 1:
        state += f", {plural(stage.attempts, 'attempt')}"
    return element(
        "tr",
        element("th", stage.name, element("small", stage.kind), scope="row"),
        element("td", state, class_=f"state {stage.state}"),
        element("td", element("div", bar, class_="track"), class_="when"),
        element("td", duration(span[1] - span[0]) if span else None, class_="num"),
        element("td", made(stage), class_="made"),
        element("td", _speed(stage), class_="num"),
    )


def _speed(stage: StageRecord) -> str | None:
    rate = stage.metrics.get("tokens_per_second")
    return f"{count(rate)} tokens/s" if isinstance(rate, int | float) else None


def _merged(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _axis(spans: Sequence[tuple[float, float]]) -> Callable[[float], float]:
    """A function from epoch seconds to a position in [0, 1] on an axis without long idle times."""
    busy = _merged(spans)
    work = sum(end - start for start, end in busy) or 1.0
    pieces = []  # start, end, place of the start, place of the end; in seconds of the shortened axis
    at = 0.0
    for i, (start, end) in enumerate(busy):
        if i:
            idle = start - busy[i - 1][1]
            at += idle if idle <= _LONG * work else _GAP * work
        pieces.append((start, end, at))
        at += end - start
    total = at or 1.0

    def place(moment: float) -> float:
        for start, end, offset in pieces:
            if start <= moment <= end:
                return (offset + moment - start) / total
        return 0.0

    return place
