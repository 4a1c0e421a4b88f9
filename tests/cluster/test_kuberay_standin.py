"""The stand-in for KubeRay does what KubeRay 1.7.0 was seen to do, beside a real scheduler and real Jobs.

The tests of the operator rest on it, so it is tested without the operator.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from kuberay_standin.api import seconds_of
from kuberay_standin.launch import KubeRay
from kuberay_standin.trial import SUCCEEDED, TINY, Cluster, Object, batch_job, pod_template, rayjob
from rig.control_plane import ControlPlane, RequestError


@pytest.fixture(scope="module")
def kuberay(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeRay]:
    with KubeRay(control_plane, tmp_path_factory.mktemp("kuberay")) as process:
        yield process
        assert "Traceback" not in process.log()


@pytest.fixture
def cluster(control_plane: ControlPlane, namespace: str, kuberay: KubeRay) -> Cluster:
    return Cluster(control_plane, namespace, kuberay)


LOST = ("Failed", "RUNNING", "SubmissionFailed")
BACKOFF = (
    "Job submission has failed. Reason: BackoffLimitExceeded. Message: Job has reached the specified backoff limit"
)


# The way of a job -----------------------------------------------------------------------------------------------------


def test_job_succeeds_and_its_cluster_goes(cluster: Cluster) -> None:
    job = rayjob("fine", workers=2)
    job["metadata"]["labels"] = {"team": "a"}
    cluster.create(job)
    cluster.wait(lambda: cluster.all("rayclusters"), "the RayCluster")
    (ray_cluster,) = cluster.all("rayclusters")
    assert ray_cluster["metadata"]["labels"] == {
        "team": "a",
        "ray.io/originated-from-cr-name": "fine",
        "ray.io/originated-from-crd": "RayJob",
    }
    cluster.wait(
        lambda: len(cluster.all("pods", f"ray.io/cluster={ray_cluster['metadata']['name']}")) == 3, "three pods"
    )
    assert [pod["metadata"]["labels"]["ray.io/group"] for pod in cluster.pods("worker")] == ["w", "w"]
    assert "team" not in cluster.pods("head")[0]["metadata"]["labels"]
    status = cluster.wait_state("fine", SUCCEEDED)
    assert (status["succeeded"], status["failed"], status["message"]) == (1, 0, "Job finished successfully.")
    assert status["rayClusterStatus"]["state"] == "ready"
    assert status["dashboardURL"] == f"{status['rayClusterName']}-head-svc.{cluster.namespace}.svc.cluster.local:8265"
    cluster.wait(lambda: not cluster.all("pods", "ray.io/cluster"), "the Ray pods to go")
    (submitter,) = cluster.all("jobs")
    assert submitter["metadata"]["name"] == "fine" and submitter["status"]["succeeded"] == 1
    assert cluster.all("pods", "ray.io/originated-from-cr-name=fine")[0]["status"]["phase"] == "Succeeded"


def test_failed_job_is_first_running_and_failed(cluster: Cluster) -> None:
    cluster.rule("user-error", exit_code=11, log="ValueError: no column 'text'\n", tail_seconds=1.0)
    cluster.create(rayjob("user-error"))
    cluster.wait_state("user-error", ("Running", "FAILED", ""))
    status = cluster.wait_state("user-error", ("Failed", "FAILED", "AppFailed"))
    assert status["message"] == (
        "Job entrypoint command failed with exit code 11, last available logs (truncated to 20,000 chars):\n"
        "ValueError: no column 'text'\n"
    )
    (submitter,) = cluster.all("jobs")
    assert submitter["status"]["succeeded"] == 1, "the submitter's Job says nothing about the entry point"


def test_message_holds_the_last_20000_characters_of_the_log(cluster: Cluster) -> None:
    cluster.rule("long", exit_code=1, log="x" * 30_000 + "END")
    cluster.create(rayjob("long", workers=0))
    message = cluster.wait_state("long", ("Failed", "FAILED", "AppFailed"))["message"]
    log = message.partition(":\n")[2]
    assert len(log) == 20_000 and log.endswith("xEND")


def test_stopped_job_is_complete(cluster: Cluster) -> None:
    cluster.rule("stopped", stopped=True)
    cluster.create(rayjob("stopped", workers=0))
    assert cluster.wait_state("stopped", ("Complete", "STOPPED", ""))["succeeded"] == 1


def test_backoff_limit_makes_another_cluster(cluster: Cluster) -> None:
    cluster.rule("again", exit_code=1, seconds=0.3)
    cluster.create(rayjob("again", workers=0, backoffLimit=1))
    first = cluster.wait_running("again")["rayClusterName"]
    cluster.wait(lambda: cluster.job("again")["status"].get("failed") == 2, "two failures")
    assert cluster.job("again")["status"]["rayClusterName"] != first
    cluster.wait_state("again", ("Failed", "FAILED", "AppFailed"))


def test_cluster_outlives_its_job_for_the_ttl(cluster: Cluster) -> None:
    cluster.create(rayjob("ttl", workers=0, ttlSecondsAfterFinished=2))
    name = cluster.wait_state("ttl", SUCCEEDED)["rayClusterName"]
    assert [c["metadata"]["name"] for c in cluster.all("rayclusters")] == [name]
    cluster.wait(lambda: not cluster.all("rayclusters"), "the RayCluster to go")
    assert cluster.state("ttl") == SUCCEEDED


# Creation: the finalizer takes the spec over --------------------------------------------------------------------------


def test_second_apply_conflicts_with_kuberay(cluster: Cluster) -> None:
    text = yaml.safe_dump(rayjob("twice", suspend=False))
    apply = ("apply", "--server-side", "--field-manager=me", "-f", "-")
    cluster.kubectl(*apply, input=text)
    cluster.wait_state("twice", SUCCEEDED)
    job = cluster.job("twice")
    assert job["metadata"]["finalizers"] == ["ray.io/rayjob-finalizer"] and job["metadata"]["generation"] == 2
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["scaleStrategy"] == {}
    assert "suspend" not in job["spec"]
    with pytest.raises(Exception, match=r'conflict with "kuberay-operator".*\n?.*workerGroupSpecs'):
        cluster.kubectl(*apply, input=text)


def test_spec_with_the_zero_values_is_not_taken_over(cluster: Cluster) -> None:
    job = rayjob("zeros")
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0] |= {"numOfHosts": 1, "priority": 0, "scaleStrategy": {}}
    job["metadata"]["finalizers"] = ["ray.io/rayjob-finalizer"]
    apply = ("apply", "--server-side", "--field-manager=me", "-f", "-")
    cluster.kubectl(*apply, input=yaml.safe_dump(job))
    cluster.wait_state("zeros", SUCCEEDED)
    before = cluster.job("zeros")["metadata"]
    cluster.kubectl(*apply, input=yaml.safe_dump(job))
    after = cluster.job("zeros")["metadata"]
    assert (after["generation"], after["resourceVersion"]) == (1, before["resourceVersion"])


@pytest.mark.parametrize("name", ["a" * 48, "1job"])
def test_name_that_kuberay_cannot_use(cluster: Cluster, name: str) -> None:
    cluster.create(rayjob(name))
    cluster.wait_state(name, ("ValidationFailed", "", "ValidationFailed"))
    assert cluster.wait(lambda: cluster.events("InvalidRayJobMetadata"), "the event")[0]["type"] == "Warning"
    assert cluster.all("rayclusters") == []


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
    cluster.rule("http", seconds=4)
    cluster.create(rayjob("http", submissionMode="HTTPMode", submitterConfig=None))
    first = cluster.wait_running("http")
    started = seconds_of(first["rayJobInfo"]["startTime"])
    cluster.wait(lambda: time.time() > started + 1, "another second, the API's smallest")
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
    cluster.rule("retried", seconds=3)
    cluster.create(rayjob("retried", submitterConfig={"backoffLimit": 2}))
    first = cluster.wait_running("retried")
    cluster.delete_pod(cluster.pods("head")[0])
    status = cluster.wait_state("retried", SUCCEEDED, seconds=60)
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
    cluster.create(rayjob("image", preRunningDeadlineSeconds=4))
    cluster.wait_state("image", ("Initializing", "", ""))
    cluster.wait(lambda: _head_condition(cluster).get("reason") == "ImagePullBackOff", "the condition")
    assert _head_condition(cluster)["status"] == "False"
    assert cluster.pods("head")[0]["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ImagePullBackOff"
    copied = cluster.job("image")["status"]["rayClusterStatus"]["conditions"]
    assert "HeadPodReady" in [condition["type"] for condition in copied]
    cluster.wait_state("image", ("Failed", "", "PreRunningDeadlineExceeded"))


def test_head_that_fits_no_node(cluster: Cluster) -> None:
    huge = {"resources": {"requests": {"cpu": "100"}}}
    cluster.create(rayjob("huge", head=huge, activeDeadlineSeconds=4))
    cluster.wait(lambda: cluster.events("FailedScheduling"), "the scheduler's word")
    (scheduled,) = [c for c in cluster.pods("head")[0]["status"]["conditions"] if c["type"] == "PodScheduled"]
    assert (scheduled["status"], scheduled["reason"]) == ("False", "Unschedulable")
    assert _head_condition(cluster)["reason"] == "Unknown"
    cluster.wait_state("huge", ("Failed", "", "DeadlineExceeded"))


@pytest.mark.parametrize("behaviour", [{"submitter": "unschedulable"}, {"submits": False}, {"submitter": "image-pull"}])
def test_submitter_that_never_submits(cluster: Cluster, behaviour: Object) -> None:
    cluster.rule("mute", **behaviour)
    cluster.create(rayjob("mute", preRunningDeadlineSeconds=4, activeDeadlineSeconds=8))
    cluster.wait_state("mute", ("Running", "", ""))
    cluster.wait_state("mute", ("Failed", "", "DeadlineExceeded"))


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
    (ray_cluster,) = cluster.all("rayclusters")
    failure = {c["type"]: c for c in ray_cluster["status"]["conditions"]}["ReplicaFailure"]
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
    cluster.rule("oom", seconds=3, exit_code=23, events=[{"do": "oom", "pod": "worker"}])
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
    cluster.rule("disrupted", seconds=5, shutdown_seconds=1, events=[{"do": event, "pod": "worker"}])
    job = rayjob("disrupted")
    worker = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    worker["terminationGracePeriodSeconds"] = 60
    cluster.create(job)
    old = _seen_worker(cluster, lambda pod: _disruption(pod) == reason)
    assert "deletionTimestamp" in old["metadata"] or event == "node-lost"
    new = _seen_worker(cluster, lambda pod: pod["metadata"]["uid"] != old["metadata"]["uid"])
    assert new["metadata"]["name"] != old["metadata"]["name"]
    cluster.wait_state("disrupted", SUCCEEDED)


def test_evicted_worker_stays_as_failed_until_it_is_replaced(cluster: Cluster) -> None:
    cluster.rule("evicted", seconds=3, events=[{"do": "evict", "pod": "worker"}])
    cluster.create(rayjob("evicted"))
    cluster.wait(lambda: cluster.events("Evicted"), "the kubelet's word")
    message = cluster.wait(lambda: cluster.events("DeletedWorkerPod"), "the replacement")[0]["message"]
    assert message.endswith("Pod status: Failed")
    cluster.wait_state("evicted", SUCCEEDED)


# Suspension -----------------------------------------------------------------------------------------------------------


def test_job_created_suspended_makes_nothing_until_it_is_resumed(cluster: Cluster) -> None:
    cluster.create(rayjob("waits", suspend=True))
    status = cluster.wait_state("waits", ("Suspended", "", ""))
    assert status["startTime"] and "rayClusterName" not in status
    assert cluster.all("rayclusters") == cluster.all("jobs") == []
    cluster.patch("waits", {"spec": {"suspend": False}})
    cluster.wait_state("waits", SUCCEEDED)


def test_suspended_while_it_runs_and_resumed(cluster: Cluster) -> None:
    cluster.rule("pause", seconds=2)
    cluster.create(rayjob("pause"))
    before = cluster.wait_running("pause")
    cluster.patch("pause", {"spec": {"suspend": True}})
    status = cluster.wait_state("pause", ("Suspended", "", ""))
    emptied = {"jobId", "rayClusterName", "dashboardURL", "message", "reason", "rayJobInfo"}
    assert not emptied & set(status)
    assert status["startTime"] == before["startTime"]
    assert cluster.all("jobs") == []
    cluster.patch("pause", {"spec": {"suspend": False}})
    after = cluster.wait_state("pause", SUCCEEDED)
    assert after["jobId"] != before["jobId"] and after["rayClusterName"] != before["rayClusterName"]
    assert (after["failed"], after["succeeded"]) == (0, 1)


def test_pods_are_still_terminating_when_the_job_is_suspended(cluster: Cluster) -> None:
    cluster.rule("slow", seconds=60)
    job = rayjob("slow")
    for group in (job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]):
        group["template"]["spec"]["terminationGracePeriodSeconds"] = 60
    cluster.create(job)
    cluster.wait_running("slow")
    cluster.patch("slow", {"spec": {"suspend": True}})
    cluster.wait_state("slow", ("Suspended", "", ""))
    seen = cluster.all("pods", "ray.io/cluster")
    assert all("deletionTimestamp" in pod["metadata"] or pod["status"]["phase"] == "Running" for pod in seen)
    cluster.wait(lambda: not cluster.all("pods", "ray.io/cluster"), "the pods to go")


def test_suspension_without_shutdown_is_a_sticky_validation_failure(cluster: Cluster) -> None:
    cluster.rule("stuck", seconds=60)
    cluster.create(rayjob("stuck", shutdownAfterJobFinishes=False))
    cluster.wait_running("stuck")
    cluster.patch("stuck", {"spec": {"suspend": True}})
    status = cluster.wait_state("stuck", ("ValidationFailed", "RUNNING", "ValidationFailed"))
    assert "shutdownAfterJobFinishes set to false is not allowed to be suspended" in status["message"]
    cluster.patch("stuck", {"spec": {"suspend": False}, "metadata": {"labels": {"seen": "yes"}}})
    assert len(cluster.pods("head")) == 1, "the pods run on"
    assert cluster.state("stuck") == ("ValidationFailed", "RUNNING", "ValidationFailed")


def test_state_that_is_never_left(cluster: Cluster) -> None:
    cluster.rule("hangs", seconds=60, stuck="Suspending")
    cluster.create(rayjob("hangs", workers=0))
    name = cluster.wait_running("hangs")["rayClusterName"]
    cluster.patch("hangs", {"spec": {"suspend": True}})
    cluster.wait_state("hangs", ("Suspending", "RUNNING", ""))
    assert [c["metadata"]["name"] for c in cluster.all("rayclusters")] == [name]


# Deletion -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["Initializing", "Running", "Complete"])
def test_deleted_job_leaves_nothing(cluster: Cluster, state: str) -> None:
    if state == "Initializing":
        cluster.rule("gone", head="image-pull")
    elif state == "Running":
        cluster.rule("gone", seconds=60)
    cluster.create(rayjob("gone"))
    cluster.wait(lambda: cluster.state("gone")[0] == state, state)
    cluster.kubectl("delete", "rayjob", "gone")
    assert cluster.all("rayjobs") == []
    left = ("rayclusters", "jobs", "pods", "services")
    cluster.wait(lambda: not any(cluster.all(resource) for resource in left), "everything to go")


def test_slow_finalizer_holds_the_job(cluster: Cluster) -> None:
    cluster.rule("held", seconds=60, finalizer_seconds=1.5)
    cluster.create(rayjob("held", workers=0))
    cluster.wait_running("held")
    cluster.kubectl("delete", "rayjob", "held", "--wait=false")
    assert "deletionTimestamp" in cluster.job("held")["metadata"]
    cluster.wait(lambda: not cluster.all("rayjobs"), "the RayJob to go")


# Batch Jobs without Ray -----------------------------------------------------------------------------------------------


def test_played_batch_job_ends_as_scripted(cluster: Cluster) -> None:
    cluster.rule("plain", seconds=0.2, exit_code=12, log='{"code": 12}')
    cluster.kubectl("apply", "-f", "-", input=json.dumps(batch_job("plain")))
    cluster.wait(lambda: cluster.get("job", "plain")["status"].get("failed") == 1, "the Job to fail")
    (pod,) = cluster.all("pods")
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["message"]) == (12, '{"code": 12}')


def test_pod_of_a_batch_job_is_evicted(cluster: Cluster) -> None:
    cluster.rule("pushed", seconds=60, events=[{"do": "evict", "pod": "pod", "after": 0.1}])
    cluster.kubectl("apply", "-f", "-", input=json.dumps(batch_job("pushed")))
    cluster.wait(lambda: cluster.get("job", "pushed")["status"].get("failed") == 1, "the Job to fail")
    (pod,) = cluster.all("pods")
    assert pod["status"]["reason"] == "Evicted" and _disruption(pod) == "TerminationByKubelet"


def test_job_of_another_manager_is_left_alone(cluster: Cluster) -> None:
    job = rayjob("foreign", managedBy="kueue.x-k8s.io/multikueue")
    cluster.create(job)
    cluster.create(rayjob("own", workers=0))
    cluster.wait_state("own", SUCCEEDED)
    assert "status" not in cluster.job("foreign")
    with pytest.raises(RequestError):
        cluster.create(rayjob("bad", preRunningDeadlineSeconds=0))
