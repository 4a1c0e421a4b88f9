"""The files of jobs/ are taken by a real API server, and a RayJob of theirs runs its pipeline without the operator."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import JOBS, PIPELINES, RAYJOBS, SPEC_KEY, config_map_and_rayjob
from kuberay_standin.launch import KubeRay
from kuberay_standin.trial import TINY, Cluster
from operator_specs import templates
from rig.control_plane import ControlPlane

IMAGE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def kuberay(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeRay]:
    image = {**IMAGE, "PATH": os.environ["PATH"]}
    directory = tmp_path_factory.mktemp("kuberay")
    with KubeRay(control_plane, directory, pace=0.02, run_entrypoints=True, environment=image) as standin:
        yield standin
        assert "Traceback" not in standin.log()


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


def rayjob_on(directory: Path, **data: Any) -> str:
    """jobs/rayjobs/pretrain.yaml for small nodes: its claim is a directory here, its pipeline trains nothing.

    The stand-in does not look for paths of volumes inside the entry point, so the pipeline lies in that directory, too.
    """
    text = (JOBS / "rayjobs/pretrain.yaml").read_text().replace("/runs", str(directory))
    text = text.replace("/etc/camel-ray", str(directory))
    config_map, rayjob = yaml.safe_load_all(text)
    pipeline = yaml.safe_load(config_map["data"][SPEC_KEY])
    rows = {"name": "corpus", "data": {"source": "builtin://python-docs/text", "limit": 200, **data}}
    words = {"name": "words", "tokenizer": {"data": "corpus", "vocabSize": 400}}
    pipeline["spec"]["stages"] = [rows, words]
    del pipeline["spec"]["cluster"]["volumes"]  # no pipeline may mount below /tmp, where this machine's directory lies
    config_map["data"][SPEC_KEY] = yaml.safe_dump(pipeline)
    (directory / SPEC_KEY).write_text(config_map["data"][SPEC_KEY])
    for _, template in templates(rayjob):
        pod = template["spec"]
        pod.pop("nodeSelector", None)
        pod["containers"][0]["resources"] = TINY
        for volume in pod["volumes"]:
            if volume.pop("persistentVolumeClaim", None):
                volume["hostPath"] = {"path": str(directory)}
    return "\n---\n".join(map(json.dumps, (config_map, rayjob)))


def test_a_rayjob_runs_its_pipeline_and_fails_with_a_sentence(cluster: Cluster, tmp_path: Path) -> None:
    cluster.kubectl("create", "-f", "-", input=rayjob_on(tmp_path))
    ended = cluster.wait_state(
        "pretrain", ("Complete", "SUCCEEDED", ""), ("Failed", "FAILED", "AppFailed"), seconds=120
    )
    assert ended["jobStatus"] == "SUCCEEDED", ended["message"]
    stages = tmp_path / "pretrain/stages"
    assert (stages / "words/tokenizer/manifest.json").exists()

    cluster.kubectl("replace", "--force", "-f", "-", input=rayjob_on(tmp_path, source="/nowhere.jsonl"))
    status = cluster.wait_state("pretrain", ("Failed", "FAILED", "AppFailed"), seconds=120)
    lines = status["message"].splitlines()
    assert "exit code 12" in lines[0]  # a data set: another run would change nothing
    assert any("/nowhere.jsonl" in line for line in lines) and "Traceback" not in status["message"]
