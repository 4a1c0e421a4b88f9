"""Pods of the stand-in that are lost, refused or never start, beside a real scheduler, quotas and Pod Security.

Statuses, reasons and messages are those of KubeRay 1.7.0; the tests of the operator rest on them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from kuberay_standin.api import seconds_of
from kuberay_standin.trial import SUCCEEDED, TINY, Cluster, Object, batch_job, pod_template, rayjob

LOST = ("Failed", "RUNNING", "SubmissionFailed")
BACKOFF = (
    "Job submission has failed. Reason: BackoffLimitExceeded. Message: Job has reached the specified backoff limit"
)


# Head or submitter lost while the entry point runs --------------------------------------------------------------------


def test_head_lost_fails_the_job_after_one_run(cluster: Cluster) -> None:
    cluster.rule("lost", seconds=60)
    cluster.create(rayjob("lost"))
    started = cluster.wait_running("lost")["rayJobInfo"]["startTime"]
    cluster.delete_pod(cluster.pods("head")[0])
    status = cluster.wait_state("lost", LOST)
    assert status["message"] == BACKOFF
    assert status["rayJobInfo"]["startTime"] == started
    cluster.wait(lambda: not cluster.all("pods", "ray.io/cluster"), "the evidence to go")


def test_head_that_restarts_in_place_has_forgotten_the_job(cluster: Cluster) -> None:
    cluster.rule("gcs", seconds=60, events=[{"do": "kill", "pod": "head", "after": 0.5}])
    cluster.create(rayjob("gcs"))
    cluster.wait_state("gcs", LOST)


def test_submitter_lost_fails_the_job(cluster: Cluster) -> None:
    cluster.rule("submitter", seconds=60)
    cluster.create(rayjob("submitter"))
    cluster.wait_running("submitter")
    cluster.delete_pod(cluster.all("pods", "ray.io/originated-from-cr-name=submitter")[0])
    assert cluster.wait_state("submitter", LOST)["message"] == BACKOFF


def test_head_stays_away_if_asked(cluster: Cluster) -> None:
    cluster.rule("away", seconds=60)
    job = rayjob("away", ttlSecondsAfterFinished=3)
    job["metadata"]["annotations"] = {"ray.io/disable-provisioned-head-restart": "true"}
    cluster.create(job)
    cluster.wait_running("away")
    cluster.delete_pod(cluster.pods("head")[0])
    cluster.wait_state("away", LOST)
    assert cluster.pods("head") == []
    assert len(cluster.events("CreatedHeadPod")) == 1


def test_http_mode_runs_the_entry_point_again(cluster: Cluster) -> None:
    cluster.rule("http", seconds=60)
    cluster.create(rayjob("http", submissionMode="HTTPMode", submitterConfig=None))
    first = cluster.wait_running("http")
    started = seconds_of(first["rayJobInfo"]["startTime"])
    cluster.wait(lambda: time.time() > started + 1, "another second, the API's smallest")
    cluster.rule("http")  # the second run
    cluster.delete_pod(cluster.pods("head")[0])
    status = cluster.wait_state("http", SUCCEEDED)
    assert status["rayJobInfo"]["startTime"] > first["rayJobInfo"]["startTime"]
    assert (status["jobId"], status["rayClusterName"]) == (first["jobId"], first["rayClusterName"])
    assert cluster.all("jobs") == []


def test_http_mode_gives_an_unreachable_dashboard_up(cluster: Cluster) -> None:
    cluster.rule("silent", seconds=60, events=[{"do": "dashboard-lost", "after": 0.5}])
    cluster.create(rayjob("silent", submissionMode="HTTPMode"))
    cluster.wait_state("silent", ("Failed", "RUNNING", "JobStatusCheckTimeoutExceeded"))


def test_submitter_with_retries_runs_the_entry_point_again(cluster: Cluster) -> None:
    cluster.rule("retried", seconds=60)
    cluster.create(rayjob("retried", submitterConfig={"backoffLimit": 2}))
    first = cluster.wait_running("retried")
    cluster.rule("retried")  # the second run
    cluster.delete_pod(cluster.pods("head")[0])
    status = cluster.wait_state("retried", SUCCEEDED)
    assert status["rayClusterName"] == first["rayClusterName"]
    assert status["rayJobInfo"]["startTime"] > first["rayJobInfo"]["startTime"]


def test_submitter_that_is_killed_fails_the_job(cluster: Cluster) -> None:
    cluster.rule("early", seconds=60, events=[{"do": "kill", "pod": "submitter", "after": 0.5}])
    cluster.create(rayjob("early", workers=0))
    assert cluster.wait_state("early", LOST)["message"] == BACKOFF


# Pods that do not start -----------------------------------------------------------------------------------------------


def _head_condition(cluster: Cluster) -> Object:
    (ray_cluster,) = cluster.all("rayclusters")
    found = [c for c in ray_cluster.get("status", {}).get("conditions", ()) if c["type"] == "HeadPodReady"]
    return found[0] if found else {}


def test_image_that_cannot_be_pulled(cluster: Cluster) -> None:
    cluster.rule("image", head="image-pull")
    cluster.create(rayjob("image"))
    cluster.wait_state("image", ("Initializing", "", ""))
    cluster.wait(lambda: _head_condition(cluster).get("reason") == "ImagePullBackOff", "the condition")
    assert _head_condition(cluster)["status"] == "False"
    assert cluster.pods("head")[0]["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ImagePullBackOff"
    copied = cluster.job("image")["status"]["rayClusterStatus"]["conditions"]
    assert "HeadPodReady" in [condition["type"] for condition in copied]
    cluster.patch("image", {"spec": {"preRunningDeadlineSeconds": 1}})
    cluster.wait_state("image", ("Failed", "", "PreRunningDeadlineExceeded"))


def test_head_that_fits_no_node(cluster: Cluster) -> None:
    huge = {"resources": {"requests": {"cpu": "100"}}}
    cluster.create(rayjob("huge", head=huge))
    cluster.wait(lambda: cluster.events("FailedScheduling"), "the scheduler's word")

    def conditions() -> list[Any]:
        return [c for c in cluster.pods("head")[0]["status"].get("conditions", ()) if c["type"] == "PodScheduled"]

    (scheduled,) = cluster.wait(conditions, "the scheduler's condition")
    assert (scheduled["status"], scheduled["reason"]) == ("False", "Unschedulable")
    assert _head_condition(cluster)["reason"] == "Unknown"
    cluster.patch("huge", {"spec": {"activeDeadlineSeconds": 1}})
    cluster.wait_state("huge", ("Failed", "", "DeadlineExceeded"))


def test_submitter_that_never_submits(cluster: Cluster) -> None:
    cluster.rule("homeless", submitter="unschedulable")
    cluster.rule("mute", submits=False)
    cluster.rule("bare", submitter="image-pull")
    names = ("homeless", "mute", "bare")
    for name in names:
        cluster.create(rayjob(name))
    for name in names:
        begun = seconds_of(cluster.wait_state(name, ("Running", "", ""))["startTime"])
        soon = int(time.time() - begun) + 3
        # the first of them is over now, and does not count any more
        cluster.patch(name, {"spec": {"preRunningDeadlineSeconds": 1, "activeDeadlineSeconds": soon}})
    for name in names:
        cluster.wait_state(name, ("Failed", "", "DeadlineExceeded"))


def test_worker_that_fits_no_node(cluster: Cluster) -> None:
    cluster.rule("narrow", worker="unschedulable")
    cluster.create(rayjob("narrow"))
    cluster.wait(lambda: cluster.events("FailedScheduling"), "the scheduler's word")
    assert cluster.state("narrow") == ("Initializing", "", "")


def test_quota_refuses_the_head(cluster: Cluster) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "0"}}}
    cluster.kubectl("apply", "-f", "-", input=json.dumps(quota))
    cluster.create(rayjob("quota"))
    event = cluster.wait(lambda: cluster.events("FailedToCreateHeadPod"), "the event")[0]
    assert event["involvedObject"]["kind"] == "RayCluster" and "exceeded quota" in event["message"]

    def failures() -> list[Any]:
        (ray_cluster,) = cluster.all("rayclusters")
        conditions = ray_cluster.get("status", {}).get("conditions", ())
        return [condition for condition in conditions if condition["type"] == "ReplicaFailure"]

    (failure,) = cluster.wait(failures, "the condition")
    assert (failure["status"], failure["reason"]) == ("True", "FailedCreateHeadPod")
    assert cluster.state("quota") == ("Initializing", "", "")
    cluster.kubectl("delete", "resourcequota", "q")
    cluster.wait_state("quota", SUCCEEDED)


def _restricted(cluster: Cluster) -> None:
    cluster.kubectl("label", "namespace", cluster.namespace, "pod-security.kubernetes.io/enforce=restricted")


ALLOWED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def test_pod_security_refuses_the_head(cluster: Cluster) -> None:
    _restricted(cluster)
    cluster.create(rayjob("unsafe"))
    event = cluster.wait(lambda: cluster.events("FailedToCreateHeadPod"), "the event")[0]
    assert 'violates PodSecurity "restricted' in event["message"]
    assert cluster.state("unsafe") == ("Initializing", "", "")


def test_pod_security_refuses_the_default_submitter_only(cluster: Cluster) -> None:
    """The worker's init container copies the security context, so the Ray pods pass."""
    _restricted(cluster)
    job = rayjob("half-safe", head={"securityContext": ALLOWED})
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["securityContext"] = (
        ALLOWED
    )
    cluster.create(job)
    cluster.wait_state("half-safe", ("Running", "", ""))
    event = cluster.wait(lambda: cluster.events("FailedCreate"), "the event")[0]
    assert event["involvedObject"]["kind"] == "Job" and "violates PodSecurity" in event["message"]


