"""The check of the fault tests finds what it is there to find."""

from __future__ import annotations

from typing import Any

import pytest

from rig.history import Change
from rig.invariants import ATTEMPT, PIPELINE, RESOURCES, STAGE, violations

PIPELINES = RESOURCES[0]


def change(revision: int, resource: str, name: str, thing: dict[str, Any] | None) -> Change:
    return Change(revision, resource, f"ns/{name}", thing)


def status(phase: str, *, name: str = "demo-a-1", **more: Any) -> dict[str, Any]:
    stage = {"name": "a", "phase": phase, "attempts": 1, "current": {"name": name}, **more}
    return {"metadata": {"uid": "1"}, "spec": {}, "status": {"phase": phase, "message": "why", "stages": [stage]}}


def job(attempt: int, **state: Any) -> dict[str, Any]:
    labels = {PIPELINE: "demo", STAGE: "a", ATTEMPT: str(attempt)}
    owner = {"kind": "CamelPipeline", "uid": "1"}
    metadata = {
        "name": f"demo-a-{attempt}",
        "uid": f"of {attempt}",
        "labels": labels,
        "ownerReferences": [owner],
    }
    return {"metadata": metadata, "spec": {}, "status": state}


def pod(attempt: int, phase: str, kind: str = "RayCluster") -> dict[str, Any]:
    thing = job(attempt, phase=phase)
    metadata = {**thing["metadata"], "ownerReferences": [{"kind": kind, "uid": f"of {attempt}"}]}
    return {**thing, "metadata": metadata, "spec": {"containers": []}}


RUNS = change(1, PIPELINES, "demo", status("Running"))
NEXT = change(3, PIPELINES, "demo", status("Running", name="demo-a-2", attempts=2))
FIRST = change(2, "jobs", "demo-a-1", job(1))
RAY = RESOURCES[2]
SECOND = change(4, RAY, "demo-a-2", job(2))
LATE = pod(1, "Pending", "Job")
SUBMITTER = change(
    2,
    "jobs",
    "demo-a-1",
    {"metadata": {"uid": "of 1", "ownerReferences": [{"kind": "RayJob", "uid": "8"}]}, "spec": {}},
)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ([RUNS, FIRST], ""),
        ([FIRST], "was created, and the status did not name it"),
        ([RUNS, change(2, PIPELINES, "demo", None), FIRST], ""),
        ([RUNS, change(2, PIPELINES, "demo", None), change(3, "jobs", "demo-a-2", job(2))], "did not name it"),
        ([RUNS, FIRST, change(3, "jobs", "demo-a-1", None), change(4, "jobs", "demo-a-1", job(1))], "a second time"),
        ([RUNS, FIRST, NEXT, change(4, "jobs", "demo-a-2", job(2))], "began while demo-a-1 of another attempt"),
        (
            [RUNS, change(2, "pods", "x", pod(1, "Running")), NEXT, change(4, "jobs", "demo-a-2", job(2))],
            "began while demo-a-1 of another attempt",
        ),
        ([RUNS, change(2, "pods", "x", pod(1, "Failed")), NEXT, change(4, "jobs", "demo-a-2", job(2))], ""),
        (
            [RUNS, FIRST, change(3, "jobs", "demo-a-1", None), NEXT, SECOND, change(5, "pods", "x", LATE)],
            "",
        ),
        ([RUNS, SUBMITTER, NEXT, SECOND, change(5, "pods", "x", LATE)], "began while demo-a-2 of another attempt"),
        (
            [RUNS, SUBMITTER, change(3, "pods", "x", LATE), change(4, "jobs", "demo-a-1", None), NEXT, SECOND],
            "began while",
        ),
        (
            [
                RUNS,
                change(2, RAY, "demo-a-1", job(1, jobDeploymentStatus="Running")),
                NEXT,
                change(4, RAY, "demo-a-2", job(2)),
            ],
            "began while demo-a-1 of another attempt",
        ),
        (
            [
                RUNS,
                change(2, RAY, "demo-a-1", job(1, jobDeploymentStatus="Failed")),
                NEXT,
                change(4, RAY, "demo-a-2", job(2)),
            ],
            "",
        ),
        ([change(1, PIPELINES, "demo", status("Failed")), RUNS], "Failed became Running without a request"),
        ([RUNS, change(2, PIPELINES, "demo", status("Running", attempts=3))], "attempts of a went from 1 to 3"),
        ([RUNS, change(2, PIPELINES, "demo", status("Running", failures=5))], "5 failures, with a budget of 4"),
    ],
)
def test_a_history_that_breaks_a_rule_is_found(changes: list[Change], found: str) -> None:
    problems = violations(changes)
    assert (found in " ".join(problems)) if found else problems == []
