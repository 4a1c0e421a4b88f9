"""A real control plane for the tests of this folder: one for all of them, and a namespace of its own for each.

A module whose faults break the control plane has its own: it overrides `control_plane` with a fixture of scope
`module`, and everything below follows. Such modules come first, so that never two control planes run at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.config import from_kubeconfig
from kuberay_standin.launch import KubeRay
from kuberay_standin.trial import Cluster
from rig.control_plane import ControlPlane
from rig.operator import MANIFESTS, Operator, forget_leader, install, start_operator

HERE = Path(__file__).parent

StartOperator = Callable[..., Operator]
"""Starts a replica: `(identity="operator", *options, kubeconfig=None, clock=None)`. All end with the test."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a control plane of their own first; nothing else changes its place."""
    places = [place for place, item in enumerate(items) if item.path.is_relative_to(HERE)]
    mine = [items[place] for place in places]
    mine.sort(key=lambda item: not (isinstance(item, pytest.Function) and hasattr(item.module, "control_plane")))
    for place, item in zip(places, mine, strict=True):
        items[place] = item


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """The control plane of the session."""
    with ControlPlane() as cluster:
        yield cluster


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace for one test, ready for pods. It is deleted afterwards, without waiting for that."""
    name = f"test-{secrets.token_hex(4)}"
    control_plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    control_plane.wait_service_account(name)
    yield name
    control_plane.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="module")
def admin(control_plane: ControlPlane) -> Iterator[Client]:
    """The operator's own client, with all rights."""
    client = Client(from_kubeconfig(str(control_plane.kubeconfig())), manager="test")
    yield client
    client.close()


@pytest.fixture(scope="module")
def crds(control_plane: ControlPlane) -> None:
    """CamelPipelines are served."""
    control_plane.apply_crds(MANIFESTS / "crd.yaml")


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane) -> None:
    """CRD, service account and rights are there."""
    install(control_plane)


@pytest.fixture
def operator(control_plane: ControlPlane, installed: None) -> Iterator[StartOperator]:
    """Starts replicas under the service account of manifests/install.yaml."""
    started: list[Operator] = []
    forget_leader(control_plane)

    def start(identity: str = "operator", *options: str, **ways: Path | None) -> Operator:
        replica = start_operator(control_plane, identity, *options, **ways)
        started.append(replica)
        return replica

    yield start
    for replica in started:
        replica.process.stop()


@pytest.fixture(scope="module")
def ray_crds(control_plane: ControlPlane) -> None:
    """RayJobs and RayClusters are served."""
    control_plane.apply_crds(*sorted((HERE.parent / "kuberay_standin/crds").glob("*.yaml")))


@pytest.fixture(scope="module")
def kuberay(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeRay]:
    """The stand-in for KubeRay; tell it by `rule` what shall happen in the namespace of the test."""
    with KubeRay(control_plane, tmp_path_factory.mktemp("kuberay"), pace=0.02) as standin:
        yield standin
        assert "Traceback" not in standin.log()


@pytest.fixture
def cluster(control_plane: ControlPlane, namespace: str, kuberay: KubeRay) -> Cluster:
    """The namespace of the test, seen by a user of KubeRay."""
    return Cluster(control_plane, namespace, kuberay)
