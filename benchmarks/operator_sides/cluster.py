"""The cluster of `operator_scale.py`: a real control plane whose nodes are kwok's, so pods cost next to nothing.

The nodes pretend: pods on them are ready and then complete as soon as kwok gets to them. Scheduling, Jobs and garbage
collection are Kubernetes' own, and the same for everyone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rig.control_plane import ControlPlane
from rig.process import find_tools

NODES = 20
_FLAGS = {
    # What a cluster of this size would have; with the defaults (20 requests/s) the Job controller is all one measures.
    "kube-controller-manager": ["--kube-api-qps=2000", "--kube-api-burst=4000", "--concurrent-job-syncs=20"],
    "kube-scheduler": ["--kube-api-qps=2000", "--kube-api-burst=4000"],
}
_STAGES = ("stage/node/fast", "stage/pod/fast")


@contextmanager
def cluster() -> Iterator[ControlPlane]:
    """A control plane with `NODES` pretended nodes of endless size."""
    with ControlPlane(flags=_FLAGS, audit=False) as plane:
        kwok = find_tools("kwok")["kwok"]
        config = plane.directory / "kwok.yaml"
        files = [f for folder in _STAGES for f in sorted((kwok.parent / "manifests" / folder).glob("*.yaml"))]
        config.write_text("\n---\n".join(f.read_text() for f in files if f.name != "kustomization.yaml"))
        command = [str(kwok), f"--kubeconfig={plane.kubeconfig()}", "--manage-all-nodes", f"--config={config}"]
        plane.spawn("kwok", [*command, "--server-address=", "--node-lease-duration-seconds=0"])
        for number in range(NODES):
            plane.request("POST", "/api/v1/nodes", _node(f"kwok-{number}"))
        plane.wait_for(lambda: _ready(plane) == NODES, "the nodes to be ready", 60)
        yield plane


def _node(name: str) -> dict[str, Any]:
    amounts = {"cpu": "100000", "memory": "100Ti", "pods": "100000"}
    return {
        "metadata": {"name": name, "annotations": {"kwok.x-k8s.io/node": "fake"}, "labels": {"type": "kwok"}},
        "spec": {},
        "status": {"allocatable": amounts, "capacity": amounts},
    }


def _ready(plane: ControlPlane) -> int:
    nodes = plane.request("GET", "/api/v1/nodes")["items"]
    conditions = [c for n in nodes for c in n.get("status", {}).get("conditions", [])]
    return sum(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def crd_files(folder: Path) -> list[Path]:
    """The CRDs in a folder of manifests."""
    return [file for file in sorted(folder.glob("*.yaml")) if "kind: CustomResourceDefinition" in file.read_text()]


def compact(thing: object) -> bytes:
    """JSON for the wire."""
    return json.dumps(thing, separators=(",", ":")).encode()
