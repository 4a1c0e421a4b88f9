"""manifests/, for who installs with kubectl alone, is the chart."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rig.helm import NAMESPACE, Helm, objects
from rig.process import find_tools

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"


def test_the_manifests_are_what_the_chart_renders(helm3: Helm) -> None:
    command = [str(ROOT / "tools/render_manifests.sh"), str(helm3.executable), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stale_manifest_is_noticed(helm3: Helm, tmp_path: Path) -> None:
    for folder in ("charts", "manifests", "tools"):
        subprocess.run(["cp", "-r", str(ROOT / folder), str(tmp_path)], check=True)
    file = tmp_path / "manifests/install.yaml"
    file.write_text(file.read_text().replace("replicas: 2", "replicas: 3"))
    command = [str(tmp_path / "tools/render_manifests.sh"), str(helm3.executable), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "manifests/install.yaml is not what the chart renders" in done.stderr


def test_they_carry_no_checksum_that_who_edits_them_would_have_to_keep_up() -> None:
    for file in ("install.yaml", "overlays/namespaced/operator.yaml"):
        (deployment,) = (
            o for (kind, _, _), o in objects((MANIFESTS / file).read_text()).items() if kind == "Deployment"
        )
        assert "annotations" not in deployment["spec"]["template"]["metadata"]


def test_they_name_no_helm_and_bring_their_namespace() -> None:
    text = (MANIFESTS / "install.yaml").read_text()
    assert "helm" not in text.lower()
    installed = objects(text)
    assert next(iter(installed)) == ("Namespace", "", NAMESPACE)
    labels = installed[("Namespace", "", NAMESPACE)]["metadata"]["labels"]
    assert labels == {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.mark.parametrize(
    ("watched", "own"),
    [("team-a", NAMESPACE), ("research", NAMESPACE), ("team-a", "platform"), ("research", "platform")],
)
def test_the_overlay_for_a_namespace_is_the_chart_with_that_namespace(
    helm3: Helm, tmp_path: Path, watched: str, own: str
) -> None:
    values = {"watchNamespaces": [watched], "crds": {"enabled": False}, "test": {"enabled": False}}
    wanted = {key: _without_helm(o) for key, o in objects(helm3.template(values, f"--namespace={own}")).items()}
    (deployment,) = (o for (kind, _, _), o in wanted.items() if kind == "Deployment")
    assert list(deployment["spec"]["template"]["metadata"].pop("annotations")) == ["checksum/config"]
    folder = tmp_path / "overlay"
    shutil.copytree(MANIFESTS / "overlays/namespaced", folder)
    file = folder / "kustomization.yaml"
    text = file.read_text().replace("watched=team-a", f"watched={watched}")
    file.write_text(text.replace(f"operator={NAMESPACE}", f"operator={own}"))
    command = [str(find_tools("kubectl")["kubectl"]), "kustomize", str(folder)]
    built = objects(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert built.pop(("Namespace", "", own))["metadata"]["labels"] == {
        "pod-security.kubernetes.io/enforce": "restricted"
    }
    assert built == wanted


def _without_helm(value: Any) -> Any:
    if isinstance(value, dict):
        gone = {"helm.sh/chart"} | ({"app.kubernetes.io/managed-by"} if "helm.sh/chart" in value else set())
        return {key: _without_helm(inner) for key, inner in value.items() if key not in gone}
    return [_without_helm(item) for item in value] if isinstance(value, list) else value
