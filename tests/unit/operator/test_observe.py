"""Every combination of what KubeRay, the Job controller and kubelets may write of an attempt has one reading."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from camel_ray.api.status import AttemptStatus, Result
from camel_ray.operator.clock import stamp
from camel_ray.operator.evidence import WORDS, new_evidence
from camel_ray.operator.model import AttemptView
from camel_ray.operator.names import QUEUE
from camel_ray.operator.observe import Observation, observe, result_in

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
JOB_STATUSES = ("", "PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED")
LATE = "JobDeploymentStatusTransitionGracePeriodExceeded"
REASONS = (
    "", "AppFailed", "SubmissionFailed", "DeadlineExceeded", "PreRunningDeadlineExceeded", LATE,
    "JobStatusCheckTimeoutExceeded", "ValidationFailed", "AReasonOfNextYear",
)  # fmt: skip
BY_REASON = {
    "SubmissionFailed": "Infrastructure",
    "PreRunningDeadlineExceeded": "Infrastructure",
    "JobStatusCheckTimeoutExceeded": "Infrastructure",
    "DeadlineExceeded": "Error",
}


def current(**more: Any) -> AttemptStatus:
    return AttemptStatus(number=2, name="p-sft-2", executor="RayJob", uid="u", created=stamp(NOW), **more)


def see(view: AttemptView, posted: Result | None = None, **more: Any) -> Observation:
    return observe(view, current(**more), posted, NOW)


def rayjob(*pods: dict[str, Any], **status: Any) -> AttemptView:
    return AttemptView("sft", 2, {"kind": "RayJob", "metadata": {"name": "p-sft-2"}, "status": status}, pods=pods)


def job(*pods: dict[str, Any], suspend: bool = False, **conditions: tuple[str, str]) -> AttemptView:
    found = [{"type": t, "status": "True", "reason": r, "message": m} for t, (r, m) in conditions.items()]
    return AttemptView(
        "sft",
        2,
        {"kind": "Job", "metadata": {"uid": "u"}, "spec": {"suspend": suspend}, "status": {"conditions": found}},
        pods=pods,
    )


def pod(phase: str, *, code: int | None = None, message: str = "", why: str = "Error", **status: Any) -> dict[str, Any]:
    containers = [{"name": "stage", "state": {"terminated": {"exitCode": code, "reason": why, "message": message}}}]
    states = {"containerStatuses": containers} if code is not None else {}
    metadata = {"name": "pod-1", "ownerReferences": [{"uid": "u"}]}
    return {"metadata": metadata, "status": {"phase": phase, **states, **status}}


def is_whole(seen: Observation) -> bool:
    """An end has an outcome and a reason, all else has none; what waits says why."""
    if seen.state == "ended":
        return seen.outcome is not None and bool(seen.reason) and (bool(seen.message) or seen.outcome == "Succeeded")
    return seen.outcome is None and (bool(seen.message) or seen.state in ("running", "absent"))


@pytest.mark.parametrize("deployment", ["", "New", "Initializing", "Waiting", "Retrying", "AStateOfNextYear"])
def test_before_the_cluster_is_up_an_attempt_waits_whatever_else_is_written(deployment: str) -> None:
    for status, reason in itertools.product(JOB_STATUSES, REASONS):
        seen = see(rayjob(jobDeploymentStatus=deployment, jobStatus=status, reason=reason))
        assert (seen.state, is_whole(seen)) == ("waiting", True), (status, reason)


@pytest.mark.parametrize("deployment", ["Suspending", "Suspended"])
def test_a_suspended_rayjob_is_queued(deployment: str) -> None:
    for status, reason in itertools.product(JOB_STATUSES, REASONS):
        seen = see(rayjob(jobDeploymentStatus=deployment, jobStatus=status, reason=reason))
        assert (seen.state, is_whole(seen)) == ("queued", True), (status, reason)


def test_running_is_running_even_when_the_job_status_is_terminal_already() -> None:
    for status, reason in itertools.product(JOB_STATUSES, REASONS):
        seen = see(rayjob(jobDeploymentStatus="Running", jobStatus=status, reason=reason))
        assert seen.state == ("submitted" if status in ("", "PENDING") else "running"), (status, reason)
        assert is_whole(seen)


def test_complete_is_success_only_if_the_job_succeeded() -> None:
    for status, reason in itertools.product(JOB_STATUSES, REASONS):
        seen = see(rayjob(jobDeploymentStatus="Complete", jobStatus=status, reason=reason))
        fallback = BY_REASON.get(reason, "Error")
        assert seen.outcome == {"SUCCEEDED": "Succeeded", "STOPPED": "Stopped"}.get(status, fallback), (status, reason)
        assert is_whole(seen)


def test_failed_is_read_by_its_reason_and_not_by_the_job_status() -> None:
    for status, reason in itertools.product(JOB_STATUSES, REASONS):
        seen = see(rayjob(jobDeploymentStatus="Failed", jobStatus=status, reason=reason))
        assert seen.outcome == BY_REASON.get(reason, "Error"), (status, reason)
        assert is_whole(seen)


def test_a_refused_rayjob_is_the_users_error() -> None:
    for status, reason in itertools.product(JOB_STATUSES, REASONS):
        seen = see(rayjob(jobDeploymentStatus="ValidationFailed", jobStatus=status, reason=reason))
        assert (seen.state, seen.outcome, seen.reason) == ("ended", "UserError", "ValidationFailed")


CODES = [
    (0, "Succeeded"), (1, "Error"), (2, "Error"), (9, "Error"), (10, "UserError"), (11, "UserError"), (14, "UserError"),
    (20, "Infrastructure"), (21, "Infrastructure"), (22, "Infrastructure"), (23, "OutOfMemory"), (24, "Preemption"),
    (130, "Error"), (255, "Error"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "outcome"), CODES)
def test_the_exit_code_decides_wherever_it_is_read(code: int, outcome: str) -> None:
    line = f'step 3\ncamel-ray-result: {{"code": {code}, "message": "so it was"}}\n'
    posted = Result(attempt=2, code=code, message="so it was")
    words = ("PodFailurePolicy", f"Container stage for pod ns/p failed with exit code {code} matching FailJob rule")
    ended = {"Failed": words} if code else {"Complete": ("", "")}
    state = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed"}
    ways = {
        "log": see(rayjob(**state, message=line)),
        "posted": see(rayjob(**state), posted),
        "posted, head lost": see(rayjob(**{**state, "reason": "SubmissionFailed"}), posted),
        "job, posted": see(job(**ended), posted),
        "job, pod": see(job(pod("Failed", code=code), **ended)),
        "job, termination message": see(job(pod("Failed", code=1, message=line), Failed=words)),
        "job, condition": see(job(**ended)),
    }
    if code:
        ways["ray's words"] = see(
            rayjob(**state, message=f"Job entrypoint command failed with exit code {code}, logs: x")
        )
    assert {way: seen.outcome for way, seen in ways.items()} == dict.fromkeys(ways, outcome)
    assert all("so it was" in ways[way].message for way in ("log", "posted", "job, posted", "job, termination message"))


def test_a_result_of_another_attempt_says_nothing() -> None:
    old = Result(attempt=1, code=12, message="old")
    assert see(rayjob(jobDeploymentStatus="Failed", reason="AppFailed"), old).outcome == "Error"
    assert see(rayjob(jobDeploymentStatus="Complete", jobStatus="SUCCEEDED"), old).result is None


def test_exit_25_is_a_stop_if_it_was_asked_for_and_else_an_interruption_by_somebody_else() -> None:
    told = Result(attempt=2, code=25, message="saved at step 7")
    failed = rayjob(jobDeploymentStatus="Failed", reason="AppFailed")
    assert see(failed, told, stop="suspend").outcome == "Stopped"
    assert (see(failed, told).outcome, see(failed, told).reason) == ("Preemption", "StoppedFromOutside")
    drained = f"{stamp(NOW)} Preemption pod x was taken away (EvictionByEvictionAPI): "
    assert see(failed, told, evidence=[drained]).outcome == "Preemption"
    gone = ("PodFailurePolicy", "Pod ns/p has condition DisruptionTarget matching FailJob rule at index 0")
    assert see(job(Failed=gone), told).outcome == "Preemption"


@pytest.mark.parametrize("code", [137, -9])
def test_a_killed_process_is_out_of_memory_where_nothing_else_kills(code: int) -> None:
    state = rayjob(jobDeploymentStatus="Failed", reason="AppFailed", message=f"failed with exit code {code}: Killed")
    assert see(state).outcome == "OutOfMemory"


def test_last_words_of_a_deleted_namesakes_pods_are_not_taken_for_this_attempts() -> None:
    line = 'camel-ray-result: {"code": 0}'
    old = {**pod("Succeeded", code=0, message=line), "gone": True}
    old["metadata"] = {"name": "pod-0", "ownerReferences": [{"uid": "another"}]}
    assert see(job(old, Failed=("DeadlineExceeded", ""))).outcome == "Error"
    assert see(job(old, Failed=("BackoffLimitExceeded", ""))).outcome == "Infrastructure"


PODS = {
    "none": (),
    "pending": (pod("Pending"),),
    "running": (pod("Running"),),
    "succeeded": (pod("Succeeded", code=0),),
    "failed": (pod("Failed", code=22),),
    "no code": (pod("Failed"),),
    "gone": ({**pod("Running"), "gone": True},),
}
CONDITIONS: dict[str, dict[str, tuple[str, str]]] = {
    "none": {},
    "suspended": {"Suspended": ("JobSuspended", "")},
    "failing": {"FailureTarget": ("PodFailurePolicy", "")},
    "succeeding": {"SuccessCriteriaMet": ("", "")},
    "complete": {"FailureTarget": ("", ""), "Complete": ("CompletionsReached", "")},
    "backoff": {"Failed": ("BackoffLimitExceeded", "Job has reached the specified backoff limit")},
    "deadline": {"Failed": ("DeadlineExceeded", "Job was active longer than specified deadline")},
    "disrupted": {"Failed": ("PodFailurePolicy", "Pod ns/p has condition DisruptionTarget matching FailJob rule")},
}


def test_every_job_with_every_pod_has_one_reading() -> None:
    read = {}
    for (condition, conditions), (name, pods) in itertools.product(CONDITIONS.items(), PODS.items()):
        seen = see(job(*pods, **conditions))
        assert is_whole(seen), (condition, name)
        read[condition, name] = seen.outcome or seen.state
    plain = ("pending", "succeeded", "failed", "no code", "gone", "none")
    expected = {
        **{("none", name): "waiting" for name in plain},
        **{("none", name): "running" for name in ("succeeded", "failed", "no code")},  # the Job will say so in a moment
        **{("failing", name): "running" for name in PODS},
        **{("succeeding", name): "running" for name in PODS},
        ("none", "running"): "running",
        **{("suspended", name): "queued" for name in PODS},
        **{("complete", name): "Succeeded" for name in PODS},
        **{("deadline", name): "Error" for name in PODS},
        **{("disrupted", name): "Preemption" for name in PODS},
        **{("backoff", name): "Infrastructure" for name in PODS},
        ("backoff", "succeeded"): "Succeeded",
    }
    assert read == expected


def test_a_job_that_waits_in_a_queue_is_queued_before_its_first_condition() -> None:
    assert see(job(suspend=True)).state == "queued"


def test_the_queues_own_words_are_shown() -> None:
    condition = {"type": "QuotaReserved", "status": "False", "message": "insufficient unused quota for cpu"}
    view = rayjob(jobDeploymentStatus="Suspended")
    queued = AttemptView("sft", 2, view.object, workload={"status": {"conditions": [condition]}})
    assert see(queued).message == "insufficient unused quota for cpu"


def test_a_queue_without_kueue_is_named_and_a_job_that_somebody_suspended_is_not_taken_for_one() -> None:
    view = rayjob(jobDeploymentStatus="Suspended")
    queued = {**(view.object or {}), "metadata": {"name": "p-sft-2", "labels": {QUEUE: "gpus"}}}
    says = "waits for queue 'gpus', but this cluster has no Kueue (Workloads are not served): install Kueue, or take"
    assert says in see(AttemptView("sft", 2, queued, kueue=False)).message
    assert see(AttemptView("sft", 2, queued)).message == "is suspended, and waits to be admitted"
    assert see(AttemptView("sft", 2, view.object, kueue=False)).message == "is suspended, and waits to be admitted"


def test_what_a_waiting_attempt_waits_for_is_said_in_the_words_of_its_pod() -> None:
    held = {"name": "ray-head", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image x:1"}}}
    full = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
    for state in ({"jobDeploymentStatus": "Initializing"}, {"jobDeploymentStatus": "Running", "jobStatus": ""}):
        pulled = see(rayjob(pod("Pending", containerStatuses=[held]), **state))
        assert pulled.message == "pod pod-1: ImagePullBackOff: no such image x:1"
        assert "0/3 nodes are available" in see(rayjob(pod("Pending", conditions=[full]), **state)).message
    assert "0/3 nodes" in see(job(pod("Pending", conditions=[full]))).message


def test_evidence_of_pods_explains_a_lost_head_even_after_the_pod_is_gone() -> None:
    oom = pod("Running", containerStatuses=[{"name": "ray-head", "lastState": {"terminated": {"reason": "OOMKilled"}}}])
    away = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": "for a bigger one",
    }
    lost = {"jobDeploymentStatus": "Failed", "jobStatus": "RUNNING", "reason": "SubmissionFailed"}
    for bad, outcome in ((oom, "OutOfMemory"), (pod("Running", conditions=[away]), "Preemption")):
        known = new_evidence(rayjob(bad), [], NOW)
        assert new_evidence(rayjob(bad), known, NOW + timedelta(seconds=30)) == known  # said once
        assert see(rayjob(**lost), evidence=known).outcome == outcome
        later = observe(rayjob(**lost), current(evidence=known), None, NOW + timedelta(hours=1))
        assert later.outcome == "Infrastructure"  # an hour later it is not the cause any more


def test_evidence_of_many_pods_does_not_take_turns() -> None:
    def gone(number: int, seconds: int, reason: str = "EvictionByEvictionAPI") -> dict[str, Any]:
        away = {"type": "DisruptionTarget", "status": "True", "reason": reason}
        found = pod("Failed", conditions=[away])
        found["metadata"] |= {"name": f"pod-{number}", "deletionTimestamp": stamp(NOW + timedelta(seconds=seconds))}
        return found

    pods = [gone(number, 30) for number in range(12)]
    known = new_evidence(rayjob(*pods), [], NOW)
    assert len(known) == 8
    for seconds in (3, 60, 3000):
        assert new_evidence(rayjob(*pods), known, NOW + timedelta(seconds=seconds)) == known
    oom = pod("Running", containerStatuses=[{"name": "ray-head", "lastState": {"terminated": {"reason": "OOMKilled"}}}])
    more = new_evidence(rayjob(*pods, oom), known, NOW + timedelta(seconds=60))
    assert (len(more), " OutOfMemory " in more[-1]) == (8, True)
    assert new_evidence(rayjob(*pods, oom), more, NOW + timedelta(seconds=90)) == more
    late = new_evidence(rayjob(*pods, gone(12, 3600)), more, NOW + timedelta(hours=1))
    assert (len(late), "pod-12" in late[-1]) == (8, True)


def test_a_job_that_a_queue_took_back_is_judged_by_the_pod_it_has_now() -> None:
    told = json.dumps({"code": 25, "message": "stopped"})
    before = {**pod("Failed", code=25, message=f"camel-ray-result: {told}"), "gone": True}
    now = pod("Failed", code=137, why="OOMKilled")
    now["metadata"] = {**now["metadata"], "name": "pod-2"}
    words = ("PodFailurePolicy", "Container stage for pod ns/pod-2 failed with exit code 137 matching FailJob rule")
    evidence = new_evidence(job(before, now, Failed=words), [], NOW)
    assert see(job(before, now, Failed=words), evidence=evidence).outcome == "OutOfMemory"
    assert see(job(before, Failed=words)).reason == "StoppedFromOutside"  # where it is all there is


def test_warnings_about_a_namesake_that_is_gone_are_not_repeated() -> None:
    def warning(uid: str, kind: str = "Job") -> dict[str, Any]:
        about = {"kind": kind, "name": "p-sft-2", "uid": uid}
        return {"reason": "FailedCreate", "message": f"quota of {uid}", "involvedObject": about}

    mine = AttemptView("sft", 2, job().object, events=(warning("u"), warning("old")))
    assert see(mine).message == "Job p-sft-2: FailedCreate: quota of u"
    there = AttemptView("sft", 2, job().object, pods=(pod("Pending"),), events=(warning("u"),))
    assert see(there).message == "waits for its pod to start"
    ray = {"kind": "RayJob", "metadata": {"name": "p-sft-2", "uid": "u"}, "status": {"jobDeploymentStatus": "Running"}}
    submitter = AttemptView("sft", 2, ray, events=(warning("of the submitter's Job"), warning("old", "RayJob")))
    assert see(submitter).message == "Job p-sft-2: FailedCreate: quota of of the submitter's Job"


def test_evidence_never_overrules_a_clear_answer() -> None:
    oom = [f"{stamp(NOW)} OutOfMemory container ray-worker of pod x exceeded its memory limit"]
    failed = rayjob(jobDeploymentStatus="Failed", reason="AppFailed")
    assert see(failed, Result(attempt=2, code=12), evidence=oom).outcome == "UserError"
    assert see(rayjob(jobDeploymentStatus="Complete", jobStatus="SUCCEEDED"), evidence=oom).outcome == "Succeeded"


def test_an_object_that_is_not_there_is_absent() -> None:
    assert see(AttemptView("sft", 2)).state == "absent"


@pytest.mark.parametrize("status", [None, {}, {"jobStatus": "FAILED"}])
def test_a_rayjob_without_a_state_waits_for_kuberay(status: Any) -> None:
    view = AttemptView("sft", 2, {"kind": "RayJob", "metadata": {}, "status": status})
    assert "does its operator run?" in see(view).message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no result",
        "camel-ray-result:",
        "camel-ray-result: {",
        "camel-ray-result: []",
        'camel-ray-result: {"code": "x"}',
        f'camel-ray-result: {{"code": 1{"0" * 300}}}',
        'camel-ray-result: {"code": 0, "metrics": {"loss": NaN}}',
        'camel-ray-result: {"code": 0, "metrics": ' + "[" * 20_000,
    ],
)
def test_a_log_without_a_whole_result_holds_none(text: str) -> None:
    assert result_in(text, 2) is None


def test_a_result_with_half_a_character_can_be_written_to_the_status() -> None:
    found = result_in('camel-ray-result: {"code": 12, "message": "no file \\ud800.jsonl"}', 2)
    assert found is not None and found.message.startswith("no file")
    assert found.message.encode()


@pytest.mark.parametrize("posted", [True, False])
def test_a_stage_that_stops_cleanly_at_its_deadline_has_used_its_time(posted: bool) -> None:
    stopped = Result(attempt=2, code=25, message="stopped on request after step 7")
    line = 'camel-ray-result: {"code": 25, "message": "stopped on request after step 7"}'
    ended = pod("Failed", code=25, message=line)
    for view in (
        job(ended, Failed=("DeadlineExceeded", "Job was active longer than specified deadline")),
        rayjob(jobDeploymentStatus="Failed", reason="DeadlineExceeded", message=line),
    ):
        seen = see(view, stopped if posted else None)
        assert (seen.outcome, seen.reason) == ("Error", "DeadlineExceeded")


def test_the_last_result_of_a_log_counts_and_is_cleaned() -> None:
    first, last = (
        json.dumps({"code": 1, "message": "no"}),
        json.dumps({"code": 12, "message": "a\n\x1b[31mb" + "c" * 999}),
    )
    found = result_in(f"camel-ray-result: {first}\nmore\ncamel-ray-result: {last}\n", 2)
    assert found is not None
    assert (found.code, found.attempt, found.message[:8], len(found.message)) == (12, 2, "a [31mbc", WORDS)
