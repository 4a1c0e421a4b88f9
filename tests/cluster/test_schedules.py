"""Random schedules on a real apiserver: users, pods, network, operator and control plane, all at their worst.

Each pipeline has its own seeded course: how its attempts end, and what its user does meanwhile. Thirteen of them share
a round, four of which run as RayJobs of the played KubeRay. In each round two replicas of the operator are killed,
frozen, crashed in the middle of a write and lied to, and part of the control plane is restarted. Then everything calms
down. Each pipeline has to come to an end that its course allows, and nothing in the whole history, read back from etcd,
may break a rule of `rig.invariants`. More rounds: CAMEL_RAY_SCHEDULE_ROUNDS.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from kuberay_standin.launch import KubeRay
from rig.control_plane import ControlPlane, RequestError
from rig.history import brief, history
from rig.invariants import RESOURCES, violations
from rig.operator import ACCOUNT, NAMESPACE, Operator, forget_leader, install, leader
from rig.pipelines import Pipelines, pipeline
from rig.process import RigError
from rig.proxy import Fault, FaultProxy

ROUNDS = int(os.environ.get("CAMEL_RAY_SCHEDULE_ROUNDS", "4"))
PIPELINES = 13
RAY_PIPELINES = 4
"""How many of them have the executor RayJob."""
SECONDS = 15.0
"""How long the trouble lasts."""
RAY_CLUSTERS = "ray.io/rayclusters"
OWNED = ("rayjobs", "rayclusters", "jobs", "pods")
MERGE = "application/merge-patch+json"
FREE = ({"exit_code": 24}, {"events": [{"do": "evict", "pod": "pod"}]}, {"events": [{"do": "preempt", "pod": "pod"}]})
COSTLY = ({"exit_code": 20}, {"exit_code": 1}, {"exit_code": 137}, {"events": [{"do": "oom", "pod": "pod"}]})
FREE_RAY = (
    {"exit_code": 24},
    {"events": [{"do": "evict", "pod": "head"}]},
    {"events": [{"do": "preempt", "pod": "head"}]},
)
COSTLY_RAY = (
    *({"exit_code": code} for code in (20, 1, 137)),
    *({"events": [{"do": what, "pod": "head"}]} for what in ("oom", "delete", "dashboard-lost")),
    {"events": [{"do": "delete", "pod": "submitter"}]},
)
FINAL = {"exit_code": 12, "log": 'camel-ray-result: {"code": 12, "message": "no such column"}'}


@dataclass
class Course:
    """What happens to one pipeline."""

    name: str
    executor: str
    stages: tuple[str, ...]
    attempts: dict[str, list[dict[str, Any]]]
    """How the first attempts of each stage behave; those after them succeed."""
    edits: list[tuple[float, str]] = field(default_factory=list)
    """What its user does, and when."""
    ends: frozenset[str] = frozenset({"Succeeded"})
    """Phases it may come to; `gone` if it is deleted."""


def course(name: str, executor: str, dice: random.Random) -> Course:
    free, costly = (FREE_RAY, COSTLY_RAY) if executor == "RayJob" else (FREE, COSTLY)
    stages = tuple("abc"[: dice.randint(1, 3)])
    drawn: dict[str, list[dict[str, Any]]] = {}
    for stage in stages:
        # Three failures are within the default budget; what is free is without limit.
        bad = [dict(dice.choice(costly)) for _ in range(dice.choice((0, 0, 1, 2, 3)))]
        bad += [dict(dice.choice(free)) for _ in range(dice.choice((0, 0, 1)))]
        if executor == "RayJob":
            del bad[3:]  # KubeRay removes the evidence: what is free costs if no operator was there to see it
        dice.shuffle(bad)
        drawn[stage] = bad
    ends = {"Succeeded"}
    if dice.random() < 0.2:
        drawn[dice.choice(stages)].append(dict(FINAL))
        ends = {"Failed"}
    mine = Course(name, executor, stages, drawn)
    edit = dice.choice(("none", "none", "suspend", "suspend", "cancel", "retry", "again", "delete"))
    at, later = sorted(dice.uniform(0.0, SECONDS * 0.7) for _ in range(2))
    if edit == "suspend":
        mine.edits = [(at, "suspend"), (later, "resume")]
    elif edit == "again":
        mine.edits = [(at, f"retry {dice.choice(stages)} once"), (later, f"retry {dice.choice(stages)} twice")]
    elif edit != "none":
        mine.edits = [(at, {"cancel": "cancel - once", "retry": "retry - once"}.get(edit, edit))]
    # A stop or a retry may step over the attempt that would have failed for good, or come after the end.
    more = {"none": set(), "cancel": {"Cancelled", "Succeeded"}, "delete": {"gone"}}.get(edit, {"Succeeded"})
    mine.ends = frozenset({"gone"} if edit == "delete" else ends | more)
    return mine


class Trouble:
    """Two replicas, each behind its own proxy, and what is done to them."""

    def __init__(
        self, plane: ControlPlane, replicas: dict[str, tuple[Operator, FaultProxy]], dice: random.Random
    ) -> None:
        self._plane, self._replicas, self._dice = plane, replicas, dice

    def plan(self) -> list[tuple[float, Callable[[], None]]]:
        """What happens when."""
        dice, plan = self._dice, []
        for _ in range(11):
            at, name = dice.uniform(0.5, SECONDS), dice.choice(sorted(self._replicas))
            kind = dice.choice(("kill", "kill", "freeze", "crash", "crash", "crash", "faults", "faults", "drop"))
            if kind == "freeze":
                plan.append((at, self._sender(name, signal.SIGSTOP)))
                plan.append((at + dice.uniform(0.3, 3.0), self._sender(name, signal.SIGCONT)))
            elif kind == "faults":
                rate = dice.uniform(0.1, 0.6)
                plan.append((at, lambda name=name, rate=rate: self._faults(name, rate)))
                plan.append((at + dice.uniform(1.0, 3.0), lambda name=name: self._calm(name)))
            else:
                work: Callable[[str], None] = {"kill": self._kill, "crash": self._crash, "drop": self._drop}[kind]
                plan.append((at, lambda name=name, work=work: work(name)))
        component = dice.choice(("kube-apiserver", "etcd", "kube-controller-manager"))
        plan.append((dice.uniform(2.0, SECONDS), lambda: self._plane.restart(component)))
        return plan

    def revive(self) -> None:
        """Start replicas that have ended, as a Deployment does."""
        for operator, proxy in self._replicas.values():
            if not operator.process.alive:
                # This may run while the apiserver is away: then the lease is waited for.
                with suppress(OSError, RigError, http.client.HTTPException):
                    if leader(self._plane) == operator.identity and self._dice.random() < 0.7:
                        forget_leader(self._plane)  # else every kill costs the 15 s of a lease
                proxy.rule = lambda method, path: None
                operator.process.start()

    def end(self) -> None:
        """No more trouble."""
        for name, (operator, _) in self._replicas.items():
            operator.process.signal(signal.SIGCONT)
            self._calm(name)

    def _sender(self, name: str, number: int) -> Callable[[], None]:
        return lambda: self._replicas[name][0].process.signal(number)

    def _kill(self, name: str) -> None:
        self._replicas[name][0].process.stop()

    def _drop(self, name: str) -> None:
        self._replicas[name][1].drop_connections()

    def _calm(self, name: str) -> None:
        self._replicas[name][1].rule = lambda method, path: None

    def _crash(self, name: str) -> None:
        """It dies at its next write, before or after that is carried out."""
        operator, proxy = self._replicas[name]
        kind: Any = self._dice.choice(("refuse", "lose"))

        def rule(method: str, path: str) -> Fault | None:
            if method == "GET" or "/leases" in path or "/events" in path:
                return None
            return Fault(kind, call=lambda: operator.process.signal(signal.SIGKILL))

        proxy.rule = rule

    def _faults(self, name: str, rate: float) -> None:
        dice = random.Random(self._dice.random())

        def rule(method: str, path: str) -> Fault | None:
            if dice.random() > rate:
                return None
            kind: Any = dice.choice(("answer", "answer", "refuse", "lose", "delay"))
            status = dice.choice((410, 500) if "watch=" in path else (429, 500, 503))
            return Fault(kind, status=status, seconds=1 if status == 429 else 0.2)

        self._replicas[name][1].rule = rule


@pytest.fixture(scope="module")
def control_plane() -> Iterator[ControlPlane]:
    """One of our own: these tests break it."""
    with ControlPlane(history=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def world(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeRay]:
    install(control_plane)
    with KubeRay(control_plane, tmp_path_factory.mktemp("kuberay"), pace=0.02) as kuberay:
        yield kuberay


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_every_pipeline_comes_to_its_end_and_no_rule_is_broken(
    control_plane: ControlPlane, operator: Callable[..., Operator], namespace: str, world: KubeRay, seed: int
) -> None:
    dice = random.Random(seed)
    executors = ["RayJob"] * RAY_PIPELINES + ["Job"] * (PIPELINES - RAY_PIPELINES)
    courses = [course(f"p{seed}{number}", executor, dice) for number, executor in enumerate(executors)]
    pipelines = Pipelines(control_plane, namespace)
    with ExitStack() as stack:
        account = control_plane.service_account(NAMESPACE, ACCOUNT)
        replicas = {}
        for name in ("one", "two"):
            proxy = stack.enter_context(FaultProxy(control_plane))
            replicas[name] = operator(name, kubeconfig=proxy.kubeconfig(account)), proxy
        trouble = Trouble(control_plane, replicas, dice)
        plan = trouble.plan()
        for mine in courses:
            for stage, attempts in mine.attempts.items():
                for number, behaviour in enumerate(attempts, 1):
                    seconds = dice.uniform(0.2, 1.5)
                    world.rule(
                        f"{mine.name}-{stage}-{number}", namespace=namespace, **{"seconds": seconds, **behaviour}
                    )
            begin = dice.uniform(0.0, SECONDS / 3)
            plan.append((begin, lambda mine=mine: create(control_plane, namespace, mine)))
            plan += [
                (begin + at, lambda mine=mine, what=what: edit(pipelines, mine.name, what)) for at, what in mine.edits
            ]
        run(sorted(plan, key=lambda step: step[0]), trouble.revive)
        trouble.end()
        for mine in courses:
            try:
                control_plane.wait_for(
                    lambda mine=mine: trouble.revive() or end_of(pipelines, mine.name) in mine.ends,
                    f"{mine} to come to its end",
                    seconds=300,
                )
            except Exception as error:
                error.add_note(state_of(pipelines, mine.name))
                raise
        for operator_, _ in replicas.values():
            assert "bug:" not in operator_.process.log_tail(100_000)
    deleted = [mine.name for mine in courses if "gone" in mine.ends]
    control_plane.wait_for(
        lambda: not any(pipelines.list(kind, name) for name in deleted for kind in OWNED),
        "what deleted pipelines owned to be collected",
    )
    changes = [c for c in history(control_plane, *RESOURCES, RAY_CLUSTERS) if c.place.startswith(f"{namespace}/")]
    found = violations(change for change in changes if change.resource in RESOURCES)
    concerned = {mine.name for mine in courses if any(f"/{mine.name}" in problem for problem in found)}
    lines = [brief(c) for c in changes if c.place.partition("/")[2].startswith(tuple(f"{name}" for name in concerned))]
    assert not found, "\n".join([*found, "", *lines])


def create(control_plane: ControlPlane, namespace: str, mine: Course) -> None:
    stages = [{"name": stage, "data": {"source": "/data/rows.jsonl"}} for stage in mine.stages]
    path = f"/apis/camel-ray.dev/v1alpha1/namespaces/{namespace}/camelpipelines"
    insist(control_plane, "POST", path, pipeline(mine.name, *stages, cluster={"executor": mine.executor}))


def edit(pipelines: Pipelines, name: str, what: str) -> None:
    """What a user does."""
    path = f"/apis/camel-ray.dev/v1alpha1/namespaces/{pipelines.namespace}/camelpipelines/{name}"
    if what == "delete":
        insist(pipelines.plane, "DELETE", path)
    elif what in ("suspend", "resume"):
        insist(pipelines.plane, "PATCH", path, {"spec": {"suspend": what == "suspend"}})
    else:
        insist(pipelines.plane, "PATCH", path, {"metadata": {"annotations": {"camel-ray.dev/request": what}}})


def insist(plane: ControlPlane, method: str, path: str, body: object = None) -> None:
    """A request that is made until it is answered; that it was carried out before is an answer too."""

    def asked() -> bool:
        try:
            plane.request(method, path, body, content=MERGE if method == "PATCH" else "application/json")
        except RequestError as error:
            if error.status not in (404, 409):
                raise
        return True

    plane.wait_for(asked, f"an answer to {method} {path}")


def run(plan: list[tuple[float, Callable[[], None]]], between: Callable[[], None]) -> None:
    """Do everything when it is due."""
    began, pause = time.monotonic(), threading.Event()
    for at, work in plan:
        while (left := began + at - time.monotonic()) > 0:
            between()
            pause.wait(min(left, 0.3))
        work()


def end_of(pipelines: Pipelines, name: str) -> str:
    """Its final phase, `gone`, or nothing while it is on its way."""
    try:
        phase = pipelines.phase(name)
    except RequestError as error:
        if error.status == 404:
            return "gone"
        raise
    return phase if phase in ("Succeeded", "Failed", "Cancelled") else ""


def state_of(pipelines: Pipelines, name: str) -> str:
    try:
        return json.dumps(pipelines.get(name), indent=1)[:6000]
    except Exception as error:
        return f"{name}: {error}"
