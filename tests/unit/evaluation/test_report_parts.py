"""The parts of the report that compute something: axes, thinning, numbers, the drawing's layers, the time axis."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camel_ray.evaluation.record import RunRecord, StageRecord
from camel_ray.evaluation.report import numbers
from camel_ray.evaluation.report.charts import axis_ticks, line_chart
from camel_ray.evaluation.report.diagram import flow, pipeline_diagram
from camel_ray.evaluation.report.markup import Html, element
from camel_ray.evaluation.report.series import Point, Series, series, thin
from camel_ray.evaluation.report.timeline import busy_seconds, timeline

FINITE = st.floats(-1e9, 1e9, allow_nan=False)


@given(FINITE, FINITE)
def test_ticks_enclose_the_values_and_are_few_and_even(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = axis_ticks(low, high)
    step = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= 7
    assert ticks[0] <= low + 1e-6 * step and ticks[-1] >= high - 1e-6 * step
    assert all(math.isclose(y - x, step, rel_tol=1e-6) for x, y in pairwise(ticks))


def test_ticks_are_round() -> None:
    assert axis_ticks(0.0, 6.4) == [0, 2, 4, 6, 8]
    assert axis_ticks(0.0, 0.0) == [0, 0.25, 0.5, 0.75, 1]
    assert axis_ticks(-0.2, 0.9) == pytest.approx([-0.5, 0, 0.5, 1.0])


POINTS = st.lists(st.one_of(st.none(), FINITE), min_size=1, max_size=2000).map(
    lambda ys: [(float(x), y) for x, y in enumerate(ys)]
)


@given(POINTS)
def test_thinning_keeps_the_ends_the_extremes_and_the_order(points: list[Point]) -> None:
    kept = thin(points, 50)
    assert len(kept) <= 50
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == sorted(kept, key=lambda p: p[0]) and set(kept) <= set(points)
    values, left = [y for _, y in points if y is not None], [y for _, y in kept if y is not None]
    if values:
        assert (min(left), max(left)) == (min(values), max(values))


def test_the_last_line_of_a_step_wins_and_nulls_stay_gaps() -> None:
    events = [
        {"event": "update", "task": "train", "done": step, "metrics": {"loss": loss}}
        for step, loss in [(1, 5.0), (2, 4.0), (3, None), (2, 4.5), (4, 3.0)]
    ]
    found = series(events, "train", "loss", "training")
    assert found is not None
    assert found.points == ((1, 5.0), (2, 4.5), (3, None), (4, 3.0))
    assert series(events, "validate", "loss", "validation") is None


def test_a_single_point_is_drawn_as_a_dot() -> None:
    chart = line_chart("Loss", [Series("validation", ((400.0, 2.5),), held_out=True)])
    assert chart is not None and 'class="dots c1"' in chart and "h0" in chart


def test_a_chart_without_a_finite_point_is_left_out() -> None:
    assert line_chart("Loss", [Series("training", ((1.0, None),))]) is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (2096, "2,096"),
        (37.312, "37.3"),
        (0.0312, "0.0312"),
        (-0.11, "−0.110"),
        (1.2e-6, "1.2e-6"),
        (3.2e9, "3.2e9"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_figures_have_three_significant_digits(value: float | None, shown: str) -> None:
    assert numbers.figure(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.42, "0.4 s"),
        (37.4, "37 s"),
        (59.7, "1 min 00 s"),
        (252, "4 min 12 s"),
        (7500, "2 h 05 min"),
        (273600, "3 d 4 h"),
        (None, "–"),
    ],
)
def test_durations_read_like_durations(seconds: float | None, shown: str) -> None:
    assert numbers.duration(seconds) == shown


def test_a_rare_thing_is_not_shown_as_never() -> None:
    assert numbers.percent(1 / 2613) == "<0.1\u202f%"
    assert numbers.percent(0.0) == "0.0\u202f%"


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((0.0, 9e-4), ["1e-3", "7.5e-4", "5e-4", "2.5e-4", "0"]),
        ((0.0, 0.003), ["0.003", "0.002", "0.001", "0"]),
        ((0.0, 3e6), ["3e6", "2e6", "1e6", "0"]),
        ((-0.03, -0.01), ["−0.010", "−0.015", "−0.020", "−0.025", "−0.030"]),
    ],
)
def test_ticks_are_labelled_shortly(values: tuple[float, float], labels: list[str]) -> None:
    chart = line_chart("x", [Series("", ((0.0, values[0]), (1.0, values[1])))])
    assert sorted(re.findall(r'<span class="y"[^>]*>([^<]+)', str(chart))) == sorted(labels)


def test_counts_are_short() -> None:
    assert [numbers.count(n) for n in (950, 2048, 12_300, 2_754_816, 7e9)] == ["950", "2,048", "12.3k", "2.75M", "7G"]


def test_only_markup_is_not_escaped() -> None:
    made = element("p", "<b>", element("b", "x"), ["&", None, 3], class_='a"b', hidden=True, title=None)
    assert made == '<p class="a&quot;b" hidden>&lt;b&gt;<b>x</b>&amp;3</p>'
    assert isinstance(made, Html)


def test_the_picture_shows_who_uses_what_and_not_the_mere_order(finished: RunRecord) -> None:
    used = flow(finished)
    assert used["instructions"] == []  # it only comes after `text`
    assert used["base"] == ["text", "tokenizer"]
    assert used["sft"] == ["instructions", "base"]
    assert used["ppo"] == ["instructions", "sft", "reward"]
    assert used["evaluate"] == ["text", "instructions", "reward", "ppo"]


def test_boxes_of_the_picture_do_not_overlap_and_follow_the_flow(finished: RunRecord) -> None:
    drawing = pipeline_diagram(finished)
    assert drawing is not None
    flat = drawing[: drawing.index("</svg>")]
    at = [(float(x), float(y)) for x, y in re.findall(r"translate\(([\d.]+) ([\d.]+)\)", flat)]
    assert len(at) == len(finished.stages)
    for i, (x, y) in enumerate(at):
        assert all(abs(x - u) >= 122 or abs(y - v) >= 62 for u, v in at[i + 1 :])
    place = dict(zip([s.name for s in finished.stages], at, strict=True))
    assert all(place[source][0] < place[target][0] for target, sources in flow(finished).items() for source in sources)


def test_a_record_without_its_document_is_drawn_by_needs() -> None:
    run = RunRecord("x", {}, "", (StageRecord("a", "data"), StageRecord("b", "sft", ("a", "gone"))))
    assert flow(run) == {"a": [], "b": ["a"]}


def test_an_idle_night_takes_no_room_on_the_time_axis() -> None:
    first = StageRecord("a", "data", (), "done", 0.0, 50.0, 1)
    run = RunRecord("x", {}, "", (first, StageRecord("b", "sft", ("a",), "done", 40_050.0, 40_100.0, 1)))
    assert busy_seconds(run) == 100.0
    assert "left:0.00%;width:49.02%" in timeline(run) and "left:50.98%;width:49.02%" in timeline(run)


def test_a_running_stage_is_drawn_up_to_its_last_event() -> None:
    events = [{"time": 130.0, "event": "update", "task": "train", "done": 1}]
    stage = StageRecord("a", "sft", (), "running", 100.0, None, 1, events=events)
    assert busy_seconds(RunRecord("x", {}, "", (stage,))) == 30.0
    assert busy_seconds(RunRecord("x", {}, "", (replace(stage, events=()),))) == 0.0
