"""Pipelines on a real apiserver: the operator under its own account, real Jobs and scheduling, KubeRay played."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from kuberay_standin.launch import KubeRay
from rig.control_plane import ControlPlane
from rig.operator import Operator, forget_leader, start_operator
from rig.pipelines import Pipelines, pipeline

GROUPS = [{"name": "gpu", "replicas": 1}]
RAYJOB = {"executor": "RayJob", "groups": GROUPS}


@pytest.fixture(scope="module", autouse=True)
def replica(control_plane: ControlPlane, installed: None, kuberay: KubeRay) -> Iterator[Operator]:
    forget_leader(control_plane)
    replica = start_operator(control_plane, "main", "--stop-seconds=5", "--silent-seconds=20")
    yield replica
    replica.end_well()


@pytest.fixture
def pipelines(control_plane: ControlPlane, namespace: str) -> Pipelines:
    return Pipelines(control_plane, namespace)


@pytest.mark.parametrize("cluster", [{"executor": "Job"}, RAYJOB], ids=["Job", "RayJob"])
def test_stages_run_one_after_the_other_to_the_end(pipelines: Pipelines, cluster: dict[str, object]) -> None:
    assert pipelines.apply(pipeline("demo", cluster=cluster)) == "camelpipeline.camel-ray.dev/demo created\n"
    status = pipelines.wait_phase("demo", "Succeeded")
    assert (status["progress"], status["attempts"], status["message"]) == ("2/2", 2, "all 2 stages are done")
    assert [s["phase"] for s in status["stages"]] == ["Succeeded", "Succeeded"]
    first, second = status["stages"]
    assert first["history"][0]["ended"] <= second["history"][0]["started"]
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Progressing": "False",
        "Suspended": "False",
        "Succeeded": "True",
        "Failed": "False",
    }
    kind = "rayjobs" if "groups" in cluster else "jobs"
    assert sorted(thing["metadata"]["name"] for thing in pipelines.list(kind, "demo")) == ["demo-a-1", "demo-b-1"]
    told = ["AttemptStarted", "AttemptStarted", "Succeeded"]
    pipelines.wait(lambda: sorted(reason for reason, _ in pipelines.events("demo")) == told, "its events")
    row = pipelines.kubectl("get", "camel", "demo", "--no-headers").split()
    assert row[:2] == ["demo", "Succeeded"]
    assert "2/2" in row


def test_a_user_error_ends_the_pipeline_at_once_with_its_sentence(pipelines: Pipelines, kuberay: KubeRay) -> None:
    said = '{"code": 12, "message": "rows.jsonl: no column text", "artifacts": [], "metrics": {}}'
    log = f"loading\ncamel-ray-result: {said}\n"
    kuberay.rule("wrong-a-*", namespace=pipelines.namespace, exit_code=12, log=log)
    pipelines.apply(pipeline("wrong", cluster=RAYJOB))
    status = pipelines.wait_phase("wrong", "Failed")
    assert status["message"] == "stage 'a' (1 of 2): rows.jsonl: no column text"
    assert (status["attempts"], status["stages"][0]["failures"]) == (1, 0)
    assert [(h["outcome"], h["reason"]) for h in status["stages"][0]["history"]] == [("UserError", "UserError")]
    assert status["stages"][1]["phase"] == "Waiting"


def test_a_mended_stage_runs_again_when_it_is_applied(pipelines: Pipelines, kuberay: KubeRay) -> None:
    kuberay.rule("mended-a-1", namespace=pipelines.namespace, exit_code=13)
    pipelines.apply(pipeline("mended"))
    pipelines.wait_phase("mended", "Failed")
    spec = pipeline("mended")
    spec["spec"]["stages"][0]["data"]["source"] = "/data/better.jsonl"
    pipelines.apply(spec)
    status = pipelines.wait_phase("mended", "Succeeded")
    assert [s["attempts"] for s in status["stages"]] == [2, 1]


def test_infrastructure_failures_are_tried_again_and_counted(pipelines: Pipelines, kuberay: KubeRay) -> None:
    kuberay.rule("flaky-a-1", namespace=pipelines.namespace, exit_code=21)
    kuberay.rule("flaky-a-2", namespace=pipelines.namespace, seconds=5, events=[{"do": "delete", "pod": "head"}])
    pipelines.apply(pipeline("flaky", cluster=RAYJOB))
    status = pipelines.wait_phase("flaky", "Succeeded")
    stage = status["stages"][0]
    assert (stage["attempts"], stage["failures"], stage["preemptions"]) == (3, 2, 0)
    assert [h["outcome"] for h in stage["history"]] == ["Infrastructure", "Infrastructure", "Succeeded"]
    assert stage["history"][1]["reason"] == "SubmissionFailed"


def test_a_spent_budget_ends_the_pipeline(pipelines: Pipelines, kuberay: KubeRay) -> None:
    kuberay.rule("spent-a-*", namespace=pipelines.namespace, exit_code=1)
    pipelines.apply(pipeline("spent", retry={"maxRetries": 1, "backoffSeconds": 0.1}))
    status = pipelines.wait_phase("spent", "Failed")
    assert (status["stages"][0]["failures"], status["attempts"]) == (2, 2)
    assert "given up after 2 failed attempts (retry.maxRetries 1)" in status["message"]


def test_what_ended_the_pods_decides_the_class(pipelines: Pipelines, kuberay: KubeRay) -> None:
    cases = {  # side by side: each waits until the pods of its first attempt are gone
        "preempted": ({"do": "preempt", "pod": "worker"}, "Preemption"),
        "oom": ({"do": "oom", "pod": "worker"}, "OutOfMemory"),
        "evicted": ({"do": "evict", "pod": "head"}, "Preemption"),
        "node-lost": ({"do": "node-lost", "pod": "head"}, "Preemption"),
        "job": ({"do": "preempt", "pod": "pod"}, "Preemption"),
    }
    for name, (event, outcome) in cases.items():
        code = 22 if event["pod"] == "worker" else 0
        events = [{"after": 1.0, **event}]
        kuberay.rule(f"{name}-a-1", namespace=pipelines.namespace, seconds=3, exit_code=code, events=events)
        retry = {"maxRetries": 0 if outcome == "Preemption" else 1, "backoffSeconds": 0.1}
        pipelines.apply(pipeline(name, cluster={} if name == "job" else RAYJOB, retry=retry))
    for name, (_, outcome) in cases.items():
        stage = pipelines.wait_phase(name, "Succeeded")["stages"][0]
        counts = (0, 1) if outcome == "Preemption" else (1, 0)
        assert (stage["history"][0]["outcome"], stage["failures"], stage["preemptions"]) == (outcome, *counts), stage
        assert stage["attempts"] == 2


def test_an_image_that_does_not_exist_is_shown_while_it_waits(pipelines: Pipelines, kuberay: KubeRay) -> None:
    kuberay.rule("noimage-a-*", namespace=pipelines.namespace, head="image-pull")
    pipelines.apply(pipeline("noimage", cluster={**RAYJOB, "startTimeoutSeconds": 600}))
    pipelines.wait(lambda: "Pull" in pipelines.status("noimage").get("message", ""), "the image to be named")
    status = pipelines.status("noimage")
    assert status["stages"][0]["phase"] == "Provisioning"
    assert "registry.local/trainer:1" in status["message"]


def test_pods_that_fit_nowhere_are_shown_and_given_up(pipelines: Pipelines, kuberay: KubeRay) -> None:
    kuberay.rule("nofit-a-1", namespace=pipelines.namespace, head="unschedulable")
    pipelines.apply(pipeline("nofit", cluster={**RAYJOB, "startTimeoutSeconds": 15}))
    pipelines.wait(lambda: "Unschedulable" in pipelines.status("nofit").get("message", ""), "the scheduler's words")
    stage = pipelines.wait_phase("nofit", "Succeeded")["stages"][0]
    assert (stage["failures"], stage["history"][0]["outcome"]) == (1, "Infrastructure")
    assert stage["history"][0]["reason"] == "PreRunningDeadlineExceeded"
    assert "nodes are available" in stage["history"][0]["message"]


def test_a_submitter_that_never_starts_is_ended_by_our_own_timer(pipelines: Pipelines, kuberay: KubeRay) -> None:
    kuberay.rule("silent-a-1", namespace=pipelines.namespace, submitter="unschedulable")
    pipelines.apply(pipeline("silent", cluster=RAYJOB))
    stage = pipelines.wait_phase("silent", "Succeeded")["stages"][0]
    assert (stage["failures"], stage["history"][0]["reason"]) == (1, "NotSubmitted")


def test_what_kuberay_refuses_ends_the_pipeline(pipelines: Pipelines, kuberay: KubeRay) -> None:
    kuberay.rule("refused-a-*", namespace=pipelines.namespace, invalid="the gate is off")
    pipelines.apply(pipeline("refused", cluster=RAYJOB))
    status = pipelines.wait_phase("refused", "Failed")
    assert "KubeRay refuses the RayJob" in status["message"]
    pipelines.wait(lambda: not pipelines.list("rayjobs", "refused"), "the refused RayJob to be deleted")


@pytest.mark.parametrize("cluster", [{"executor": "Job"}, RAYJOB], ids=["Job", "RayJob"])
def test_suspend_ends_the_attempt_and_resume_starts_another(
    pipelines: Pipelines, kuberay: KubeRay, cluster: dict[str, object]
) -> None:
    kuberay.rule("pause-a-1", namespace=pipelines.namespace, seconds=300)
    pipelines.apply(pipeline("pause", cluster=cluster))
    pipelines.wait_stage("pause", "a", "Running")
    pipelines.patch_spec("pause", suspend=True)
    status = pipelines.wait_phase("pause", "Suspended")
    kind = "rayjobs" if "groups" in cluster else "jobs"
    assert pipelines.list(kind, "pause") == []
    assert [p for p in pipelines.list("pods", "pause") if p["status"]["phase"] == "Running"] == []
    assert status["stages"][0]["history"][0]["outcome"] == "Stopped"
    pipelines.patch_spec("pause", suspend=False)
    stage = pipelines.wait_phase("pause", "Succeeded")["stages"][0]
    assert (stage["attempts"], stage["failures"]) == (2, 0)


def test_cancel_ends_it_and_retry_goes_on(pipelines: Pipelines, kuberay: KubeRay) -> None:
    kuberay.rule("stop-b-1", namespace=pipelines.namespace, seconds=300)
    pipelines.apply(pipeline("stop"))
    pipelines.wait_stage("stop", "b", "Running")
    pipelines.request("stop", "cancel - 1")
    status = pipelines.wait_phase("stop", "Cancelled")
    assert [s["phase"] for s in status["stages"]] == ["Succeeded", "Cancelled"]
    pipelines.request("stop", "retry - 2")
    status = pipelines.wait_phase("stop", "Succeeded")
    assert [s["attempts"] for s in status["stages"]] == [1, 2]
    assert status["handledRequest"] == "retry - 2"


def test_a_stage_is_run_again_from_nothing_with_what_follows(pipelines: Pipelines) -> None:
    pipelines.apply(pipeline("again"))
    pipelines.wait_phase("again", "Succeeded")
    pipelines.request("again", "retry a now")
    pipelines.wait(lambda: pipelines.status("again").get("handledRequest") == "retry a now", "the request to be seen")
    status = pipelines.wait_phase("again", "Succeeded")
    assert [s["attempts"] for s in status["stages"]] == [2, 2]
    environment = [
        {e["name"]: e.get("value") for e in job["spec"]["template"]["spec"]["containers"][0]["env"]}
        for job in pipelines.list("jobs", "again")
        if job["metadata"]["name"] == "again-a-2"
    ]
    assert environment[0]["CAMEL_RAY_FRESH"] == "2"


def test_pipelines_whose_attempts_would_have_one_name_both_run(pipelines: Pipelines) -> None:
    one = pipeline("llama", {"name": "sft-lora", "data": {"source": "/data/rows.jsonl"}}, cluster={"executor": "Job"})
    other = pipeline("llama-sft", {"name": "lora", "data": {"source": "/data/rows.jsonl"}}, cluster={"executor": "Job"})
    pipelines.apply(one)
    assert pipelines.wait_phase("llama", "Succeeded")["attempts"] == 1
    pipelines.apply(other)
    status = pipelines.wait_phase("llama-sft", "Succeeded")
    assert [attempt["name"] for attempt in status["stages"][0]["history"]] == ["llama-sft-lora-2"]
    assert [job["metadata"]["name"] for job in pipelines.list("jobs", "llama")] == ["llama-sft-lora-1"]
    pipelines.wait(lambda: "NameTaken" in [reason for reason, _ in pipelines.events("llama-sft")], "word of the name")


def test_deleting_a_pipeline_takes_its_children_with_it(pipelines: Pipelines, kuberay: KubeRay) -> None:
    kuberay.rule("gone-a-1", namespace=pipelines.namespace, seconds=300)
    pipelines.apply(pipeline("gone", cluster=RAYJOB))
    pipelines.wait_stage("gone", "a", "Running")
    pipelines.kubectl("delete", "camel", "gone")
    for resource in ("rayjobs", "rayclusters", "pods", "configmaps"):
        pipelines.wait(lambda r=resource: not pipelines.list(r, "gone"), f"its {resource} to go")  # type: ignore[misc]


def test_a_deleted_attempt_is_replaced(pipelines: Pipelines, kuberay: KubeRay) -> None:
    kuberay.rule("removed-a-1", namespace=pipelines.namespace, seconds=300)
    pipelines.apply(pipeline("removed"))
    pipelines.wait_stage("removed", "a", "Running")
    pipelines.kubectl("delete", "job", "removed-a-1")
    stage = pipelines.wait_phase("removed", "Succeeded")["stages"][0]
    assert [(h["outcome"], h["reason"]) for h in stage["history"]] == [
        ("Infrastructure", "Deleted"),
        ("Succeeded", "Completed"),
    ]


def test_a_finished_pipeline_is_deleted_after_its_time(pipelines: Pipelines) -> None:
    pipelines.apply(pipeline("short", ttlSecondsAfterFinished=2))
    pipelines.wait(lambda: "short" in pipelines.kubectl("get", "camel", "-o", "name"), "the pipeline")
    pipelines.wait(lambda: "short" not in pipelines.kubectl("get", "camel", "-o", "name"), "the pipeline to go")


def test_what_cannot_work_on_a_cluster_is_said_before_anything_runs(pipelines: Pipelines) -> None:
    pipelines.apply(pipeline("relative", storage="./runs"))
    status = pipelines.wait_phase("relative", "Failed")
    assert "spec.storage: './runs' is a relative path" in status["message"]
    assert pipelines.list("jobs", "relative") == []
    pipelines.apply(pipeline("relative"))
    pipelines.wait_phase("relative", "Succeeded")


def test_a_quota_is_named_while_it_holds_an_attempt_up(pipelines: Pipelines) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    path = f"/api/v1/namespaces/{pipelines.namespace}/resourcequotas"
    pipelines.plane.request("POST", path, quota)
    pipelines.apply(pipeline("quota"))
    says: Callable[[], bool] = lambda: "exceeded quota" in pipelines.status("quota").get("message", "")  # noqa: E731
    pipelines.wait(says, "the quota's words")
    assert pipelines.stage("quota", "a")["phase"] == "Provisioning"
