"""Pods that tests run by themselves: as restricted as those of the operator, and with a root they cannot write to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rig.control_plane import ControlPlane

SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def run(plane: ControlPlane, namespace: str, image: str, *args: str, command: Sequence[str] = ()) -> str:
    """What a pod of an image of the rig prints; it must end well. `command` replaces the image's entry point."""
    container: dict[str, Any] = {
        "name": "c",
        "image": image,
        "imagePullPolicy": "Never",
        "args": args,
        "securityContext": SECURITY,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    if command:
        container["command"] = list(command)
    spec = {"restartPolicy": "Never", "containers": [container], "volumes": [{"name": "tmp", "emptyDir": {}}]}
    pods = f"/api/v1/namespaces/{namespace}/pods"
    name = plane.request("POST", pods, {"metadata": {"generateName": "run-"}, "spec": spec})["metadata"]["name"]

    def phase() -> str:
        return str(plane.request("GET", f"{pods}/{name}")["status"].get("phase"))

    plane.wait_for(lambda: phase() in ("Succeeded", "Failed"), f"pod {name} to end", 180)
    printed = plane.kubectl("-n", namespace, "logs", name)
    assert phase() == "Succeeded", printed
    return printed
