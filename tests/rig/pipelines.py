"""What the tests of the operator share: pipelines, and questions about their state, asked as a user would."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rig.control_plane import ControlPlane

Object = dict[str, Any]
STORAGE = "/tmp/camel-ray-tests"
_PATH = "/apis/camel-ray.dev/v1alpha1/namespaces/{}/camelpipelines"


def pipeline(name: str, *stages: Object, **spec: Any) -> Object:
    """A pipeline for a cluster; by default two stages of `data`, each a batch Job."""
    rows = {"source": "/data/rows.jsonl"}
    cluster = {"executor": "Job", "image": "registry.local/trainer:1", **spec.pop("cluster", {})}
    return {
        "apiVersion": "camel-ray.dev/v1alpha1",
        "kind": "CamelPipeline",
        "metadata": {"name": name},
        "spec": {
            "storage": f"{STORAGE}/{name}",
            "cluster": cluster,
            "retry": {"backoffSeconds": 0.1},
            "stages": list(stages) or [{"name": "a", "data": rows}, {"name": "b", "data": rows}],
            **spec,
        },
    }


@dataclass(frozen=True)
class Pipelines:
    """The pipelines of a namespace."""

    plane: ControlPlane
    namespace: str

    def apply(self, manifest: Mapping[str, Any]) -> str:
        """`kubectl apply`, and what it says."""
        return self.kubectl("apply", "-f", "-", input=json.dumps(manifest))

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """kubectl in the namespace."""
        return self.plane.kubectl("-n", self.namespace, *arguments, input=input)

    def get(self, name: str) -> Object:
        """The object."""
        return self.plane.request("GET", f"{_PATH.format(self.namespace)}/{name}")

    def status(self, name: str) -> Object:
        """Its status, empty at first."""
        found: Object = self.get(name).get("status", {})
        return found

    def phase(self, name: str) -> str:
        """Its phase."""
        return str(self.status(name).get("phase", ""))

    def stage(self, name: str, stage: str) -> Object:
        """The status of one stage, empty at first."""
        stages: list[Object] = self.status(name).get("stages", [])
        return next((s for s in stages if s["name"] == stage), {})

    def patch_spec(self, name: str, **spec: Any) -> None:
        """Change fields of the spec."""
        self.kubectl("patch", "camel", name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def request(self, name: str, request: str) -> None:
        """Ask for something by the annotation."""
        self.kubectl("annotate", "camel", name, f"camel-ray.dev/request={request}", "--overwrite")

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 180) -> Any:
        """Wait for a condition."""
        return self.plane.wait_for(condition, what, seconds)

    def wait_phase(self, name: str, phase: str, seconds: float = 180) -> Object:
        """Wait for the pipeline's phase; the status then."""
        try:
            self.wait(lambda: self.phase(name) == phase, f"pipeline {name} to be {phase}", seconds)
        except Exception as error:
            raise AssertionError(f"{name}: {json.dumps(self.status(name), indent=1)[:4000]}") from error
        return self.status(name)

    def wait_stage(self, name: str, stage: str, phase: str, seconds: float = 180) -> Object:
        """Wait for the phase of a stage; its status then."""
        try:
            self.wait(lambda: self.stage(name, stage).get("phase") == phase, f"{name}/{stage} to be {phase}", seconds)
        except Exception as error:
            raise AssertionError(f"{name}: {json.dumps(self.status(name), indent=1)[:4000]}") from error
        return self.stage(name, stage)

    def list(self, resource: str, name: str) -> list[Object]:
        """Objects and pods of a pipeline."""
        prefix = {"jobs": "/apis/batch/v1", "rayjobs": "/apis/ray.io/v1", "rayclusters": "/apis/ray.io/v1"}
        path = f"{prefix.get(resource, '/api/v1')}/namespaces/{self.namespace}/{resource}"
        items: list[Object] = self.plane.request("GET", f"{path}?labelSelector=camel-ray.dev/pipeline={name}")["items"]
        return items

    def events(self, name: str) -> list[tuple[str, str]]:
        """Reason and message of the events of a pipeline."""
        path = f"/apis/events.k8s.io/v1/namespaces/{self.namespace}/events"
        items = self.plane.request("GET", path)["items"]
        return [(e["reason"], e["note"]) for e in items if e.get("regarding", {}).get("name") == name]
