"""The files of jobs/ are taken by a real API server. That their entry point runs: tests/ray/test_rayjobs.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs import JOBS, PIPELINES, RAYJOBS, config_map_and_rayjob
from operator_specs import templates
from rig.control_plane import ControlPlane


@pytest.mark.parametrize("path", [*PIPELINES, *RAYJOBS, JOBS / "storage-claim.yaml"], ids=lambda path: path.name)
def test_a_server_knows_every_field(
    control_plane: ControlPlane, crds: None, ray_crds: None, namespace: str, path: Path
) -> None:
    said = control_plane.kubectl(
        *("-n", namespace, "create", "--dry-run=server", "--validate=strict", f"--filename={path}")
    )
    assert said.count("created (server dry run)") == len(list(yaml.safe_load_all(path.read_text())))


@pytest.mark.parametrize("path", RAYJOBS, ids=lambda path: path.name)
def test_all_pods_of_a_rayjob_are_let_in_by_pod_security_restricted(
    control_plane: ControlPlane, namespace: str, path: Path
) -> None:
    control_plane.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    rayjob = config_map_and_rayjob(path)[1]
    options = rayjob["spec"]["rayClusterSpec"].get("autoscalerOptions")
    for where, template in templates(rayjob):
        spec = dict(template["spec"])
        if where == "head" and options is not None:
            copied = {key: options[key] for key in ("env", "resources", "securityContext", "volumeMounts")}
            spec["containers"] = [*spec["containers"], {"name": "autoscaler", "image": "autoscaler", **copied}]
        pod = {"metadata": {"name": where}, "spec": spec}
        path_of_pods = f"/api/v1/namespaces/{namespace}/pods"
        control_plane.request("POST", f"{path_of_pods}?dryRun=All&fieldValidation=Strict", pod)