def test_pod_security_refuses_the_autoscaler_by_default(cluster: Cluster) -> None:
    _restricted(cluster)
    job = rayjob("autoscaled", workers=0, head={"securityContext": ALLOWED})
    job["spec"]["rayClusterSpec"] |= {"enableInTreeAutoscaling": True, "autoscalerOptions": {"version": "v2"}}
    cluster.create(job)
    event = cluster.wait(lambda: cluster.events("FailedToCreateHeadPod"), "the event")[0]
    assert 'container "autoscaler" must set securityContext' in event["message"]


def test_full_submitter_template_passes_pod_security(cluster: Cluster) -> None:
    _restricted(cluster)
    template = pod_template("ray-job-submitter", {"image": "ray:1", "resources": TINY, "securityContext": ALLOWED})
    template["spec"]["restartPolicy"] = "Never"
    options = {"version": "v2", "securityContext": ALLOWED}
    job = rayjob("safe", workers=0, head={"securityContext": ALLOWED}, submitterPodTemplate=template)
    job["spec"]["rayClusterSpec"] |= {"enableInTreeAutoscaling": True, "autoscalerOptions": options}
    cluster.create(job)
    cluster.wait_state("safe", SUCCEEDED)


# What happens to pods while a job runs --------------------------------------------------------------------------------


