"""The operator under faults: frozen, cut off, refused, killed between any two writes. Nothing is lost or doubled.

After each test the whole history of the control plane is read back from etcd, and every version of everything checked.
"""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from kuberay_standin.launch import KubeRay
from rig.control_plane import ControlPlane
from rig.history import history
from rig.invariants import RESOURCES, violations
from rig.operator import ACCOUNT, MANIFESTS, NAMESPACE, Operator, install, leader
from rig.pipelines import Pipelines, pipeline
from rig.proxy import Fault, FaultProxy

StartOperator = Callable[..., Operator]
USER = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"


@pytest.fixture(scope="module")
def control_plane() -> Iterator[ControlPlane]:
    """One of our own: these tests break it."""
    with ControlPlane(audit=True, history=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def world(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeRay]:
    install(control_plane)
    with KubeRay(control_plane, tmp_path_factory.mktemp("kuberay")) as kuberay:
        yield kuberay


@pytest.fixture
def pipelines(control_plane: ControlPlane, namespace: str, world: KubeRay) -> Iterator[Pipelines]:
    """The pipelines of the test, and afterwards the check of all that has happened to them."""
    yield Pipelines(control_plane, namespace)
    mine = (c for c in history(control_plane, *RESOURCES) if c.place.startswith(f"{namespace}/"))
    assert violations(mine) == []


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Iterator[FaultProxy]:
    with FaultProxy(control_plane) as between:
        yield between


def account(control_plane: ControlPlane, **options: int) -> Any:
    return control_plane.service_account(NAMESPACE, ACCOUNT, **options)


def is_write(method: str, path: str) -> bool:
    """Whether a request changes something of a pipeline."""
    return method != "GET" and "/leases" not in path and "/events" not in path


def test_a_frozen_leader_is_replaced_and_ends_when_it_wakes(
    control_plane: ControlPlane, operator: StartOperator, pipelines: Pipelines, world: KubeRay
) -> None:
    world.rule("before-a-1", namespace=pipelines.namespace, seconds=10.0)
    replicas = {name: operator(name) for name in ("one", "two")}
    control_plane.wait_for(lambda: leader(control_plane), "a leader")
    first = leader(control_plane)
    pipelines.apply(pipeline("before"))
    pipelines.wait_stage("before", "a", "Running")
    replicas[first].process.signal(signal.SIGSTOP)
    pipelines.apply(pipeline("after"))
    for name in ("before", "after"):
        pipelines.wait_phase(name, "Succeeded")
    assert leader(control_plane) == ({"one", "two"} - {first}).pop()
    replicas[first].process.signal(signal.SIGCONT)
    assert replicas[first].process.wait() == 1


def test_a_replica_that_ends_gives_the_lease_back(
    control_plane: ControlPlane, operator: StartOperator, pipelines: Pipelines
) -> None:
    first, second = operator("one"), operator("two")
    control_plane.wait_for(lambda: leader(control_plane) == "one", "the first to lead")
    first.process.stop(graceful=True)
    assert first.process.returncode == 0
    assert leader(control_plane) in ("", "two")
    control_plane.wait_for(lambda: leader(control_plane) == "two", "the second to lead")
    pipelines.apply(pipeline("demo"))
    pipelines.wait_phase("demo", "Succeeded")
    assert second.process.alive


@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_clock_that_is_put_forward_or_back_ends_no_wait_and_prolongs_none(
    control_plane: ControlPlane,
    operator: StartOperator,
    pipelines: Pipelines,
    world: KubeRay,
    tmp_path: Path,
    jump: int,
) -> None:
    """The leader's, for as long as it leads; the other replica, which goes on after it, has the right time."""
    clock = tmp_path / "clock"
    clock.write_text("0")
    first, second = operator("one", clock=clock), operator("two")
    control_plane.wait_for(lambda: leader(control_plane) == "one", "the first to lead")
    stage = {"name": "a", "data": {"source": "/data/rows.jsonl"}}
    nowhere = {"head": {"nodeSelector": {"such": "node-is-nowhere"}}, "startTimeoutSeconds": 600}
    for name, seconds in (("runs", 60.0), ("briefly", 30.0)):
        world.rule(f"{name}-a-1", namespace=pipelines.namespace, seconds=seconds)
        pipelines.apply(pipeline(name, {**stage, "timeoutSeconds": 600}))
    for name, pause in (("again", 30), ("patient", 900)):
        world.rule(f"{name}-a-1", namespace=pipelines.namespace, exit_code=20, seconds=0.1)
        pipelines.apply(pipeline(name, stage, retry={"backoffSeconds": pause}))
    pipelines.apply(pipeline("held", stage, cluster=nowhere))
    expected = {
        "runs": "Running",
        "briefly": "Running",
        "again": "Backoff",
        "patient": "Backoff",
        "held": "Provisioning",
    }
    for name, phase in expected.items():
        pipelines.wait_stage(name, "a", phase)
    waiting = {name: pipelines.stage(name, "a") for name in ("patient", "held")}

    def unmoved(name: str) -> bool:
        """After another look at it, by whoever leads."""
        pipelines.kubectl("label", "camel", name, f"looked-at={leader(control_plane)}", "--overwrite")
        pipelines.apply(pipeline(f"after-{name}-{leader(control_plane)}", stage))
        pipelines.wait_phase(f"after-{name}-{leader(control_plane)}", "Succeeded")
        now, then = pipelines.stage(name, "a"), waiting[name]
        return all(now.get(field) == then.get(field) for field in ("phase", "attempts", "failures", "retry"))

    clock.write_text(str(jump))
    assert unmoved("patient") and unmoved("held")
    assert pipelines.wait_phase("again", "Succeeded")["stages"][0]["attempts"] == 2
    assert pipelines.wait_phase("briefly", "Succeeded")["attempts"] == 1
    assert leader(control_plane) == "one"
    assert first.process.alive and second.process.alive
    first.process.stop(graceful=True)
    assert leader(control_plane) in ("", "two")
    control_plane.wait_for(lambda: leader(control_plane) == "two", "the second to lead")
    assert unmoved("patient") and unmoved("held")
    assert pipelines.wait_phase("runs", "Succeeded")["attempts"] == 1
    for name in ("again", "briefly"):
        ended = datetime.fromisoformat(pipelines.status(name)["ended"])
        assert abs((datetime.now(UTC) - ended).total_seconds()) < 600


@pytest.mark.parametrize("component", ["kube-apiserver", "etcd", "kube-controller-manager", "kube-scheduler"])
def test_runs_survive_the_loss_of_a_part_of_the_control_plane(
    control_plane: ControlPlane, operator: StartOperator, pipelines: Pipelines, world: KubeRay, component: str
) -> None:
    replica = operator()
    for number in range(3):
        world.rule(f"p{number}-*", namespace=pipelines.namespace, seconds=(10.0, 2.0, 3.0)[number])
        pipelines.apply(pipeline(f"p{number}"))
    pipelines.wait_stage("p0", "a", "Running")
    control_plane.restart(component)
    for number in range(3):
        pipelines.wait_phase(f"p{number}", "Succeeded")
    assert replica.process.alive
    assert replica.page("/healthz").strip() == "ok"


def test_no_attempt_begins_while_the_submitters_job_of_the_last_may_still_make_a_pod(
    control_plane: ControlPlane, operator: StartOperator, pipelines: Pipelines, world: KubeRay
) -> None:
    operator()
    control_plane.signal("kube-controller-manager", signal.SIGSTOP)  # Jobs make no pods, and garbage stays
    try:
        pipelines.apply(pipeline("late", {"name": "a", "data": {"source": "/data"}}, cluster={"executor": "RayJob"}))
        pipelines.wait_stage("late", "a", "Provisioning")
        pipelines.wait(lambda: "late-a-1" in pipelines.kubectl("get", "jobs", "-o=name"), "the submitter's Job")
        # The garbage collector comes to the Job last.
        pipelines.kubectl("delete", "rayjob", "late-a-1")
        pipelines.kubectl("delete", "rayclusters,pods", "--selector=camel-ray.dev/pipeline=late")
        pipelines.wait(lambda: pipelines.kubectl("get", "rayjob", "late-a-2", "--ignore-not-found"), "the next attempt")
    finally:
        control_plane.restart("kube-controller-manager")
    assert pipelines.wait_phase("late", "Succeeded")["stages"][0]["failures"] == 1
    assert "job.batch/late-a-1" not in pipelines.kubectl("get", "jobs", "-o=name")


def test_a_watch_that_goes_silent_is_given_up_and_nothing_is_missed(
    control_plane: ControlPlane, operator: StartOperator, pipelines: Pipelines, proxy: FaultProxy
) -> None:
    replica = operator("operator", kubeconfig=proxy.kubeconfig(account(control_plane)))
    proxy.mute_watches = True
    pipelines.apply(pipeline("demo"))
    with pytest.raises(Exception, match="gave up waiting"):
        pipelines.wait(lambda: pipelines.phase("demo"), "a watch that is silent", seconds=3)
    proxy.mute_watches = False
    pipelines.wait_phase("demo", "Succeeded")
    assert replica.process.alive


def test_a_rotated_token_is_read_when_the_old_one_has_ended(
    control_plane: ControlPlane, operator: StartOperator, pipelines: Pipelines
) -> None:
    replica = operator("operator", kubeconfig=account(control_plane, seconds=60))
    refused = lambda: any(  # noqa: E731
        event["responseStatus"]["code"] == 401 and "/leases/camel-ray-operator" in event["requestURI"]
        for event in control_plane.audit_log()
    )
    control_plane.wait_for(refused, "the token to end")
    account(control_plane)
    pipelines.apply(pipeline("demo"))
    pipelines.wait_phase("demo", "Succeeded")
    assert replica.process.alive


@pytest.mark.parametrize("fault", ["429", "500", "503", "410", "refuse", "lose", "delay"])
def test_a_burst_of_faults_delays_pipelines_and_nothing_else(
    control_plane: ControlPlane, operator: StartOperator, pipelines: Pipelines, proxy: FaultProxy, fault: str
) -> None:
    replica = operator("operator", kubeconfig=proxy.kubeconfig(account(control_plane)))
    dice = random.Random(fault)
    hits: Counter[str] = Counter()

    def rule(method: str, path: str) -> Fault | None:
        if "/leases" in path or dice.random() < 0.5:
            return None
        hits[method] += 1
        if fault.isdecimal():
            return Fault("answer", status=int(fault), seconds=1 if fault == "429" else 0)
        return Fault(fault, seconds=0.3)  # type: ignore[arg-type]

    proxy.rule = rule
    proxy.drop_connections()
    for name in ("one", "two", "three"):
        pipelines.apply(pipeline(name))
    control_plane.wait_for(lambda: hits["POST"] + hits["PUT"] >= 5, "faults to have happened")
    proxy.rule = lambda method, path: None
    for name in ("one", "two", "three"):
        assert pipelines.wait_phase(name, "Succeeded")["attempts"] == 2
    assert replica.process.alive


def test_somebody_who_writes_the_pipeline_meanwhile_is_only_a_conflict(
    control_plane: ControlPlane, operator: StartOperator, pipelines: Pipelines, proxy: FaultProxy
) -> None:
    path = f"/apis/camel-ray.dev/v1alpha1/namespaces/{pipelines.namespace}/camelpipelines/demo"
    touched = 0

    def touch() -> None:
        nonlocal touched
        change = [{"op": "add", "path": "/metadata/labels", "value": {"touched": str(touched)}}]
        control_plane.request("PATCH", path, change, content="application/json-patch+json")
        touched += 1

    def rule(method: str, where: str) -> Fault | None:
        """Somebody else is a moment earlier with the first three writes."""
        mine = method == "PUT" and where.startswith(f"{path}/status") and touched < 3
        return Fault("delay", call=touch) if mine else None

    proxy.rule = rule
    operator("operator", kubeconfig=proxy.kubeconfig(account(control_plane)))
    pipelines.apply(pipeline("demo"))
    assert pipelines.wait_phase("demo", "Succeeded")["attempts"] == 2
    answers = Counter(
        event["responseStatus"]["code"]
        for event in control_plane.audit_log()
        if event["user"].get("username") == USER and event["requestURI"].startswith(f"{path}/status")
    )
    assert touched == 3
    assert answers[409] >= 3


def test_killed_before_or_after_each_of_its_writes_it_goes_on_where_it_was(
    control_plane: ControlPlane, operator: StartOperator, pipelines: Pipelines, proxy: FaultProxy, world: KubeRay
) -> None:
    """One pipeline per write and side of it: a failed attempt, a preempted one, then success."""
    replica = operator("operator", kubeconfig=proxy.kubeconfig(account(control_plane)))
    process = replica.process
    point, crashed = 0, True
    while crashed:
        for kind in ("refuse", "lose"):
            name = f"crash{point}{kind[0]}"
            world.rule(f"{name}-a-1", namespace=pipelines.namespace, exit_code=20, seconds=0.1)
            world.rule(f"{name}-a-2", namespace=pipelines.namespace, seconds=0.1)
            writes = 0
            crashed = False

            def rule(method: str, path: str, kind: Any = kind, survived: int = point) -> Fault | None:
                nonlocal writes, crashed
                if crashed or not is_write(method, path):
                    return None
                writes += 1
                crashed = writes > survived
                return Fault(kind, call=lambda: process.signal(signal.SIGKILL)) if crashed else None

            proxy.rule = rule
            pipelines.apply(pipeline(name, {"name": "a", "data": {"source": "/data/rows.jsonl"}}))
            control_plane.wait_for(
                lambda name=name: not process.alive or pipelines.phase(name) == "Succeeded", f"{name} to crash or end"
            )
            if not process.alive:
                process.wait()
                process.start()
            status = pipelines.wait_phase(name, "Succeeded")
            assert (status["attempts"], status["stages"][0]["failures"]) == (2, 1), name
        point += 1
    assert point > 6


def test_pipelines_that_an_older_version_stored_are_taken_over(
    control_plane: ControlPlane, operator: StartOperator, pipelines: Pipelines
) -> None:
    """What an older CRD allowed: fields nobody knows any more, a status without most of what is written today."""
    crd = yaml.safe_load((MANIFESTS / "crd.yaml").read_text())
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    for version in crd["spec"]["versions"]:
        version["schema"] = {"openAPIV3Schema": {**anything, "properties": {"status": anything, "spec": anything}}}
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=json.dumps(crd))
    statuses: dict[str, Any] = {
        "none": None,
        "empty": {},
        "phase": {"phase": "Running", "message": "as it was told then", "forgotten": {"a": [1, 2]}},
        "half": {
            "phase": "Running",
            "message": "as it was told then",
            "stages": [{"name": "a", "kind": "data", "phase": "Succeeded", "attempts": 1, "score": 0.5}],
        },
    }
    path = f"/apis/camel-ray.dev/v1alpha1/namespaces/{pipelines.namespace}/camelpipelines"
    for name, status in statuses.items():
        made = control_plane.request("POST", path, pipeline(name))
        if status is not None:
            control_plane.request("PUT", f"{path}/{name}/status", {**made, "status": status})
    install(control_plane)
    operator()
    for name in statuses:
        status = pipelines.wait_phase(name, "Succeeded")
        assert [stage["attempts"] for stage in status["stages"]] == [1, 1]
