"""Which reports may be written: reports of one attempt come to all replicas, and each holds back what is not urgent."""

from __future__ import annotations

from typing import Any

import pytest

from camel_ray.api.status import Progress, Result
from camel_ray.operator.progress_writer import Key, Write, status_patch

KEY = Key("team", "llm", "base", 2)
END = Result(attempt=2, code=0)


def pipeline(**stage: Any) -> dict[str, Any]:
    current = {"number": 2, "name": "llm-base-2", "executor": "Job", "created": "2026-11-23T07:00:00Z"}
    base = {"name": "base", "kind": "pretrain", "phase": "Running", "current": current, **stage}
    return {"metadata": {"name": "llm", "namespace": "team"}, "status": {"stages": [base]}}


def progress(second: int, *, done: int, attempt: int = 2) -> Progress:
    return Progress(attempt=attempt, task="train", done=done, total=16, updated=f"2026-11-23T07:00:{second:02d}Z")


@pytest.mark.parametrize(
    ("known", "second", "written"),
    [
        ({}, 10, True),
        ({"progress": progress(9, done=3).wire()}, 10, True),
        ({"progress": progress(10, done=3).wire()}, 10, True),
        ({"progress": progress(11, done=16).wire()}, 10, False),
        ({"progress": progress(11, done=16, attempt=1).wire()}, 10, True),
        ({"result": END.wire(), "progress": progress(9, done=3).wire()}, 10, False),
        ({"result": Result(attempt=1, code=20).wire()}, 10, True),
    ],
)
def test_progress_never_replaces_what_is_newer(known: dict[str, Any], second: int, written: bool) -> None:
    patch = status_patch(pipeline(**known), KEY, Write(progress(second, done=6), None))
    values = {step["path"]: step["value"] for step in patch}
    assert ("/status/stages/0/progress" in values) is written
    assert bool(patch) is written
    if written:
        assert values["/status/stages/0/progress"]["done"] == 6


def test_the_end_is_always_written() -> None:
    known = {"progress": progress(59, done=16).wire()}
    patch = status_patch(pipeline(**known), KEY, Write(progress(10, done=16), END))
    assert {"op": "add", "path": "/status/stages/0/result", "value": END.wire()} in patch
