"""What the tests of the stand-in ask of the apiserver, and the objects they create."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from kuberay_standin.launch import KubeRay
from rig.control_plane import ControlPlane

Object = dict[str, Any]
TINY = {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}}
SUCCEEDED = ("Complete", "SUCCEEDED", "")


class Cluster:
    """What the tests ask the apiserver, in one namespace."""

    def __init__(self, control_plane: ControlPlane, namespace: str, kuberay: KubeRay) -> None:
        self._plane, self.namespace, self._kuberay = control_plane, namespace, kuberay

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        return self._plane.kubectl("-n", self.namespace, *arguments, input=input)

    def rule(self, match: str, **behaviour: Any) -> None:
        self._kuberay.rule(match, namespace=self.namespace, **behaviour)

    def create(self, job: Object) -> None:
        self._plane.request("POST", f"/apis/ray.io/v1/namespaces/{self.namespace}/rayjobs", job)

    def get(self, resource: str, name: str) -> Object:
        found: Object = json.loads(self.kubectl("get", resource, name, "-o", "json"))
        return found

    def all(self, resource: str, labels: str = "") -> list[Object]:
        prefix = {"rayclusters": "/apis/ray.io/v1", "jobs": "/apis/batch/v1", "rayjobs": "/apis/ray.io/v1"}.get(
            resource
        )
        path = f"{prefix or '/api/v1'}/namespaces/{self.namespace}/{resource}?labelSelector={labels}"
        items: list[Object] = self._plane.request("GET", path)["items"]
        return items

    def job(self, name: str) -> Object:
        found: Object = self._plane.request("GET", f"/apis/ray.io/v1/namespaces/{self.namespace}/rayjobs/{name}")
        return found

    def state(self, name: str) -> tuple[str, str, str]:
        status = self.job(name).get("status", {})
        return tuple(status.get(field, "") for field in ("jobDeploymentStatus", "jobStatus", "reason"))

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
        return self._plane.wait_for(condition, what, seconds)

    def wait_state(self, name: str, *states: tuple[str, str, str], seconds: float = 120) -> Object:
        """The status once it is one of `states`."""
        try:
            self.wait(lambda: self.state(name) in states, f"{name} to be {states}", seconds)
        except Exception as error:
            raise AssertionError(f"{name} is {self.state(name)}") from error
        status: Object = self.job(name)["status"]
        return status

    def wait_running(self, name: str) -> Object:
        return self.wait_state(name, ("Running", "RUNNING", ""))

    def pods(self, node_type: str) -> list[Object]:
        return self.all("pods", f"ray.io/node-type={node_type}")

    def delete_pod(self, pod: Object) -> None:
        self._plane.request("DELETE", f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}")

    def patch(self, name: str, patch: Object) -> None:
        self.kubectl("patch", "rayjob", name, "--type=merge", "-p", json.dumps(patch))

    def events(self, reason: str) -> list[Object]:
        return [event for event in self.all("events") if event["reason"] == reason]


def rayjob(name: str, *, workers: int = 1, head: Object | None = None, **spec: Any) -> Object:
    """A RayJob in the form that runs an entry point at most once."""
    container = {"image": "ray:1", "resources": TINY}
    groups = [
        {
            "groupName": "w",
            "replicas": workers,
            "minReplicas": workers,
            "maxReplicas": workers,
            "rayStartParams": {},
            "template": pod_template("ray-worker", container),
        }
    ]
    body: Object = {
        "entrypoint": "python -m attempt",
        "submissionMode": "K8sJobMode",
        "submitterConfig": {"backoffLimit": 0},
        "shutdownAfterJobFinishes": True,
        "rayClusterSpec": {
            "rayVersion": "2.60.0",
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": "0"},
                "template": pod_template("ray-head", {**container, **(head or {})}),
            },
            "workerGroupSpecs": groups if workers else [],
        },
        **spec,
    }
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": name}, "spec": body}


def pod_template(name: str, container: Object) -> Object:
    spec = {"containers": [{"name": name, **deepcopy(container)}], "terminationGracePeriodSeconds": 5}
    return {"metadata": {"labels": {"role": name}}, "spec": spec}


def batch_job(name: str, **container: Any) -> Object:
    spec = {
        "containers": [{"name": "stage", "image": "ray:1", "resources": TINY, **container}],
        "restartPolicy": "Never",
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"spec": spec}},
    }
