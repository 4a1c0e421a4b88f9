"""`camel-ray logs` against an HTTP server: which pods it reads, and what it does when they come, end and go."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from camel_ray.cli.main import main
from pipeline_api import PIPELINES, ApiServer, Object, status

PODS = "pods"
NUMBERED = [b"line 1\n", b"line 2\nli", b"ne 3\n"]

pytestmark = pytest.mark.usefixtures("kubeconfig")


def logs(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["logs", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def stage(name: str, phase: str, attempts: int, *, current: bool = False, message: str = "") -> Object:
    told: Object = {"name": name, "kind": "sft", "phase": phase, "attempts": attempts, "message": message}
    if current:
        told["current"] = {"number": attempts, "name": "x", "executor": "Job", "created": "2026-11-23T07:01:00Z"}
    return told


def pipeline(phase: str, *stages: Object) -> Object:
    active = next((s["name"] for s in stages if s["phase"] != "Succeeded"), "")
    told = {"phase": phase, "stage": active, "observedGeneration": 1, "stages": list(stages)}
    return {"metadata": {"name": "demo", "namespace": "team-a"}, "spec": {}, "status": told}


def pod(name: str, stage: str, number: int, *containers: str, state: str = "terminated") -> Object:
    labels = {
        "app.kubernetes.io/managed-by": "camel-ray",
        "camel-ray.dev/pipeline": "demo",
        "camel-ray.dev/stage": stage,
        "camel-ray.dev/attempt": str(number),
    }
    names = containers or ("stage",)
    return {
        "metadata": {"name": name, "namespace": "team-a", "labels": labels, "uid": name},
        "spec": {"containers": [{"name": container} for container in names]},
        "status": {"containerStatuses": [{"name": container, "state": {state: {}}} for container in names]},
    }


def test_the_newest_attempt_of_the_running_stage_is_the_default(
    api: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    api.put(PIPELINES, pipeline("Running", stage("a", "Succeeded", 1), stage("b", "Running", 2, current=True)))
    api.put(PODS, pod("b-1", "b", 1))
    api.put(PODS, pod("b-2", "b", 2, state="running"))
    api.logs[("b-2", "stage")] = list(NUMBERED)
    api.logs[("b-1", "stage")] = [b"first\n"]
    assert logs("demo") == 0
    assert capsys.readouterr().out == "line 1\nline 2\nline 3\n"
    assert logs("demo", "--tail", "1") == 0
    assert capsys.readouterr().out == "line 3\n"
    assert logs("demo", "--attempt", "1") == 0
    assert capsys.readouterr().out == "first\n"


def test_of_a_rayjob_it_is_the_submitters_log_and_others_can_be_named(
    api: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    api.put(PIPELINES, pipeline("Running", stage("b", "Running", 1, current=True)))
    for name, container in (
        ("head", "ray-head"),
        ("sub", "ray-job-submitter"),
        ("w1", "ray-worker"),
        ("w2", "ray-worker"),
    ):
        api.put(PODS, pod(name, "b", 1, container, state="running"))
        api.logs[(name, container)] = [f"I am {name}\n".encode()]
    assert logs("demo") == 0
    assert logs("demo", "-c", "head") == 0
    assert logs("demo", "-c", "worker") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["I am sub", "I am head", "I am w1", "I am w2"]
    assert err.splitlines() == ["--- pod w1 ---", "--- pod w2 ---"]
    assert logs("demo", "-c", "worker", "-f") == 10
    assert "-f follows one log, and 2 pods have a container ray-worker" in capsys.readouterr().err
    assert logs("demo", "-c", "sidecar") == 10
    assert "has no container sidecar" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stages", "arguments", "code", "said"),
    [
        ((), (), 20, "no stage of pipeline 'demo' has begun (Running: not seen yet); -f waits for it"),
        (
            (stage("a", "Succeeded", 1),),
            (),
            10,
            "the pods of attempt 1 of stage 'a' are gone, and their logs with them",
        ),
        (
            (stage("a", "Provisioning", 1, current=True, message="ImagePullBackOff: no such image"),),
            (),
            20,
            "attempt 1 of stage 'a' has not started to run (ImagePullBackOff: no such image); `logs -f` waits for it",
        ),
        (
            (stage("a", "Succeeded", 1),),
            ("--stage", "b"),
            10,
            "--stage b: pipeline 'demo' has no such stage; there are a",
        ),
        ((stage("a", "Succeeded", 1),), ("--attempt", "2"), 10, "--attempt 2: stage 'a' has had 1 so far"),
        ((stage("a", "Waiting", 0),), ("--stage", "a"), 20, "stage 'a' has not begun yet"),
    ],
)
def test_why_there_is_no_log_is_said(
    api: ApiServer,
    capsys: pytest.CaptureFixture[str],
    stages: tuple[Object, ...],
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    api.put(PIPELINES, pipeline("Running", *stages))
    assert logs("demo", *arguments) == code
    assert capsys.readouterr().err.startswith(said)


def test_following_goes_over_retries_and_stages_to_the_end(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    api.put(PIPELINES, pipeline("Running", stage("a", "Provisioning", 1, current=True), stage("b", "Waiting", 0)))
    api.logs = {("a-1", "stage"): [b"try 1\n"], ("a-2", "stage"): [b"try 2\n"], ("b-1", "stage"): [b"next\n"]}

    def world() -> None:
        api.wait_for_request("/pods?")
        api.put(PODS, pod("a-1", "a", 1))
        api.wait_for_request("/pods/a-1/log")
        api.put(PIPELINES, pipeline("Running", stage("a", "Running", 2, current=True), stage("b", "Waiting", 0)))
        api.put(PODS, pod("a-2", "a", 2))
        api.wait_for_request("/pods/a-2/log")
        # a quick third attempt of which nothing is left, and the next stage at once
        api.put(PIPELINES, pipeline("Running", stage("a", "Succeeded", 3), stage("b", "Running", 1, current=True)))
        api.put(PODS, pod("b-1", "b", 1))
        api.wait_for_request("/pods/b-1/log")
        api.put(PIPELINES, pipeline("Succeeded", stage("a", "Succeeded", 3), stage("b", "Succeeded", 1)))

    thread = threading.Thread(target=world)
    thread.start()
    assert logs("demo", "-f") == 0
    thread.join()
    out, err = capsys.readouterr()
    assert out == "try 1\ntry 2\nnext\n"
    assert err.splitlines() == [
        "--- stage a, attempt 1 ---",
        "--- stage a, attempt 2 ---",
        "--- stage a, attempt 3: its pods are gone ---",
        "--- stage b, attempt 1 ---",
    ]


@pytest.mark.parametrize("tail", [(), ("--tail", "2")])
def test_a_broken_connection_goes_on_exactly_where_it_was(
    api: ApiServer, capsys: pytest.CaptureFixture[str], tail: tuple[str, ...]
) -> None:
    api.put(PIPELINES, pipeline("Running", stage("a", "Running", 1, current=True)))
    api.put(PODS, pod("a-1", "a", 1, state="running"))
    api.logs[("a-1", "stage")] = [b"line 1\nline 2\nli", "cut", b"ne 3\nline 4\n", "cut", b"line 5\n"]
    api.failures.append(("follow=true", 500, status(500, "InternalError", "the node's kubelet is busy")))

    def ends() -> None:
        # the first is refused, the second and third are cut
        api.wait_for_request("follow=true", count=4)
        api.put(PODS, pod("a-1", "a", 1))
        api.put(PIPELINES, pipeline("Succeeded", stage("a", "Succeeded", 1)))

    thread = threading.Thread(target=ends)
    thread.start()
    assert logs("demo", "-f", *tail) == 0
    thread.join()
    out = capsys.readouterr().out
    lines = [f"line {number}\n" for number in range(1, 6)]
    assert out == "".join(lines if not tail else lines[3:])


def test_following_one_attempt_or_one_stage_ends_with_it(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    api.put(PIPELINES, pipeline("Running", stage("a", "Succeeded", 2), stage("b", "Running", 1, current=True)))
    for number in (1, 2):
        api.put(PODS, pod(f"a-{number}", "a", number))
        api.logs[(f"a-{number}", "stage")] = [f"try {number}\n".encode()]
    assert logs("demo", "--stage", "a", "--attempt", "1", "-f") == 0
    assert capsys.readouterr().out == "try 1\n"
    assert logs("demo", "--stage", "a", "-f") == 0
    assert capsys.readouterr().out == "try 2\n"


def test_following_a_pipeline_that_is_refused_says_why(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    refused: Any = pipeline("Failed")
    refused["status"]["message"] = "spec.storage: './runs' is a relative path"
    api.put(PIPELINES, refused)
    assert logs("demo", "-f") == 10
    assert capsys.readouterr().err.startswith("no stage of pipeline 'demo' has run: spec.storage: './runs'")
