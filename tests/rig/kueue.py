"""Kueue's manager as a process of the rig, without webhooks: queues and quotas for Jobs and RayJobs."""

from __future__ import annotations

import http
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from rig.control_plane import ControlPlane, RequestError
from rig.process import Process, find_tools, free_ports

NAMESPACE = "kueue-system"


def install(control_plane: ControlPlane) -> None:
    """Kueue's CRDs, with both versions served as they are: what the tests write converts without Kueue's webhook."""
    bases = find_tools("kueue")["kueue"].parent / "manifests/crd/bases"
    control_plane.apply_crds(*sorted(bases.glob("*.yaml")))
    try:
        control_plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    except RequestError as error:
        if error.status != http.HTTPStatus.CONFLICT:
            raise


def start_kueue(control_plane: ControlPlane, frameworks: Sequence[str] = ("batch/job",)) -> Process:
    """Start the manager and wait until it is ready. `frameworks` whose CRD is missing would stop it."""
    kueue = find_tools("kueue")["kueue"]
    metrics, health, webhook = free_ports(3)
    certificates = _certificates(control_plane)
    config = {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": f"127.0.0.1:{metrics}"},
        "webhook": {"host": "127.0.0.1", "port": webhook, "certDir": str(certificates)},
        "internalCertManagement": {"enable": False},
        "leaderElection": {"leaderElect": False},
        "integrations": {"frameworks": list(frameworks)},
    }
    path = control_plane.directory / "kueue.json"
    path.write_text(json.dumps(config))
    command = [str(kueue), f"--config={path}", "--feature-gates=VisibilityOnDemand=false", "--zap-log-level=2"]
    environment = {
        "KUBECONFIG": str(control_plane.kubeconfig()),
        "KUEUE_CERTIFICATES": str(certificates),
    }
    process = control_plane.spawn("kueue", command, environment)
    control_plane.wait_for(lambda: "Starting workers" in process.log_tail(1000), "Kueue to start its workers")
    return process


def make_queue(control_plane: ControlPlane, namespace: str, quota: Mapping[str, str]) -> str:
    """A ClusterQueue with `quota` and a LocalQueue of it in the namespace. Returns the name of both."""
    name = f"queue-{namespace}"
    resources = [{"name": resource, "nominalQuota": amount} for resource, amount in quota.items()]
    group = {"coveredResources": list(quota), "flavors": [{"name": name, "resources": resources}]}
    api = "kueue.x-k8s.io/v1beta2"
    for manifest in (
        {"apiVersion": api, "kind": "ResourceFlavor", "metadata": {"name": name}},
        {
            "apiVersion": api,
            "kind": "ClusterQueue",
            "metadata": {"name": name},
            "spec": {"namespaceSelector": {}, "resourceGroups": [group]},
        },
        {
            "apiVersion": api,
            "kind": "LocalQueue",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterQueue": name},
        },
    ):
        control_plane.kubectl("create", "-f", "-", input=json.dumps(manifest))
    return name


def _certificates(control_plane: ControlPlane) -> Path:
    """A certificate for its servers, which nobody asks: the apiserver's own."""
    folder = control_plane.directory / "pki/kueue"
    folder.mkdir(mode=0o700, exist_ok=True)
    for suffix in ("crt", "key"):
        shutil.copy(control_plane.ca_file.with_suffix(f".{suffix}"), folder / f"tls.{suffix}")
    return folder
