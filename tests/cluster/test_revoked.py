"""The operator where it may not read a namespace, or not all of it: that one waits, and the others do not notice.

Whoever administers a namespace may delete the RoleBinding in it. A watch that was granted lives on for minutes, so the
apiserver is restarted after it: then every watch is asked for anew.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from kuberay_standin.launch import KubeRay
from rig.control_plane import ControlPlane
from rig.history import history
from rig.invariants import RESOURCES, violations
from rig.operator import ACCOUNT, NAMESPACE, Operator, install, installation, leader
from rig.pipelines import Pipelines, pipeline
from rig.process import RigError

StartOperator = Callable[..., Operator]
ROLE = next(each["metadata"]["name"] for each in installation() if each["kind"] == "ClusterRoleBinding")
"""Of the binding and of the role."""


@pytest.fixture(scope="module")
def control_plane() -> Iterator[ControlPlane]:
    """One of our own: these tests take the operator's rights, and read the history."""
    with ControlPlane(history=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def world(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeRay]:
    """Installed without a right on all namespaces."""
    install(control_plane)
    control_plane.kubectl("delete", "clusterrolebinding", ROLE)
    with KubeRay(control_plane, tmp_path_factory.mktemp("kuberay")) as kuberay:
        yield kuberay


@pytest.fixture
def teams(control_plane: ControlPlane, world: KubeRay) -> Iterator[tuple[Pipelines, Pipelines]]:
    """Two namespaces that the operator may read, and afterwards the check of all that has happened in them."""
    names = [f"team-{letter}-{secrets.token_hex(3)}" for letter in "ab"]
    for name in names:
        control_plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        control_plane.wait_service_account(name)
        grant(control_plane, name)
    yield Pipelines(control_plane, names[0]), Pipelines(control_plane, names[1])
    mine = (c for c in history(control_plane, *RESOURCES) if c.place.partition("/")[0] in names)
    assert violations(mine) == []
    for name in names:
        control_plane.request("DELETE", f"/api/v1/namespaces/{name}")


def grant(control_plane: ControlPlane, namespace: str, role: str = ROLE) -> None:
    """Let the operator work in a namespace."""
    account = f"--serviceaccount={NAMESPACE}:{ACCOUNT}"
    control_plane.kubectl("-n", namespace, "create", "rolebinding", "operator", f"--clusterrole={role}", account)


def revoke(control_plane: ControlPlane, namespace: str) -> None:
    """Take that back."""
    control_plane.kubectl("-n", namespace, "delete", "rolebinding", "operator")


def watching(*teams: Pipelines) -> list[str]:
    """The options for some namespaces."""
    return [f"--watch-namespace={team.namespace}" for team in teams]


def log_of(replica: Operator) -> str:
    return replica.process.log_tail(100_000)


def blind(replica: Operator, team: Pipelines, *kinds: str) -> bool:
    """Whether a replica said that it may not read the kinds in a namespace."""
    said = log_of(replica)
    return all(f"{kind} of {team.namespace}: may not be read" in said for kind in kinds)


def ready(replica: Operator) -> bool:
    """Whether a replica serves; until then it is an error to ask."""
    return replica.page("/readyz") == "ok\n"


def metric(replica: Operator, name: str) -> float:
    lines = [line for line in replica.page().splitlines() if line.startswith(name)]
    return max(float(line.split()[-1]) for line in lines)


def attempts(team: Pipelines, name: str) -> list[Any]:
    return [(stage["attempts"], stage["failures"]) for stage in team.status(name)["stages"]]


def test_a_namespace_that_takes_its_rights_back_stops_only_itself_and_goes_on_later(
    control_plane: ControlPlane, operator: StartOperator, teams: tuple[Pipelines, Pipelines], world: KubeRay
) -> None:
    closed, open_ = teams
    first, second = (operator(name, *watching(*teams)) for name in ("one", "two"))
    control_plane.wait_for(lambda: leader(control_plane) == "one", "the first to lead")
    for team in teams:
        world.rule("ends-a-1", namespace=team.namespace, seconds=45.0)
        world.rule("lasts-a-1", namespace=team.namespace, seconds=60.0)
        for name in ("ends", "lasts"):
            team.apply(pipeline(name))
    for team in teams:
        for name in ("ends", "lasts"):
            team.wait_stage(name, "a", "Running")

    revoke(control_plane, closed.namespace)
    control_plane.restart("kube-apiserver")
    for replica in (first, second):
        sees = partial(blind, replica, closed, "camelpipelines", "pods", "jobs")
        control_plane.wait_for(sees, "a replica to see what it may not")
        # For a moment after its start the apiserver knows no rights at all.
        control_plane.wait_for(partial(ready, replica), "the other namespace")
    closed.apply(pipeline("new"))
    open_.apply(pipeline("new"))
    open_.wait_phase("new", "Succeeded")

    third = operator("three", *watching(*teams))  # one that never saw the namespace
    assert blind(third, closed, "camelpipelines")
    second.process.stop(graceful=True)
    first.process.stop(graceful=True)
    assert leader(control_plane) in ("", "three")
    control_plane.wait_for(lambda: leader(control_plane) == "three", "the third to lead")
    open_.apply(pipeline("newer"))
    for name in ("newer", "ends", "lasts"):
        open_.wait_phase(name, "Succeeded")
    assert (closed.status("new"), third.page("/healthz")) == ({}, "ok\n")
    assert closed.phase("lasts") == closed.phase("ends") == "Running"

    grant(control_plane, closed.namespace)
    for name in ("new", "ends", "lasts"):
        closed.wait_phase(name, "Succeeded")
        assert attempts(closed, name) == [(1, 0), (1, 0)]
    said = log_of(third)
    for kind in ("camelpipelines", "pods"):
        lines = [line for line in said.splitlines() if f"{kind} of {closed.namespace}" in line]
        assert ["may not be read" in line for line in lines] == [True, False], lines


def test_nothing_is_decided_on_pods_that_may_not_be_seen(
    control_plane: ControlPlane, operator: StartOperator, teams: tuple[Pipelines, Pipelines], world: KubeRay
) -> None:
    half, open_ = teams
    rules = control_plane.request("GET", f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{ROLE}")["rules"]
    less = [{**rule, "resources": [r for r in rule["resources"] if r != "pods"]} for rule in rules]
    role = {"metadata": {"name": "no-pods"}, "rules": [rule for rule in less if rule["resources"]]}
    control_plane.request("POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", role)
    world.rule("runs-a-1", namespace=half.namespace, seconds=300.0)
    first = operator("one", *watching(*teams))
    half.apply(pipeline("runs"))
    half.wait_stage("runs", "a", "Running")
    revoke(control_plane, half.namespace)
    grant(control_plane, half.namespace, "no-pods")
    first.process.stop(graceful=True)
    before = half.get("runs")["metadata"]["resourceVersion"]
    second = operator("two", *watching(*teams))
    half.kubectl("delete", "job", "runs-a-1", "--cascade=orphan")  # its pod works on
    half.apply(pipeline("new"))
    open_.apply(pipeline("new"))
    open_.wait_phase("new", "Succeeded")
    assert blind(second, half, "pods")
    assert not blind(second, half, "jobs")
    assert half.status("new") == {}
    assert half.get("runs")["metadata"]["resourceVersion"] == before

    revoke(control_plane, half.namespace)
    grant(control_plane, half.namespace)
    half.wait_phase("new", "Succeeded")
    half.kubectl("delete", "pods", "-l", "camel-ray.dev/pipeline=runs", "--wait=false")
    half.wait_phase("runs", "Succeeded")
    assert attempts(half, "runs") == [(2, 1), (1, 0)]


def test_a_replica_that_may_read_nothing_is_not_ready_and_lives_on(
    control_plane: ControlPlane, operator: StartOperator, teams: tuple[Pipelines, Pipelines]
) -> None:
    replica = operator("one", *watching(*teams))
    for team in teams:
        revoke(control_plane, team.namespace)
    control_plane.restart("kube-apiserver")

    def unready() -> str:
        try:
            return replica.page("/readyz").replace("ok\n", "")
        except RigError as error:
            return str(error)

    control_plane.wait_for(lambda: "camelpipelines, " in unready(), "the replica to be unready")
    assert "503 the API server forbids to read" in unready()
    assert replica.page("/healthz") == "ok\n"
    grant(control_plane, teams[1].namespace)
    control_plane.wait_for(lambda: not unready(), "one namespace to be enough")
    assert metric(replica, "camel_ray_reflector_age_seconds") < 65
    teams[1].apply(pipeline("demo"))
    teams[1].wait_phase("demo", "Succeeded")
