"""camel-ray installed in a cluster of the rig by its Helm chart, with the rig's images and a storage class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rig.control_plane import ControlPlane
from rig.helm import CHART, NAMESPACE, RELEASE, Helm
from rig.process import RigError

SCRATCH_CLASS = "shared"
"""Storage class of the claims that the operator makes. Nobody provisions it: a test makes the volume."""


class Release:
    """The release `camel-ray`. `directory`: where Helm may keep what it keeps."""

    def __init__(self, plane: ControlPlane, directory: Path, *, operator: str, trainer: str) -> None:
        self.plane = plane
        self._helm = Helm("helm3", directory, kubeconfig=plane.kubeconfig())
        repository, _, tag = operator.rpartition(":")
        self._values: dict[str, Any] = {
            "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
            "stages": {
                "image": trainer,
                "imagePullPolicy": "Never",
                "scratch": {"storageClassName": SCRATCH_CLASS, "size": "1Gi"},
            },
        }

    def install(self, values: Mapping[str, Any] | None = None, *, chart: Path = CHART) -> None:
        """`helm upgrade --install` with more values; returns when the operator's pods are ready."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
        self.plane.kubectl("apply", "-f", "-", input=json.dumps(namespace))
        self.helm(
            *("upgrade", "--install", RELEASE, str(chart), f"--namespace={NAMESPACE}"),
            *("--wait", "--timeout=300s", "--values=-"),
            input=json.dumps(_merged(self._values, values or {})),
        )

    def uninstall(self) -> None:
        """`helm uninstall`; returns when its objects are gone."""
        self.helm("uninstall", RELEASE, f"--namespace={NAMESPACE}", "--wait", "--timeout=180s")

    def helm(self, *arguments: str, input: str | None = None) -> str:
        """What helm prints. Raises RigError with its complaint, and with what the operator's pods say, if it fails."""
        try:
            return self._helm.run(*arguments, input=input)
        except RigError as error:
            raise RigError(f"{error}\n{self.describe()}") from None

    def describe(self) -> str:
        """How the operator's pods are, and the ends of their logs."""
        pods = self.plane.kubectl("-n", NAMESPACE, "get", "pods,events", check=False)
        return pods + self.logs(lines=30)

    def logs(self, *, lines: int = -1) -> str:
        """Logs of the operator's pods."""
        label = "--selector=app.kubernetes.io/name=camel-ray"
        return self.plane.kubectl("-n", NAMESPACE, "logs", label, "--prefix", f"--tail={lines}", check=False)


def _merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees of values as helm merges them: the second wins, key by key."""
    merged = dict(values)
    for key, value in more.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged
