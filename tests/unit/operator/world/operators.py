"""The controller around `reconcile`: caches that lag per kind, plans carried out with faults, crashes, several at once.

It does what the real one does: the status first, guarded by the resource version the decision was made on, then the
operations in order, and it gives up at the first error. The callbacks let the checks look at each write.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from unit.operator.world.api import KINDS, Api, Obj, Refused, is_live_pod, owner
from unit.operator.world.cluster import PIPELINE_NAME

from camel_ray.api.pipeline import CamelPipeline
from camel_ray.operator.model import AttemptView, Create, Delete, Plan, Settings, Snapshot
from camel_ray.operator.names import ATTEMPT, STAGE
from camel_ray.operator.problems import cluster_problems
from camel_ray.operator.reconcile import reconcile

SETTINGS = Settings(stop_seconds=300.0, silent_seconds=300.0, start_margin_seconds=60.0)


RETRY_SECONDS = 2.0
"""When the queue brings back what could not be carried out."""


class Fault(NamedTuple):
    """Where carrying out a plan goes wrong: at its `step`th write (0 is the status)."""

    step: int
    landed: bool
    """Whether the write took effect all the same: a lost answer."""
    crash: bool
    """Whether the operator dies, and its memory with it."""


class Caches:
    """What one operator knows of the cluster: per kind, a prefix of the log."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._read: dict[str, int] = {}
        self._known: dict[str, dict[str, Obj]] = {}
        self.gone: dict[str, Obj] = {}
        """Last words of pods that were seen to go."""
        for kind in KINDS:
            self._read[kind] = len(api.log[kind])
            self._known[kind] = {o["metadata"]["name"]: o for o in api.all(kind)}

    def behind(self, kind: str) -> int:
        """Changes of the kind not heard of yet."""
        return len(self._api.log[kind]) - self._read[kind]

    def hear(self, kind: str, count: int) -> int:
        """Read up to `count` changes; returns how many there were."""
        news = self._api.log[kind][self._read[kind] : self._read[kind] + count]
        self._read[kind] += len(news)
        known = self._known[kind]
        for name, obj in news:
            if obj is not None:
                known[name] = obj
            elif name in known:
                old = known.pop(name)
                if kind == "Pod":
                    self.gone[name] = {**old, "gone": True}
        return len(news)

    def all(self, kind: str) -> list[Obj]:
        return list(self._known[kind].values())

    def get(self, kind: str, name: str) -> Obj | None:
        return self._known[kind].get(name)


class Operator:
    """One process of the operator."""

    def __init__(
        self,
        api: Api,
        name: str,
        *,
        after_write: Callable[[Obj, Plan], None],
        before_create: Callable[[Obj], None],
        created: Callable[[Obj], None],
        deleted: Callable[[Obj], None],
    ) -> None:
        self.api, self.name = api, name
        self._after_write, self._before_create, self._created, self._deleted = (
            after_write,
            before_create,
            created,
            deleted,
        )
        self.caches = Caches(api)
        self.plan: tuple[Snapshot, Plan] | None = None
        self.dirty = True
        """Whether something it watches has changed since it last looked."""
        self.due: datetime | None = None
        """When it has to look again."""
        self.deaf: set[str] = set()
        """Kinds whose watch hangs."""
        self.trouble = ""
        """Why the API server refused the last creation."""

    def restart(self) -> None:
        """Die, and begin again with what is there now."""
        self.caches, self.plan, self.dirty, self.due = Caches(self.api), None, True, None
        self.deaf, self.trouble = set(), ""

    def hear(self, kind: str, count: int) -> None:
        if kind not in self.deaf and self.caches.hear(kind, count):
            self.dirty = True

    def hear_all(self) -> None:
        for kind in KINDS:
            self.hear(kind, 10**9)

    def decide(self, now: datetime) -> None:
        """Make a plan of what the caches hold; it is carried out later."""
        self.dirty, self.due, self.plan = False, None, None
        snapshot = self._snapshot(now)
        if snapshot is not None:
            self.plan = snapshot, reconcile(snapshot)

    def carry_out(self, now: datetime, fault: Fault | None = None) -> str:
        """Carry out the plan; returns how that went."""
        if self.plan is None:
            return "nothing to do"
        (snapshot, plan), self.plan = self.plan, None
        if plan.requeue_seconds is not None:
            self.due = later(now, plan.requeue_seconds)
        for claim in plan.gone:
            there = self.api.get(claim.kind, claim.name)
            if there is not None and claim.uid in (None, there["metadata"]["uid"]):
                self.due = later(now, RETRY_SECONDS)
                return f"{claim.name} is not gone"
        steps: list[Callable[[], str]] = []
        wanted = plan.status.wire()
        guarded = any(isinstance(o, Create) for o in plan.operations)
        if wanted != snapshot.object.get("status", {}) or guarded:
            steps.append(lambda: self._write_status(snapshot, plan, wanted))
        steps += [lambda operation=operation: self._operate(operation) for operation in plan.operations]
        for i, step in enumerate(steps):
            hit = fault if fault is not None and fault.step == i else None
            trouble = "" if hit and not hit.landed else step()
            if hit and hit.crash:
                self.restart()
                return f"crashed at write {i}"
            if hit and i and not hit.landed:
                self.trouble = "forbidden: exceeded quota"
            if hit or trouble:
                self.due = later(now, RETRY_SECONDS)
                return trouble or f"write {i} failed"
        self.trouble = ""
        return "done"

    def _write_status(self, snapshot: Snapshot, plan: Plan, wanted: Obj) -> str:
        version = snapshot.object["metadata"]["resourceVersion"]
        before = self.api.get("CamelPipeline", PIPELINE_NAME)
        try:
            self.api.replace_status("CamelPipeline", PIPELINE_NAME, json.loads(json.dumps(wanted)), version=version)
        except Refused as refused:
            return str(refused)
        assert before is not None
        self._after_write(before, plan)
        return ""

    def _operate(self, operation: Create | Delete) -> str:
        if isinstance(operation, Delete):
            return self._delete(operation.kind, operation.name, operation.uid)
        if operation.unless and self._matches_live(operation.unless):
            return "older pods are not gone"
        manifest: Obj = dict(operation.manifest)
        there = self.api.get(manifest["kind"], manifest["metadata"]["name"])
        if there is not None:
            ours = owner(there) == owner(manifest) and "deletionTimestamp" not in there["metadata"]
            return "" if ours else "AlreadyExists"
        if manifest["kind"] in ("RayJob", "Job"):
            self._before_create(manifest)
        made = self.api.create(manifest)
        if made["kind"] in ("RayJob", "Job"):
            self._created(made)
        return ""

    def _delete(self, kind: str, name: str, uid: str | None) -> str:
        there = self.api.get(kind, name)
        if there is None:
            return ""
        try:
            self.api.delete(kind, name, uid)
        except Refused as refused:
            return str(refused)
        if kind in ("RayJob", "Job"):
            self._deleted(there)
        return ""

    def _matches_live(self, selector: str) -> bool:
        wanted = dict(part.split("=") for part in selector.split(","))
        wanted.pop("app.kubernetes.io/managed-by", None)
        live = [p for p in self.api.all("Pod") if is_live_pod(p)] + self.api.all("RayCluster")
        return any(all(obj["metadata"]["labels"].get(k) == v for k, v in wanted.items()) for obj in live)

    def _snapshot(self, now: datetime) -> Snapshot | None:
        pipeline = self.caches.get("CamelPipeline", PIPELINE_NAME)
        if pipeline is None:
            return None
        parsed, problem = parse(json.dumps(pipeline["spec"], sort_keys=True))
        views = self._views(pipeline["metadata"]["uid"])
        return Snapshot(pipeline, parsed, problem, views, now, SETTINGS, self.trouble)

    def _views(self, uid: str) -> tuple[AttemptView, ...]:
        found: defaultdict[tuple[str, int], dict[str, Any]] = defaultdict(lambda: defaultdict(list))
        for kind in ("RayJob", "Job"):
            for obj in self.caches.all(kind):
                if owner(obj) == uid:
                    found[_place(obj)]["object"] = obj
        for cluster in self.caches.all("RayCluster"):
            found[_place(cluster)]["clusters"].append(cluster)
        for pod in [*self.caches.all("Pod"), *self.caches.gone.values()]:
            found[_place(pod)]["pods"].append(pod)
        return tuple(self._view(place, parts) for place, parts in sorted(found.items()))

    def _view(self, place: tuple[str, int], parts: dict[str, Any]) -> AttemptView:
        obj = parts.get("object")
        names = {o["metadata"]["name"] for o in [*([obj] if obj else []), *parts.get("clusters", ())]}
        events = [e for e in self.caches.all("Event") if e["involvedObject"]["name"] in names]
        workloads = [w for w in self.caches.all("Workload") if obj and owner(w) == obj["metadata"]["uid"]]
        return AttemptView(
            *place,
            object=obj,
            pods=tuple(parts.get("pods", ())),
            clusters=tuple(parts.get("clusters", ())),
            events=tuple(events),
            workload=workloads[0] if workloads else None,
        )


def later(now: datetime, seconds: float) -> datetime:
    return now + timedelta(seconds=seconds)


def _place(obj: Obj) -> tuple[str, int]:
    labels = obj["metadata"]["labels"]
    return labels[STAGE], int(labels[ATTEMPT])


@lru_cache(maxsize=256)
def parse(spec: str) -> tuple[CamelPipeline | None, str]:
    """The models of a spec, or why it has none."""
    metadata = {"name": PIPELINE_NAME, "namespace": "ns"}
    document = {"apiVersion": "camel-ray.dev/v1alpha1", "kind": "CamelPipeline", "metadata": metadata}
    try:
        pipeline = CamelPipeline.model_validate({**document, "spec": json.loads(spec)})
        return pipeline, "; ".join(cluster_problems(pipeline, SETTINGS))
    except ValueError as error:
        return None, f"the spec is wrong: {str(error)[:100]}"
