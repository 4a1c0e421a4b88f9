"""RayJobs of the stand-in run, are suspended and deleted as KubeRay 1.7.0 was seen to do it, beside real Jobs.

The tests of the operator rest on it, so it is tested without the operator.
"""

from __future__ import annotations

import json
import secrets

import pytest
import yaml

from kuberay_standin.launch import KubeRay
from kuberay_standin.trial import SUCCEEDED, Cluster, batch_job, rayjob
from rig.control_plane import ControlPlane, RequestError

# The way of a job -----------------------------------------------------------------------------------------------------


def test_job_succeeds_and_its_cluster_goes(cluster: Cluster) -> None:
    cluster.rule("fine", seconds=3)
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
    cluster.rule("user-error", exit_code=11, log="ValueError: no column 'text'\n", tail_seconds=5.0)
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
    cluster.rule("again", exit_code=1)
    cluster.create(rayjob("again", workers=0, backoffLimit=1))
    cluster.wait(lambda: cluster.job("again").get("status", {}).get("failed") == 2, "two failures")
    status = cluster.wait_state("again", ("Failed", "FAILED", "AppFailed"))
    made = {event["message"] for event in cluster.events("CreatedRayCluster")}
    assert len(made) == 2
    assert f"Created RayCluster {cluster.namespace}/{status['rayClusterName']}" in made


def test_cluster_outlives_its_job_for_the_ttl(cluster: Cluster) -> None:
    cluster.create(rayjob("ttl", workers=0, ttlSecondsAfterFinished=8))
    name = cluster.wait_state("ttl", SUCCEEDED)["rayClusterName"]
    assert [c["metadata"]["name"] for c in cluster.all("rayclusters")] == [name]
    cluster.wait(lambda: not cluster.all("rayclusters"), "the RayCluster to go")
    assert cluster.state("ttl") == SUCCEEDED


def test_job_of_another_manager_is_left_alone(cluster: Cluster) -> None:
    job = rayjob("foreign", managedBy="kueue.x-k8s.io/multikueue")
    cluster.create(job)
    cluster.create(rayjob("own", workers=0))
    cluster.wait_state("own", SUCCEEDED)
    assert "status" not in cluster.job("foreign")
    with pytest.raises(RequestError):
        cluster.create(rayjob("bad", preRunningDeadlineSeconds=0))


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


# Suspension -----------------------------------------------------------------------------------------------------------


def test_job_created_suspended_makes_nothing_until_it_is_resumed(cluster: Cluster) -> None:
    cluster.create(rayjob("waits", suspend=True))
    status = cluster.wait_state("waits", ("Suspended", "", ""))
    assert status["startTime"] and "rayClusterName" not in status
    assert cluster.all("rayclusters") == cluster.all("jobs") == []
    cluster.patch("waits", {"spec": {"suspend": False}})
    cluster.wait_state("waits", SUCCEEDED)


def test_suspended_while_it_runs_and_resumed(cluster: Cluster) -> None:
    cluster.rule("pause", seconds=60)
    cluster.create(rayjob("pause"))
    before = cluster.wait_running("pause")
    cluster.patch("pause", {"spec": {"suspend": True}})
    status = cluster.wait_state("pause", ("Suspended", "", ""))
    emptied = {"jobId", "rayClusterName", "dashboardURL", "message", "reason", "rayJobInfo"}
    assert not emptied & set(status)
    assert status["startTime"] == before["startTime"]
    assert cluster.all("jobs") == []
    cluster.rule("pause")  # the second run
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
    cluster.rule("held", seconds=60, finalizer_seconds=60)
    cluster.create(rayjob("held", workers=0))
    cluster.wait_running("held")
    cluster.kubectl("delete", "rayjob", "held", "--wait=false")
    assert "deletionTimestamp" in cluster.job("held")["metadata"]
    cluster.rule("held", seconds=60)
    cluster.wait(lambda: not cluster.all("rayjobs"), "the RayJob to go")


def test_jobs_of_a_namespace_that_goes_are_let_go_without_a_word(control_plane: ControlPlane, kuberay: KubeRay) -> None:
    gone = Cluster(control_plane, f"gone-{secrets.token_hex(4)}", kuberay)
    control_plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": gone.namespace}})
    control_plane.wait_service_account(gone.namespace)
    gone.rule("*", seconds=60, shutdown_seconds=0.5, events=[{"do": "drain", "pod": "worker", "after": 0.5}])
    gone.create(rayjob("runs"))
    gone.wait_running("runs")
    for number in range(5):
        gone.create(rayjob(f"begins-{number}", workers=2))
    control_plane.request("DELETE", f"/api/v1/namespaces/{gone.namespace}")
    gone.wait(lambda: not gone.all("rayjobs") and not gone.all("pods"), "everything to go")
    assert "Traceback" not in kuberay.log()


# Batch Jobs without Ray -----------------------------------------------------------------------------------------------


def test_played_batch_job_ends_as_scripted(cluster: Cluster) -> None:
    cluster.rule("plain", seconds=0.2, exit_code=12, log='{"code": 12}')
    cluster.kubectl("apply", "-f", "-", input=json.dumps(batch_job("plain")))
    cluster.wait(lambda: cluster.get("job", "plain")["status"].get("failed") == 1, "the Job to fail")
    (pod,) = cluster.all("pods")
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["message"]) == (12, '{"code": 12}')
