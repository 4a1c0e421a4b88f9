"""The operator as a process of the rig, under the service account and the rights that a user installs it with."""

from __future__ import annotations

import http.client
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rig.control_plane import ControlPlane, RequestError
from rig.process import HOST, Process, RigError

MANIFESTS = Path(__file__).parents[2] / "manifests"
_JUMPING = Path(__file__).with_name("jumping.py")
NAMESPACE = "camel-ray-system"
ACCOUNT = "camel-ray"
LEASE = "camel-ray-operator"
_LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
_PORTS = re.compile(r"metrics on port (\d+), progress on port (\d+)")


@dataclass(frozen=True)
class Operator:
    """A replica that watches; whether it leads is another question."""

    process: Process
    identity: str
    metrics_port: int
    progress_port: int

    def page(self, path: str = "/metrics") -> str:
        """What it serves at a path: `/metrics`, `/healthz`, `/readyz`. Raises RigError or OSError while it does not."""
        connection = http.client.HTTPConnection(HOST, self.metrics_port, timeout=60)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise RigError(f"{path} of {self.process.name}: {response.status} {text}")
        return text

    def end_well(self) -> None:
        """Let it end, and look through its log: no bug, and nothing that it may not do. Nothing can be created in a
        namespace that an earlier test has left and that is on its way out: that is no missing right.
        """
        self.process.stop(graceful=True)
        log = self.process.log_tail(5000)
        assert self.process.returncode == 0
        assert "bug:" not in log
        assert not [line for line in log.lower().splitlines() if "forbidden" in line and "being terminated" not in line]


def install(control_plane: ControlPlane) -> None:
    """What manifests/install.yaml brings, except the Deployment: there is no kubelet, replicas are processes here."""
    control_plane.apply_crds(MANIFESTS / "crd.yaml")
    others = [each for each in installation() if each["kind"] not in ("CustomResourceDefinition", "Deployment")]
    applied = {"apiVersion": "v1", "kind": "List", "items": others}
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", input=json.dumps(applied))


def installation() -> list[dict[str, Any]]:
    """The objects of manifests/install.yaml."""
    with (MANIFESTS / "install.yaml").open() as file:
        return list(yaml.load_all(file, yaml.CSafeLoader))


def start_operator(
    control_plane: ControlPlane,
    identity: str = "operator",
    *options: str,
    kubeconfig: Path | None = None,
    clock: Path | None = None,
) -> Operator:
    """Start a replica and wait until it has seen everything it watches.

    `options`: more of its command line. `kubeconfig`: another way to the apiserver than its own service account's.
    `clock`: a file with the seconds that its machine's clock is wrong by; it may change (`jumping.py`).
    """
    name = f"operator-{identity}"
    log = control_plane.directory / f"log/{name}.log"
    before = log.stat().st_size if log.exists() else 0
    command = [
        *(sys.executable, *(("-P", str(_JUMPING), str(clock)) if clock else ("-m",)), "camel_ray.operator.main"),
        f"--kubeconfig={kubeconfig or control_plane.service_account(NAMESPACE, ACCOUNT)}",
        f"--namespace={NAMESPACE}",
        f"--identity={identity}",
        *("--metrics-port=0", "--progress-port=0", "--log-format=text"),
        *options,
    ]
    process = control_plane.spawn(name, command)
    said = f"{name} to name its ports"
    match = control_plane.wait_for(lambda: _PORTS.search(log.read_text()[before:]), said)
    operator = Operator(process, identity, int(match[1]), int(match[2]))
    control_plane.wait_for(lambda: operator.page("/readyz") or True, f"{name} to have seen everything")
    process.expendable = True
    return operator


def leader(control_plane: ControlPlane, lease_name: str = LEASE) -> str:
    """Identity of the replica that holds the lease; empty if none does."""
    try:
        lease = control_plane.request("GET", f"{_LEASES}/{lease_name}")
    except RequestError as error:
        if error.status == http.HTTPStatus.NOT_FOUND:
            return ""
        raise
    return str(lease["spec"].get("holderIdentity") or "")


def forget_leader(control_plane: ControlPlane) -> None:
    """Delete the lease, so that a replica which was killed is not waited for."""
    try:
        control_plane.request("DELETE", f"{_LEASES}/{LEASE}")
    except RequestError as error:
        if error.status != http.HTTPStatus.NOT_FOUND:
            raise
