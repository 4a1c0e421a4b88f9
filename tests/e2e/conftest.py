"""A cluster in which pods really run, with camel-ray installed as its users install it: one for all tests here.

The images are built from the project's Dockerfile, only if what they are made of has changed; the node takes some
seconds. Each test gets a namespace of its own that enforces Pod Security `restricted`, and the volumes it asks for.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kuberay_standin.launch import KubeRay
from rig.control_plane import ControlPlane
from rig.images import OPERATOR, TRAINER, build
from rig.node import Node
from rig.pipelines import Pipelines
from rig.release import Release

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
USER = 1000
"""Of stage pods."""

MakeVolume = Callable[[str], Path]
"""Makes a claim of that name in the namespace of the test; the directory of this machine behind it."""


@pytest.fixture(scope="session")
def images() -> dict[str, Path]:
    """Archives of the images by name."""
    return {name: build(name) for name in ("pause", "operator", "trainer")}


@pytest.fixture(scope="session")
def node(images: dict[str, Path]) -> Iterator[Node]:
    """The node, with all images."""
    with Node() as node:
        for archive in images.values():
            node.import_image(archive)
        yield node


@pytest.fixture(scope="session")
def plane(node: Node) -> ControlPlane:
    """The node's control plane: kubectl, requests, waits."""
    return node.plane


@pytest.fixture(scope="session")
def cluster(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """camel-ray, installed by its chart; its pods are ready."""
    release = Release(plane, tmp_path_factory.mktemp("helm"), operator=OPERATOR, trainer=TRAINER)
    release.install()
    yield release
    release.uninstall()


@pytest.fixture(scope="module")
def kuberay(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeRay]:
    """The stand-in for KubeRay; a kubelet runs the pods it makes."""
    with KubeRay(plane, tmp_path_factory.mktemp("kuberay"), pace=1.0, real_pods=True) as standin:
        yield standin
        assert "Traceback" not in standin.log()


@pytest.fixture
def namespace(plane: ControlPlane) -> Iterator[str]:
    """A namespace for one test, ready for pods. It is deleted afterwards, without waiting for that."""
    name = f"test-{secrets.token_hex(4)}"
    plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": RESTRICTED}})
    plane.wait_service_account(name)
    yield name
    plane.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def pipelines(cluster: Release, plane: ControlPlane, namespace: str) -> Pipelines:
    """The pipelines of the namespace of the test."""
    return Pipelines(plane, namespace)


@pytest.fixture
def volume(plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[MakeVolume]:
    """Makes claims; their volumes are directories of this machine, which pods may write to."""
    made: list[str] = []

    def make(claim: str) -> Path:
        directory = tmp_path / claim
        directory.mkdir()
        os.chown(directory, USER, USER)  # fsGroup does nothing for a host path
        name = f"{namespace}-{claim}"
        common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
        bound = {"namespace": namespace, "name": claim}
        spec = {**common, "capacity": {"storage": "1Gi"}, "hostPath": {"path": str(directory)}, "claimRef": bound}
        request = {**common, "volumeName": name, "resources": {"requests": {"storage": "1Gi"}}}
        objects = [
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec},
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim}, "spec": request},
        ]
        plane.kubectl("-n", namespace, "apply", "-f", "-", input="\n---\n".join(json.dumps(item) for item in objects))
        made.append(name)
        return directory

    yield make
    for name in made:
        plane.request("DELETE", f"/api/v1/persistentvolumes/{name}")
