"""The three sides of `operator_scale.py`: how each controller is started, its parent object, and the children it makes.

The others run from the sources of their releases, without their webhooks: these would cost each creation a call and
need
certificates, so leaving them out is in their favour, and their defaults are written out here instead. Trainer's own
limit of 50 requests/s is raised to what JobSet ships with (500), so that no side waits for a limit of its own.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from operator_sides.cluster import crd_files
from rig.control_plane import ControlPlane
from rig.operator import install
from rig.process import Process, find_tools, free_ports

ROOT = Path(__file__).parents[2]
_POD = {"spec": {"restartPolicy": "Never", "containers": [{"name": "stage", "image": "registry.local/none:1"}]}}
_REPLICATED = {"parallelism": 1, "completions": 1, "backoffLimit": 0, "completionMode": "Indexed", "template": _POD}
_RATE = {"qps": 500, "burst": 1000}
_NAMES = ("s1", "s2", "node")


class Side(Protocol):
    """One controller."""

    name: str
    path: str
    """Collection of its parent objects, below a namespace."""

    def install(self, plane: ControlPlane) -> None:
        """Make its kinds known, once."""

    def start(self, plane: ControlPlane) -> Process:
        """Its process."""

    def parent(self, name: str) -> dict[str, Any]:
        """An object to create."""

    def parent_of(self, job: dict[str, Any]) -> str | None:
        """Name of the parent of a Job that is a first child; None for later ones."""


@dataclass
class JobSet:
    """JobSet: a parent makes its Jobs, one after the other (`dependsOn`)."""

    name: str = "jobset"
    path: str = "jobset.x-k8s.io/v1alpha2/jobsets"

    def install(self, plane: ControlPlane) -> None:
        """Make its kinds known, once."""
        plane.apply_crds(*crd_files(find_tools("jobset")["jobset"].parent / "manifests/crd/bases"))

    def start(self, plane: ControlPlane) -> Process:
        """Its process."""
        port, health = free_ports(2)
        config = plane.directory / "jobset.json"
        config.write_text(
            json.dumps(
                {
                    "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
                    "kind": "Configuration",
                    "leaderElection": {"leaderElect": False},
                    "internalCertManagement": {"enable": False},
                    "webhook": {"port": port, "certDir": str(certificates(plane))},
                    "metrics": {"bindAddress": "0"},
                    "health": {"healthProbeBindAddress": f":{health}"},
                }
            )
        )
        tool = find_tools("jobset")["jobset"]
        command = [str(tool), f"--kubeconfig={plane.kubeconfig()}", f"--config={config}", "--zap-log-level=error"]
        return plane.spawn("jobset", command)

    def parent(self, name: str) -> dict[str, Any]:
        """An object to create."""
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {"name": name},
            "spec": _jobset_spec({}),
        }

    def parent_of(self, job: dict[str, Any]) -> str | None:
        """Name of the JobSet of a first Job."""
        labels: dict[str, str] = job["metadata"].get("labels", {})
        first = labels.get("jobset.sigs.k8s.io/replicatedjob-name") == _NAMES[0]
        return labels.get("jobset.sigs.k8s.io/jobset-name") if first else None


@dataclass
class Trainer:
    """Kubeflow Trainer: a TrainJob makes a JobSet, which makes its Jobs."""

    name: str = "trainer"
    path: str = "trainer.kubeflow.org/v1alpha1/trainjobs"
    _jobset: JobSet = field(default_factory=JobSet)

    def install(self, plane: ControlPlane) -> None:
        """Make its kinds known, once; JobSet's are."""
        plane.apply_crds(*crd_files(find_tools("trainer")["trainer"].parent / "manifests/base/crds"))
        runtime = {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "ClusterTrainingRuntime",
            "metadata": {"name": "plain"},
            "spec": {
                "mlPolicy": {"numNodes": 1},
                "template": {"spec": _jobset_spec({"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"})},
            },
        }
        plane.request("POST", "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes", runtime)

    def start(self, plane: ControlPlane) -> Process:
        """Its process, with JobSet's beside it."""
        self._beside = self._jobset.start(plane)
        port, health = free_ports(2)
        certificates(plane)
        config = plane.directory / "trainer.json"
        config.write_text(
            json.dumps(
                {
                    "apiVersion": "config.trainer.kubeflow.org/v1alpha1",
                    "kind": "Configuration",
                    "leaderElection": {"leaderElect": False},
                    "certManagement": {"enable": False},
                    "webhook": {"port": port, "host": ""},
                    "metrics": {"bindAddress": "0", "secureServing": False},
                    "health": {"healthProbeBindAddress": f":{health}"},
                    "clientConnection": _RATE,
                    "controller": {"groupKindConcurrency": {"TrainJob.trainer.kubeflow.org": 5}},
                }
            )
        )
        tool = find_tools("trainer")["trainer"]
        command = [str(tool), f"--kubeconfig={plane.kubeconfig()}", f"--config={config}", "--zap-log-level=error"]
        return plane.spawn("trainer", command, {"TMPDIR": str(plane.directory)})

    def stop_beside(self) -> None:
        """End JobSet's process."""
        self._beside.stop()

    def parent(self, name: str) -> dict[str, Any]:
        """An object to create."""
        reference = {"name": "plain", "kind": "ClusterTrainingRuntime", "apiGroup": "trainer.kubeflow.org"}
        return {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "TrainJob",
            "metadata": {"name": name},
            "spec": {"runtimeRef": reference, "managedBy": "trainer.kubeflow.org/trainjob-controller"},
        }

    def parent_of(self, job: dict[str, Any]) -> str | None:
        """Name of the TrainJob, which its JobSet has as well."""
        return self._jobset.parent_of(job)


