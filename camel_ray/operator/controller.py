"""The loop around `reconcile`: takes keys from the queue, and carries plans out.

The order is what makes it safe. The status goes first, guarded by the version of the pipeline the decision was made
on: if anything has changed since, the write is refused and nothing of the plan happens. Operations come after, and
each may be repeated: names are deterministic, creation is once, deletion names the uid. So a crash, a lost answer or a
second operator at any point leads to the same end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from camel_ray.api.status import PipelineStatus, StageStatus
from camel_ray.operator import logs
from camel_ray.operator.caches import Caches
from camel_ray.operator.clock import moment, seconds_since
from camel_ray.operator.evidence import clean
from camel_ray.operator.kinds import CAMEL_PIPELINE, CHILDREN, RAY_CLUSTER, RAY_JOB
from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.errors import AlreadyExists, Conflict, Forbidden, KubeError, NotFound
from camel_ray.operator.kube.events import EventRecorder
from camel_ray.operator.kube.kinds import JOB, POD
from camel_ray.operator.kube.queue import WorkQueue
from camel_ray.operator.metrics import Metrics
from camel_ray.operator.model import Create, Delete, Plan, Settings, Snapshot, has_ended
from camel_ray.operator.names import PIPELINE, STAGE
from camel_ray.operator.reconcile import read_status, reconcile

log = logging.getLogger("camel_ray.operator")

MINOR_SECONDS = 3.0
"""Shortest time between two status writes that only tell more words: most waits end before they are worth a write."""
NEXT_SECONDS = 0.5
"""How soon to look again after a status write: what a decision leads to may be the next decision."""
ECHO_SECONDS = 60.0
"""How long a creation is remembered while its echo is on the way."""
SHARED_SECONDS = 600.0
"""The same for what no watch brings, and all attempts share: if somebody deletes it meanwhile, it comes again with the
attempt after that.
"""
_WATCHED = (JOB.name, RAY_JOB.name)
_UNKNOWN_KIND = "cannot find RESTMapping"
"""The admission plugin OwnerReferencesPermissionEnforcement says so for up to half a minute after a kind was installed:
a first pipeline should not wait longer than that, as it would with the growing delays of other refusals."""


class NotYet(Exception):
    """An operation has to wait for something that is on its way out."""


class NameTaken(NotYet):
    """Somebody else's object has the name of one of ours: the user has to know. `name`: it, if it may stay for ever."""

    def __init__(self, words: str, name: str) -> None:
        super().__init__(words)
        self.name = name


@dataclass(frozen=True)
class _Trouble:
    words: str = ""
    taken: str = ""


@dataclass(frozen=True)
class _Made:
    owner: str
    until: float


