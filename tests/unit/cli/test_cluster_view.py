"""How the state of a pipeline reads, as a tree and as lines."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from camel_ray.api.status import PipelineStatus
from camel_ray.cli.cluster.view import age, changes, exit_code, tree

NOW = datetime(2026, 11, 23, 8, 0, 0, tzinfo=UTC)


def ended(number: int, outcome: str, message: str) -> dict[str, Any]:
    start, end = "2026-11-23T07:10:00Z", "2026-11-23T07:12:10Z"
    return {"number": number, "name": "x", "outcome": outcome, "message": message, "started": start, "ended": end}


ROWS = {
    "name": "rows",
    "kind": "data",
    "phase": "Succeeded",
    "attempts": 1,
    "started": "2026-11-23T07:00:00Z",
    "ended": "2026-11-23T07:00:12Z",
    "history": [ended(1, "Succeeded", "done")],
    "result": {"attempt": 1, "code": 0, "metrics": {"rows_train": 1200.0}},
}
CHAT = {
    "name": "chat",
    "kind": "sft",
    "phase": "Running",
    "attempts": 3,
    "failures": 1,
    "preemptions": 1,
    "started": "2026-11-23T07:10:00Z",
    "current": {"number": 3, "name": "x", "executor": "RayJob", "created": "2026-11-23T07:30:00Z"},
    "history": [
        ended(1, "Preemption", "its machine\nwas taken away"),
        ended(2, "OutOfMemory", "no \x1b[31mmemory"),
    ],
    "progress": {
        "attempt": 3,
        "percentage": 40,
        "task": "train",
        "done": 400,
        "total": 1000,
        "unit": "steps",
        "remainingSeconds": 252,
        "metrics": {"loss": 2.1, "grad_norm": 1.0, "tokens_per_second": 5300.0},
    },
}
TUNED = {"name": "tuned", "kind": "ppo"}


def told(phase: str = "Running", *stages: dict[str, Any], **more: Any) -> PipelineStatus:
    return PipelineStatus.model_validate(
        {"phase": phase, "progress": "1/3, 40%", "started": "2026-11-23T07:00:00Z", "stages": list(stages), **more}
    )


def test_the_tree_shows_attempts_progress_figures_and_what_failed_before() -> None:
    status = told("Running", ROWS, CHAT, TUNED, message="stage 'chat' (2 of 3): running")
    assert tree("demo", status, NOW).plain.splitlines() == [
        "● demo  Running  1/3, 40%  1:00 h",
        "  stage 'chat' (2 of 3): running",
        "  ✓ rows   data  Succeeded  12.0 s",
        "      1,200 rows to train on",
        "  ● chat   sft   Running  50:00 min  attempt 3, 1 failure, 1 preemption",
        "      " + "━" * 9 + "─" * 15 + " 40%  train 400/1,000 steps  loss 2.10  5,300 tokens/s  4:12 min left",
        "      attempt 1: Preemption after 2:10 min: its machine was taken away",
        "      attempt 2: OutOfMemory after 2:10 min: no [31mmemory",
        "  · tuned  ppo",
    ]


def test_the_tree_says_why_it_waits_and_when_it_tries_again() -> None:
    backoff = {
        **CHAT,
        "phase": "Backoff",
        "current": None,
        "retry": "2026-11-23T08:00:32Z",
        "message": "no image",
    }
    lines = tree("demo", told("Running", ROWS, backoff, message="stage 'chat': another"), NOW).plain.splitlines()
    assert lines[4].startswith("  ↻ chat  sft   Backoff")
    assert lines[5:7] == ["      no image", "      next attempt in 32.0 s"]
    nothing = tree("demo", PipelineStatus(), NOW).plain.splitlines()
    assert nothing[1] == "  the operator has not looked at it yet; if this stays, see whether it runs"


def test_progress_of_an_earlier_attempt_is_not_shown() -> None:
    newer = {**CHAT, "current": {**CHAT["current"], "number": 4}, "attempts": 4}
    assert "40%" not in "\n".join(tree("demo", told("Running", newer, progress="0/1"), NOW).plain.splitlines())
    assert not any("40%" in line for line in changes(None, told("Running", newer), "demo"))


def test_lines_are_printed_for_changes_only() -> None:
    before = told("Running", ROWS, CHAT, TUNED)
    assert list(changes(before, before, "demo")) == []
    near = {**CHAT, "progress": {**CHAT["progress"], "percentage": 49, "done": 490}}
    assert list(changes(before, told("Running", ROWS, near, TUNED), "demo")) == []
    half = {**CHAT, "progress": {**CHAT["progress"], "percentage": 50, "done": 500}}
    assert list(changes(before, told("Running", ROWS, half, TUNED), "demo")) == [
        "[2/3] chat (sft) 50%, train 500/1,000 steps, loss 2.10, 5,300 tokens/s"
    ]
    backoff = {**CHAT, "phase": "Backoff", "current": None, "message": "attempt 3 ended (Error): boom"}
    assert list(changes(before, told("Running", ROWS, backoff, TUNED), "demo")) == [
        "[2/3] chat (sft) Backoff, attempt 3: attempt 3 ended (Error): boom"
    ]
    pulls = {**CHAT, "phase": "Provisioning", "progress": None, "message": "ErrImagePull"}
    waits = told("Running", ROWS, pulls, TUNED)
    again = told("Running", ROWS, {**pulls, "message": "ImagePullBackOff"}, TUNED)
    assert list(changes(waits, again, "demo")) == ["[2/3] chat (sft) Provisioning, attempt 3: ImagePullBackOff"]
    assert list(changes(None, told("Suspended", ROWS, message="on request"), "demo")) == [
        "[1/1] rows (data) Succeeded: 1,200 rows to train on",
        "demo Suspended: on request",
    ]


@pytest.mark.parametrize(
    ("outcome", "result", "code"),
    [
        ("UserError", {"attempt": 3, "code": 13}, 13),
        ("UserError", {"attempt": 2, "code": 13}, 10),  # of an earlier attempt
        ("Infrastructure", None, 20),
        ("OutOfMemory", None, 23),
        ("Preemption", None, 24),
        ("Error", {"attempt": 3, "code": 1}, 1),
        ("Error", None, 1),
        ("Stopped", None, 1),
    ],
)
def test_the_exit_code_is_that_of_the_last_attempt_or_of_its_class(
    outcome: str, result: dict[str, int] | None, code: int
) -> None:
    failed = {**CHAT, "phase": "Failed", "history": [ended(3, outcome, "")], "result": result}
    assert exit_code(told("Failed", ROWS, failed)) == code


def test_other_ends_have_codes_of_their_own() -> None:
    assert exit_code(told("Succeeded", ROWS)) == 0
    assert exit_code(told("Cancelled", ROWS)) == 130
    assert exit_code(told("Failed", TUNED)) == 11  # refused before anything started


@pytest.mark.parametrize(
    ("since", "text"),
    [
        ("2026-11-23T07:59:15Z", "45s"),
        ("2026-11-23T07:48:00Z", "12m"),
        ("2026-11-23T04:30:00Z", "3h"),
        ("2026-11-18T07:00:00Z", "5d"),
        ("2026-11-23T08:00:05Z", "0s"),
    ],
)
def test_ages_are_in_one_unit(since: str, text: str) -> None:
    assert age(since, NOW) == text