@dataclass
class CamelRay:
    """camel-ray: a pipeline of three stages, each a Job, one after the other."""

    stages: int = 3
    name: str = "camel-ray"
    path: str = "camel-ray.dev/v1alpha1/camelpipelines"
    metrics_port: int = 0

    def install(self, plane: ControlPlane) -> None:
        """Make its kind known, and give it the rights it has in a cluster, once."""
        install(plane)

    def start(self, plane: ControlPlane, name: str = "camel-ray") -> Process:
        """Its process, under its own service account."""
        import sys

        (self.metrics_port,) = free_ports(1)
        account = plane.service_account("camel-ray-system", "camel-ray")
        command = [sys.executable, "-m", "camel_ray.operator.main", f"--kubeconfig={account}"]
        command += ["--namespace=camel-ray-system", f"--metrics-port={self.metrics_port}", "--progress-port=0"]
        command += ["--log-level=WARNING", f"--identity={name}"]
        return plane.spawn(name, command)

    def parent(self, name: str) -> dict[str, Any]:
        """An object to create."""
        stage = {"data": {"source": "/data/rows.jsonl"}}
        return {
            "apiVersion": "camel-ray.dev/v1alpha1",
            "kind": "CamelPipeline",
            "metadata": {"name": name},
            "spec": {
                "storage": "s3://bucket/team",
                "cluster": {"executor": "Job", "image": "registry.local/none:1"},
                "stages": [{"name": f"s{i}", "needs": [], **stage} for i in range(1, self.stages + 1)],
            },
        }

    def parent_of(self, job: dict[str, Any]) -> str | None:
        """Name of the pipeline of a first stage's Job."""
        labels: dict[str, str] = job["metadata"].get("labels", {})
        return labels.get("camel-ray.dev/pipeline") if labels.get("camel-ray.dev/stage") == "s1" else None


def _jobset_spec(labels: dict[str, str]) -> dict[str, Any]:
    """Three Jobs, each after the one before; `labels` go to the last."""
    jobs: list[dict[str, Any]] = [
        {"name": name, "replicas": 1, "template": {"metadata": {"labels": {}}, "spec": _REPLICATED}} for name in _NAMES
    ]
    for earlier, job in pairwise(jobs):
        job["dependsOn"] = [{"name": earlier["name"], "status": "Complete"}]
    jobs[-1]["template"]["metadata"]["labels"] = labels
    return {
        "network": {"enableDNSHostnames": False},  # else a Service more for each
        "successPolicy": {"operator": "All"},
        "replicatedJobs": jobs,
    }


def certificates(plane: ControlPlane) -> Path:
    """A folder with a certificate for webhooks that nobody calls, where controller-runtime looks for it."""
    folder = plane.directory / "k8s-webhook-server" / "serving-certs"
    if not folder.exists():
        folder.mkdir(parents=True)
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        files = ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
        subprocess.run([*command, *files], check=True, capture_output=True)
    return folder