class Controller:
    """Reconciles pipelines with `workers` threads while `leads()` says so."""

    def __init__(
        self,
        client: Client,
        caches: Caches,
        queue: WorkQueue,
        recorder: EventRecorder,
        metrics: Metrics,
        settings: Callable[[], Settings],
        *,
        leads: Callable[[], bool],
        workers: int = 16,
    ) -> None:
        self._client, self._caches, self._queue = client, caches, queue
        self._recorder, self._metrics, self._settings = recorder, metrics, settings
        self._leads = leads
        self._lock = threading.Lock()
        self._made: OrderedDict[tuple[str, str, str], _Made] = OrderedDict()
        self._shared: OrderedDict[tuple[str, str, str], _Made] = OrderedDict()
        """What was created by kind, namespace and name, the oldest first: what a watch brings, and what none does."""
        self._troubles: dict[str, _Trouble] = {}
        self._written: dict[str, float] = {}
        self._threads = [
            threading.Thread(target=self._work, name=f"reconcile-{i}", daemon=True) for i in range(workers)
        ]

    def start(self) -> None:
        """Look at every pipeline once, then at those that change."""
        for key in list(self._caches.keys()):
            self._queue.add(key)
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait for the workers, after the queue was shut down."""
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (key := self._queue.get()) is not None:
            namespace, _, name = key.partition("/")
            with logs.context(namespace=namespace, pipeline=name):
                try:
                    self._reconcile(key)
                finally:
                    self._queue.done(key)

    def _reconcile(self, key: str) -> None:
        if not self._leads():
            self._queue.add_after(key, 1.0)
            return
        try:
            with self._metrics.reconcile() as timer:
                again = self.reconcile_once(key)
                if again is not None:
                    timer.result = "requeue_after"
        except Conflict:
            # Somebody wrote the pipeline meanwhile; the watch brings the new version, and this makes sure.
            self._queue.retry(key)
        except NotYet:
            self._queue.add_after(key, 2.0)
        except KubeError:
            self._queue.retry(key)
        except Exception:
            log.exception("bug: this pipeline cannot be reconciled now; it is tried again later")
            self._queue.retry(key)
        else:
            self._queue.forget(key)
            if again is not None:
                self._queue.add_after(key, again)

    def reconcile_once(self, key: str) -> float | None:
        """Bring one pipeline a step further; returns when to look again, in seconds. Raises KubeError, NotYet."""
        with self._lock:
            trouble = self._troubles.get(key, _Trouble())
        snapshot = self._caches.snapshot(key, self._settings(), trouble.words, trouble.taken)
        if snapshot is None:
            self._forget(key)
            return None
        plan = reconcile(snapshot)
        before = read_status(snapshot.object)
        operations = [operation for operation in plan.operations if not self._is_made(snapshot, operation)]
        with logs.context(**plan.fields), _logged():
            if plan.delete_self:
                self._delete_expired(snapshot)
                return None
            self._verify(snapshot, plan)
            wait = self._write(key, snapshot, before, plan, creates=any(isinstance(o, Create) for o in operations))
            if wait is not None:
                return wait
            self._tell(snapshot, plan)  # now: what follows may fail, and the next plan has other notes
            for operation in operations:
                if not self._leads():  # woken up after a long stop, or cut off: another one decides now
                    return NEXT_SECONDS
                self._carry_out(key, snapshot, operation)
            with self._lock:
                self._troubles.pop(key, None)
        if plan.status == before:
            return plan.requeue_seconds
        return min(NEXT_SECONDS, plan.requeue_seconds or NEXT_SECONDS)

    def _delete_expired(self, snapshot: Snapshot) -> None:
        """Delete a pipeline that was kept long enough, unless it has changed since: somebody may have use for it."""
        metadata = snapshot.object["metadata"]
        if self._leads():
            self._client.delete(
                CAMEL_PIPELINE,
                metadata["name"],
                metadata["namespace"],
                uid=metadata["uid"],
                version=metadata["resourceVersion"],
            )

    def _verify(self, snapshot: Snapshot, plan: Plan) -> None:
        """Ask the API itself for what the plan takes for gone: caches may lag behind. Raises NotYet if it is not."""
        metadata = snapshot.object["metadata"]
        for claim in plan.gone:
            try:
                there = self._client.get(CHILDREN[claim.kind], claim.name, metadata["namespace"])
            except NotFound:
                continue
            if claim.uid == there["metadata"]["uid"] or (claim.uid is None and metadata["uid"] in _owners(there)):
                raise NotYet(f"{claim.kind} {claim.name} is not gone; the cache lags behind")

    def _write(
        self, key: str, snapshot: Snapshot, before: PipelineStatus, plan: Plan, *, creates: bool
    ) -> float | None:
        """Write the status if it changed; returns how long to wait first if it can wait, with the whole plan.

        A plan that creates something is written in any case: that changes nothing, and is refused if the decision was
        made on an old copy.
        """
        if plan.status == before and not creates:
            return None
        metadata = snapshot.object["metadata"]
        if not plan.operations and not plan.notes and _weight(plan.status) == _weight(before):
            left = self._written.get(key, 0.0) + MINOR_SECONDS - time.monotonic()
            if left > 0:
                return min(left, plan.requeue_seconds or left)
        written = self._client.replace_status(
            CAMEL_PIPELINE,
            {
                "apiVersion": snapshot.object["apiVersion"],
                "kind": snapshot.object["kind"],
                "metadata": {name: metadata[name] for name in ("name", "namespace", "uid", "resourceVersion")},
                "status": plan.status.wire(),
            },
        )
        self._caches.put(written)
        self._written[key] = time.monotonic()
        self._count(before, plan.status)
        if plan.status.phase != before.phase:
            log.info("%s: %s", plan.status.phase, plan.status.message)
        return None

    def _carry_out(self, key: str, snapshot: Snapshot, operation: Create | Delete) -> None:
        metadata = snapshot.object["metadata"]
        if isinstance(operation, Delete):
            self._delete(operation, metadata["namespace"], metadata["uid"])
            return
        try:
            self._create(operation, metadata["namespace"], metadata["uid"])
        except NameTaken as taken:
            with self._lock:
                self._troubles[key] = _Trouble(str(taken), taken.name)
            raise
        except (Conflict, NotYet):
            raise
        except KubeError as error:
            missing = isinstance(error, NotFound) and operation.manifest["kind"] == "RayJob"
            words = "KubeRay is not installed; install it, or set cluster.executor to Job" if missing else clean(error)
            with self._lock:
                self._troubles[key] = _Trouble(words)
            if isinstance(error, Forbidden) and _UNKNOWN_KIND in error.message:
                raise NotYet(words) from error
            raise

    def _is_made(self, snapshot: Snapshot, operation: Create | Delete) -> bool:
        """Whether it is a creation that succeeded a moment ago, whose echo has not arrived."""
        if isinstance(operation, Delete):
            return False
        metadata = snapshot.object["metadata"]
        place = _place(operation.manifest, metadata["namespace"])
        with self._lock:
            made = self._made.get(place) or self._shared.get(place)
        return made is not None and made.owner == metadata["uid"] and time.monotonic() < made.until

    def _create(self, operation: Create, namespace: str, owner: str) -> None:
        manifest = operation.manifest
        name = manifest["metadata"]["name"]
        # Jobs first: the pods that are asked for next are then all that there will be.
        for earlier in operation.after:
            self._end_job(namespace, earlier, owner, manifest["metadata"]["labels"])
        if operation.unless:
            self._wait_for_quiet(namespace, operation.unless)
        kind = CHILDREN[manifest["kind"]]
        try:
            self._caches.put(self._client.create(kind, manifest))
        except AlreadyExists:
            there = self._client.get(kind, name, namespace)
            owners = _owners(there)
            if owner not in owners:
                words = f"{manifest['kind']} {name} belongs to somebody else; it has to go first"
                # What a deleted pipeline of the same name has left behind goes by itself.
                leaves = "deletionTimestamp" in there["metadata"] or set(_owners(manifest).values()) & set(
                    owners.values()
                )
                raise NameTaken(words, "" if leaves else name) from None
            if "deletionTimestamp" in there["metadata"]:
                raise NotYet(f"{manifest['kind']} {name} is being deleted") from None
        else:
            log.info("created %s %s", manifest["kind"], name)
        self._remember(_place(manifest, namespace), owner)

    def _remember(self, place: tuple[str, str, str], owner: str) -> None:
        seconds, memory = (ECHO_SECONDS, self._made) if place[0] in _WATCHED else (SHARED_SECONDS, self._shared)
        now = time.monotonic()
        with self._lock:
            memory[place] = _Made(owner, now + seconds)
            memory.move_to_end(place)
            while next(iter(memory.values())).until < now:
                memory.popitem(last=False)

    def _delete(self, operation: Delete, namespace: str, owner: str) -> None:
        place = (operation.kind, namespace, operation.name)
        with self._lock:
            self._made.pop(place, None)
            self._shared.pop(place, None)
        kind, uid = CHILDREN[operation.kind], operation.uid
        if uid is None:
            # Users choose the names of pipelines, and so our names: somebody else's object must not go by one.
            try:
                there = self._client.get(kind, operation.name, namespace)
            except NotFound:
                return
            if owner not in _owners(there):
                return
            uid = there["metadata"]["uid"]
        self._client.delete(kind, operation.name, namespace, uid=uid)
        log.info("deleted %s %s", operation.kind, operation.name)

    def _wait_for_quiet(self, namespace: str, selector: str) -> None:
        """Ask the API itself whether anything that matches may still work: our caches may lag behind."""
        pods, _ = self._client.list(POD, namespace, labels=selector)
        alive = [p["metadata"]["name"] for p in pods if p.get("status", {}).get("phase") not in ("Succeeded", "Failed")]
        if self._caches.ray_clusters.served and not alive:
            clusters, _ = self._client.list(RAY_CLUSTER, namespace, labels=selector)
            alive = [cluster["metadata"]["name"] for cluster in clusters]
        if alive:
            raise NotYet(f"{alive[0]} of an earlier attempt is still there")

    def _end_job(self, namespace: str, name: str, owner: str, labels: Mapping[str, str]) -> None:
        """Delete a Job of the same stage that may still make a pod. Raises NotYet if there was one."""
        try:
            job = self._client.get(JOB, name, namespace)
        except NotFound:
            return
        # KubeRay does not label the submitter's Job, only its pods; and the name alone may be somebody else's.
        theirs = job["spec"]["template"].get("metadata", {}).get("labels", {})
        ours = owner in _owners(job) or any(
            (o["kind"], o["name"]) == ("RayJob", name) for o in job["metadata"].get("ownerReferences", ())
        )
        if not ours or any(theirs.get(key) != labels[key] for key in (PIPELINE, STAGE)) or has_ended(job):
            return
        self._client.delete(JOB, name, namespace, uid=job["metadata"]["uid"])
        raise NotYet(f"Job {name} of an earlier attempt could still start a pod; it is deleted")

    def _tell(self, snapshot: Snapshot, plan: Plan) -> None:
        metadata = snapshot.object["metadata"]
        regarding = {
            "apiVersion": snapshot.object["apiVersion"],
            "kind": snapshot.object["kind"],
            **{name: metadata[name] for name in ("name", "namespace", "uid", "resourceVersion")},
        }
        for note in plan.notes:
            self._recorder.record(regarding, note.type, note.reason, note.message, "Reconcile")

    def _count(self, before: PipelineStatus, after: PipelineStatus) -> None:
        """Metrics of what this write made known."""
        for stage in after.stages:
            old = before.stage_named(stage.name) or StageStatus(name=stage.name, kind=stage.kind)
            known = {attempt.number for attempt in old.history}
            for ended in stage.history:
                if ended.number not in known:
                    seconds = seconds_since(ended.started, moment(ended.ended))
                    self._metrics.attempt_ended(stage.kind, ended.outcome, seconds)
            now, then = stage.current, old.current
            if now and now.admitted and not (then and then.admitted) and old.phase == "Queued":
                self._metrics.attempt_queued(stage.kind, seconds_since(now.created, moment(now.admitted)))
            if now and now.running and not (then and then.running):
                self._metrics.attempt_running(stage.kind, seconds_since(now.created, moment(now.running)))

    def _forget(self, key: str) -> None:
        with self._lock:
            self._troubles.pop(key, None)
            self._written.pop(key, None)


@contextmanager
def _logged() -> Iterator[None]:
    """Says what keeps a plan from being carried out, where the log knows of which stage and attempt it is."""
    try:
        yield
    except Conflict:
        raise
    except NotYet as wait:
        log.info("waits: %s", wait)
        raise
    except KubeError as error:
        log.warning("the API server refused: %s", clean(error))
        raise


def _place(manifest: Mapping[str, Any], namespace: str) -> tuple[str, str, str]:
    return manifest["kind"], namespace, manifest["metadata"]["name"]


def _owners(thing: Mapping[str, Any]) -> dict[str, str]:
    """Uids and names of its owners."""
    return {reference["uid"]: reference["name"] for reference in thing["metadata"].get("ownerReferences", ())}


def _weight(status: PipelineStatus) -> tuple[object, ...]:
    """What of a status is worth writing at once."""
    on_the_way: Mapping[str, str] = {"Starting": "Provisioning"}
    stages = [
        (s.name, on_the_way.get(s.phase, s.phase), s.attempts, s.current and s.current.stop) for s in status.stages
    ]
    return status.phase, status.handled_request, tuple(stages)