def _seen_worker(cluster: Cluster, condition: Callable[[Object], Any]) -> Object:
    """The first worker pod, dead or alive, that fits."""
    fitting: list[Object] = []

    def look() -> bool:
        fitting.extend(pod for pod in cluster.pods("worker") if condition(pod))
        return bool(fitting)

    cluster.wait(look, "the worker's end")
    return fitting[0]


def _disruption(pod: Object) -> str:
    return next((c["reason"] for c in pod["status"].get("conditions", ()) if c["type"] == "DisruptionTarget"), "")


def test_worker_out_of_memory_restarts_in_place(cluster: Cluster) -> None:
    cluster.rule("oom", seconds=6, exit_code=23, events=[{"do": "oom", "pod": "worker"}])
    cluster.create(rayjob("oom"))
    pod = _seen_worker(cluster, lambda pod: pod["status"].get("containerStatuses", [{}])[0].get("lastState"))
    status = pod["status"]["containerStatuses"][0]
    assert (status["restartCount"], status["lastState"]["terminated"]["reason"]) == (1, "OOMKilled")
    assert status["lastState"]["terminated"]["exitCode"] == 137
    cluster.wait_state("oom", ("Failed", "FAILED", "AppFailed"))


@pytest.mark.parametrize(
    ("event", "reason"),
    [("preempt", "PreemptionByScheduler"), ("drain", "EvictionByEvictionAPI"), ("node-lost", "DeletionByTaintManager")],
)
def test_disrupted_worker_says_why_and_is_replaced(cluster: Cluster, event: str, reason: str) -> None:
    cluster.rule("disrupted", seconds=12, shutdown_seconds=4, events=[{"do": event, "pod": "worker"}])
    job = rayjob("disrupted")
    worker = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    worker["terminationGracePeriodSeconds"] = 300
    cluster.create(job)
    ends = lambda pod: event == "node-lost" or "deletionTimestamp" in pod["metadata"]  # noqa: E731
    old = _seen_worker(cluster, lambda pod: _disruption(pod) == reason and ends(pod))
    new = _seen_worker(cluster, lambda pod: pod["metadata"]["uid"] != old["metadata"]["uid"])
    assert new["metadata"]["name"] != old["metadata"]["name"]
    cluster.wait_state("disrupted", SUCCEEDED)


def test_evicted_worker_stays_as_failed_until_it_is_replaced(cluster: Cluster) -> None:
    cluster.rule("evicted", seconds=2, events=[{"do": "evict", "pod": "worker"}])
    cluster.create(rayjob("evicted"))
    cluster.wait(lambda: cluster.events("Evicted"), "the kubelet's word")
    message = cluster.wait(lambda: cluster.events("DeletedWorkerPod"), "the replacement")[0]["message"]
    assert message.endswith("Pod status: Failed")
    cluster.wait_state("evicted", SUCCEEDED)


def test_pod_of_a_batch_job_is_evicted(cluster: Cluster) -> None:
    cluster.rule("pushed", seconds=60, events=[{"do": "evict", "pod": "pod", "after": 0.1}])
    cluster.kubectl("apply", "-f", "-", input=json.dumps(batch_job("pushed")))
    cluster.wait(lambda: cluster.get("job", "pushed")["status"].get("failed") == 1, "the Job to fail")
    (pod,) = cluster.all("pods")
    assert pod["status"]["reason"] == "Evicted" and _disruption(pod) == "TerminationByKubelet"
