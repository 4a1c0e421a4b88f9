"""One small line chart: an SVG that stretches with its box, axis labels as text that does not.

The legend states the last value of each line, so the chart says its result on paper too; page.js replaces those values
by the ones under the pointer (or the arrow keys).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from camel_ray.evaluation.report.markup import Html, element
from camel_ray.evaluation.report.numbers import figure, minus, percent, scientific
from camel_ray.evaluation.report.series import Series

_SIZE = 1000
"""Width and height of the drawing's own coordinates."""
_DOTS_UP_TO = 16
"""Lines with at most this many points also mark each point."""


@dataclass(frozen=True)
class Level:
    """A horizontal reference line, such as a target."""

    name: str
    value: float


def line_chart(
    title: str,
    lines: Sequence[Series],
    *,
    unit: str = "",
    level: Level | None = None,
    from_zero: bool = False,
    wide: bool = False,
    shown: Callable[[float | None], str] = figure,
) -> Html | None:
    """A figure of lines over the same steps, or None if no line has a finite point.

    `level` draws a dashed line and makes the axis reach it; `from_zero` makes the axis start at 0; `shown` formats
    values.
    """
    lines = [line for line in lines if line.finite]
    if not lines:
        return None
    xs = [x for line in lines for x, _ in line.finite]
    ys = [y for line in lines for _, y in line.finite]
    extra = ([level.value] if level else []) + ([0.0] if from_zero else [])
    ticks = axis_ticks(min(ys + extra), max(ys + extra))
    low, high = ticks[0], ticks[-1]
    left, right = min(xs), max(xs)

    def across(x: float) -> float:
        return (x - left) / (right - left) * _SIZE if right > left else _SIZE / 2

    def down(y: float) -> float:
        return (high - y) / (high - low) * _SIZE

    drawing = [element("path", d=f"M0 {_n(down(t))}H{_SIZE}", class_="grid") for t in ticks]
    if level:
        drawing.append(element("path", d=f"M0 {_n(down(level.value))}H{_SIZE}", class_="level"))
    for line in reversed(lines):
        d, dots = _path(line, across, down)
        drawing.append(element("path", d=d, class_=f"line {_colour(line)}"))
        if dots:
            drawing.append(element("path", d=dots, class_=f"dots {_colour(line)}"))

    legend = [
        element(
            "span",
            element("i", class_=f"key {_colour(line)}"),
            line.name,
            element("b", shown(line.finite[-1][1])),
            class_="entry",
        )
        for line in lines
    ]
    if level:
        legend.append(
            element(
                "span", element("i", class_="key dashed"), level.name, element("b", shown(level.value)), class_="entry"
            )
        )
    summary = "; ".join(f"{x.name} from {shown(x.finite[0][1])} to {shown(x.finite[-1][1])}" for x in lines)
    data = {
        "x": [left, right],
        "lines": [[[x, None if y is None else shown(y)] for x, y in line.points] for line in lines],
    }
    return element(
        "figure",
        element(
            "figcaption",
            element("span", title, element("small", unit) if unit else None, class_="title"),
            element("span", legend, class_="legend"),
        ),
        element(
            "div",
            [
                element(
                    "span",
                    _tick(t, ticks, percent=shown is percent),
                    class_="y",
                    style=f"top:{_n(down(t) / _SIZE * 100)}%",
                )
                for t in ticks
            ],
            element(
                "div",
                element("svg", drawing, viewBox=f"0 0 {_SIZE} {_SIZE}", preserveAspectRatio="none", aria_hidden="true"),
                class_="plot",
                tabindex="0",
                role="img",
                aria_label=f"{title}: {summary}",
                data_chart=json.dumps(data, separators=(",", ":"), ensure_ascii=False),
            ),
            class_="area",
        ),
        element(
            "div",
            element("span", _step(left)),
            element("span", "", class_="at"),
            element("span", f"step {_step(right)}"),
            class_="x",
        ),
        class_="chart wide" if wide else "chart",
    )


def axis_ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers, evenly spaced, the first at or below `low` and the last at or above `high`."""
    if not high - low > 1e-12 * max(abs(low), abs(high), 1e-300):
        pad = abs(high) * 0.1
        low, high = (low - pad, high + pad) if pad else (0.0, 1.0)
    power = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = next(power * m for m in (1, 2, 2.5, 5, 10, 20) if (high - low) / (power * m) <= 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


def _path(line: Series, across: Callable[[float], float], down: Callable[[float], float]) -> tuple[str, str]:
    """SVG path of the line, broken at gaps, and a path of dots (zero-length strokes) for points that need a mark."""
    path, dots = [], []
    mark_all = len(line.finite) <= _DOTS_UP_TO
    for i, (x, y) in enumerate(line.points):
        if y is None:
            continue
        place = f"{_n(across(x))} {_n(down(y))}"
        before = i > 0 and line.points[i - 1][1] is not None
        after = i + 1 < len(line.points) and line.points[i + 1][1] is not None
        path.append(f"{'L' if before else 'M'}{place}")
        if mark_all or not (before or after):
            dots.append(f"M{place}h0")
    return "".join(path), "".join(dots)


def _tick(value: float, ticks: Sequence[float], *, percent: bool) -> str:
    """A tick's label with no more decimals than the step between ticks needs."""
    scale = 100 if percent else 1
    value, step, largest = value * scale, (ticks[1] - ticks[0]) * scale, max(map(abs, ticks)) * scale
    if abs(value) < step / 2:
        return "0"
    decimals = next((d for d in range(5) if abs(round(step, d) - step) < step * 1e-6), None)
    if decimals is None or largest >= 1e5:
        return scientific(value)
    return minus(f"{value:,.{decimals}f}")


def _colour(line: Series) -> str:
    return "c1" if line.held_out else "c0"


def _step(x: float) -> str:
    return f"{x:,.0f}"


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
