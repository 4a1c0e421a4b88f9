"""What the stand-in writes into Ray's pods, and which of them it removes: the words of KubeRay 1.7.0.

A kubelet runs these pods in tests/e2e; here nothing does.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from kuberay_standin.manifests import submitter_job, whole
from kuberay_standin.pods import head_pod, worker_pod
from kuberay_standin.trial import Cluster, Object, rayjob

HOST = "c-head-svc.n.svc.cluster.local"


def ray_cluster(**spec: Any) -> Object:
    job = rayjob("c")
    worker = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    worker["labels"] = {"camel-ray.dev/group": "w", "zone": "a"}
    container = worker["template"]["spec"]["containers"][0]
    container["env"] = [{"name": "MINE", "value": "1"}]
    container["securityContext"] = {"runAsNonRoot": True}
    meta = {"name": "c", "namespace": "n", "uid": "1"}
    spec = {**job["spec"]["rayClusterSpec"], "authOptions": {"mode": "token"}, **spec}
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": meta, "spec": spec}


def values(container: Object) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def test_head_starts_ray_with_its_dashboard_open() -> None:
    pod = head_pod(ray_cluster(), nowhere=False)
    (ray,) = pod["spec"]["containers"]
    assert ray["command"] == ["/bin/bash", "-c", "--"]
    start = (
        "ray start --head --block --dashboard-agent-listen-port=52365 --dashboard-host=0.0.0.0 --memory=1073741824 "
        "--metrics-export-port=8080 --num-cpus=0"
    )
    assert ray["args"] == [f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; {start}"]
    env = values(ray)
    assert (env["RAY_ADDRESS"], env["KUBERAY_GEN_RAY_START_CMD"]) == ("127.0.0.1:6379", start)
    assert env["RAY_AUTH_TOKEN"] == {"secretKeyRef": {"name": "c", "key": "auth_token"}}
    assert ray["readinessProbe"]["httpGet"] == {"path": "/api/healthz", "port": 52365}
    assert pod["metadata"]["labels"]["ray.io/group"] == "headgroup"
    assert pod["spec"]["volumes"][-1] == {"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}


def test_worker_waits_for_the_head_and_tells_ray_its_labels() -> None:
    cluster = ray_cluster()
    pod = worker_pod(cluster, cluster["spec"]["workerGroupSpecs"][0], nowhere=False)
    (ray,) = pod["spec"]["containers"]
    start = ray["args"][0].partition("; ")[2]
    assert start == (
        f"ray start --address={HOST}:6379 --block --dashboard-agent-listen-port=52365 "
        "--labels=camel-ray.dev/group=w,zone=a --memory=1073741824 --metrics-export-port=8080 --num-cpus=1"
    ), "a request of 100m is one CPU for Ray"
    assert values(ray)["RAY_ADDRESS"] == f"{HOST}:6379"
    (waits,) = pod["spec"]["initContainers"]
    assert waits["name"] == "wait-gcs-ready" and f"ray health-check --address {HOST}:6379" in waits["args"][0]
    assert waits["securityContext"] == {"runAsNonRoot": True} and values(waits)["MINE"] == "1"
    assert waits["resources"]["limits"] == {"cpu": "200m", "memory": "256Mi"}
    labels = pod["metadata"]["labels"]
    assert (labels["role"], labels["zone"], labels["ray.io/node-type"]) == ("ray-worker", "a", "worker")


def test_autoscaler_inherits_nothing_of_the_head() -> None:
    options = {"version": "v2", "securityContext": {"runAsNonRoot": True}, "env": [{"name": "HOME", "value": "/tmp"}]}
    pod = head_pod(ray_cluster(enableInTreeAutoscaling=True, autoscalerOptions=options), nowhere=False)
    ray, autoscaler = pod["spec"]["containers"]
    assert " --no-monitor " in ray["args"][0] and values(ray)["RAY_enable_autoscaler_v2"] == "true"
    assert autoscaler["args"] == [
        "ray kuberay-autoscaler --cluster-name $(RAY_CLUSTER_NAME) --cluster-namespace $(RAY_CLUSTER_NAMESPACE)"
    ]
    assert autoscaler["securityContext"] == {"runAsNonRoot": True} and values(autoscaler)["HOME"] == "/tmp"
    assert autoscaler["resources"]["limits"] == {"cpu": "500m", "memory": "512Mi"}
    shared = {"name": "ray-logs", "mountPath": "/tmp/ray"}
    assert shared in ray["volumeMounts"] and autoscaler["volumeMounts"] == [shared]
    assert (pod["spec"]["restartPolicy"], pod["spec"]["serviceAccountName"]) == ("Never", "c")


def test_submitter_submits_once_and_follows_the_log() -> None:
    job = rayjob("c", entrypoint="python -m attempt; false")
    job["metadata"] |= {"namespace": "n", "uid": "1"}
    job["status"] = {"dashboardURL": f"{HOST}:8265", "jobId": "c-1", "rayClusterName": "c"}
    container = submitter_job(job, nowhere=False)["spec"]["template"]["spec"]["containers"][0]
    (script,) = container["args"]
    at = f"--address http://{HOST}:8265"
    assert f"if ! ray job status {at} c-1 >/dev/null 2>&1 ; then" in script
    assert f"ray job submit {at} --no-wait --submission-id c-1 -- python -m attempt; false ; fi" in script, "unquoted"
    assert script.endswith(f"ray job logs {at} --follow c-1")
    own = {"containers": [{"name": "ray-job-submitter", "image": "i", "command": ["own"]}], "restartPolicy": "Never"}
    job["spec"]["submitterPodTemplate"] = {"spec": own}
    container = submitter_job(job, nowhere=False)["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["own"] and "args" not in container


@pytest.mark.parametrize(
    ("quantity", "number"),
    [("100m", 1), ("1500m", 2), ("2", 2), ("0.5", 1), ("1Gi", 1 << 30), ("1.5Ki", 1536), ("2G", 2 * 10**9)],
)
def test_quantities_are_rounded_up(quantity: str, number: int) -> None:
    assert whole(quantity) == number


def test_workers_that_the_autoscaler_names_go_and_no_others(cluster: Cluster) -> None:
    cluster.rule("scaled", seconds=60)
    job = rayjob("scaled", workers=2)
    spec = job["spec"]["rayClusterSpec"]
    spec |= {"enableInTreeAutoscaling": True, "autoscalerOptions": {"version": "v2"}}
    spec["workerGroupSpecs"][0] |= {"minReplicas": 0, "maxReplicas": 3}
    cluster.create(job)
    cluster.wait_running("scaled")
    (ray,) = cluster.all("rayclusters")
    rights = {rule["resources"][0]: rule["verbs"] for rule in cluster.get("role", ray["metadata"]["name"])["rules"]}
    assert rights["rayclusters"] == ["get", "patch"]
    assert cluster.get("rolebinding", ray["metadata"]["name"])["subjects"][0]["name"] == ray["metadata"]["name"]

    def patch(**group: Any) -> None:
        changes = [
            {"op": "replace", "path": f"/spec/workerGroupSpecs/0/{name}", "value": value}
            for name, value in group.items()
        ]
        cluster.kubectl("patch", "raycluster", ray["metadata"]["name"], "--type=json", "-p", json.dumps(changes))

    def workers() -> set[str]:
        return {pod["metadata"]["name"] for pod in cluster.pods("worker")}

    before = workers()
    patch(replicas=3)
    cluster.wait(lambda: len(workers()) == 3, "the third worker")
    (third,) = workers() - before
    patch(replicas=2)  # fewer, but none is named: only the autoscaler chooses
    seen = cluster.get("raycluster", ray["metadata"]["name"])["metadata"]["generation"]

    def observed() -> bool:
        status = cluster.get("raycluster", ray["metadata"]["name"])["status"]
        return bool(status["observedGeneration"] >= seen and status["desiredWorkerReplicas"] == 2)

    cluster.wait(observed, "KubeRay to have seen it")
    assert workers() == before | {third}
    patch(scaleStrategy={"workersToDelete": [sorted(before)[0]]})
    cluster.wait(lambda: workers() == {sorted(before)[1], third}, "the named worker to go")
    patch(scaleStrategy={"workersToDelete": []})
    cluster.wait(
        lambda: cluster.get("raycluster", ray["metadata"]["name"])["status"]["readyWorkerReplicas"] == 2, "rest"
    )
    assert workers() == {sorted(before)[1], third}
