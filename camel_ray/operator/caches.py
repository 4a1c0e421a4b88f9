"""What the operator keeps in memory of the cluster, and the snapshot of one pipeline made from it.

Every kind is watched by a label the operator sets, and trimmed to what is read, so that memory grows with our own
objects and not with the cluster. Whatever changes leads to a key (`namespace/name` of a pipeline) in the work queue.

Of a namespace in which we may not read one of the kinds (403) there are no snapshots: its pipelines wait, as a child
that we cannot see is none that is gone. The other namespaces go on.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, get_args

import orjson
from pydantic import ValidationError

from camel_ray.api.load import load_pipeline_text
from camel_ray.api.operator_config import OperatorConfig
from camel_ray.api.pipeline import CamelPipeline
from camel_ray.api.status import TERMINAL, PipelinePhase
from camel_ray.errors import SpecError
from camel_ray.operator import trim
from camel_ray.operator.kinds import CAMEL_PIPELINE, OLDER_WORKLOADS, RAY_CLUSTER, RAY_JOB, WORKLOAD
from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.kinds import CORE_EVENT, JOB, POD, Kind
from camel_ray.operator.kube.reflector import Reflector, Store
from camel_ray.operator.model import AttemptView, Object, Settings, Snapshot
from camel_ray.operator.names import ATTEMPT, PIPELINE, SELECTOR, STAGE
from camel_ray.operator.problems import cluster_problems

GONE_SECONDS = 900.0
"""How long the last words of a deleted pod are kept."""
_GONE_PODS = 100  # per pipeline
_PARSED = 128
_EVENT_KINDS = ("RayJob", "RayCluster", "Job")


class Changed(Protocol):
    """Told, from any thread, that a pipeline needs a look."""

    def __call__(self, key: str, *, first: bool = False) -> None:
        """`first`: before others, as nobody has looked at it yet."""


class Caches:
    """All watches of one operator. They call `changed` when a pipeline needs a look."""

    def __init__(self, client: Client, namespaces: Sequence[str | None], changed: Changed) -> None:
        self._changed, self._clock, self._namespaces = changed, client.clock, namespaces
        self._lock = threading.Lock()
        self._gone: defaultdict[str, dict[str, tuple[float, Object]]] = defaultdict(dict)
        """Last words of deleted pods, by pipeline and pod."""
        self._parsed: OrderedDict[tuple[str, int], tuple[OperatorConfig, CamelPipeline | None, str]] = OrderedDict()
        """By uid and generation, with the configuration that it was judged by."""

        def reflect(kind: Kind, heard: Callable[..., None], keep: Callable[..., Any], **more: Any) -> Reflector:
            watched: dict[str, Any] = {"namespaces": namespaces, "again": self._look_again}
            return Reflector(client, kind, trim=keep, changed=heard, **watched, **more)

        ours: dict[str, Any] = {"labels": SELECTOR, "indexes": {"pipeline": _keys_by_label}}
        owned = {"indexes": {"owner": _owner_uids}}
        about = {"indexes": {"about": _about}, "bookmarks": False}
        by_phase: dict[str, Any] = {"indexes": {"phase": lambda thing: [phase_of(thing)]}}
        self.pipelines = reflect(CAMEL_PIPELINE, self._pipeline_changed, trim.pipeline, **by_phase)
        self.jobs = reflect(JOB, self._child_changed, trim.job, **ours)
        self.pods = reflect(POD, self._pod_changed, trim.pod, **ours)
        self.ray_jobs = reflect(RAY_JOB, self._child_changed, trim.ray_job, **ours)
        self.ray_clusters = reflect(RAY_CLUSTER, self._child_changed, trim.ray_cluster, **ours)
        self.workloads = reflect(WORKLOAD, self._workload_changed, trim.workload, older=OLDER_WORKLOADS, **owned)
        self._events = [
            reflect(
                CORE_EVENT, self._event_heard, trim.event, fields=f"type=Warning,involvedObject.kind={kind}", **about
            )
            for kind in _EVENT_KINDS
        ]

    @property
    def reflectors(self) -> Mapping[str, Reflector]:
        """All watches, by a name for metrics and health."""
        named = {
            r.kind.plural: r
            for r in (self.pipelines, self.jobs, self.pods, self.ray_jobs, self.ray_clusters, self.workloads)
        }
        return {**named, **{f"events/{kind}": r for kind, r in zip(_EVENT_KINDS, self._events, strict=True)}}

    def start(self) -> None:
        """Begin to watch."""
        for reflector in self.reflectors.values():
            reflector.start()

    def stop(self) -> None:
        """End all watches."""
        for reflector in self.reflectors.values():
            reflector.stop()

    @property
    def synced(self) -> bool:
        """Whether every watch has seen everything once that we may read, and that is something."""
        return not self.missing()

    def missing(self) -> str:
        """What is not seen, in one sentence; empty if decisions can be made, in one namespace at least."""
        waiting = [name for name, reflector in self.reflectors.items() if reflector.waiting]
        if waiting:
            return f"not yet seen: {', '.join(waiting)}"
        if any(self._readable(namespace) for namespace in self._namespaces):
            return ""
        unread = [name for name, reflector in self.reflectors.items() if not reflector.synced]
        return f"the API server forbids to read {', '.join(unread) or 'something in each namespace'}; see the log"

    def _readable(self, namespace: str | None) -> bool:
        return all(reflector.readable(namespace) for reflector in self.reflectors.values())

    def look_at_all(self) -> None:
        """All pipelines need a look: what decisions rest on beside them is different."""
        self._look_again(None)

    def _look_again(self, namespace: str | None) -> None:
        for place, name in self.pipelines.store.names():
            if namespace in (None, place):
                self._changed(f"{place}/{name}")

    def keys(self) -> list[str]:
        """Keys of all pipelines."""
        return ["/".join(key) for key in self.pipelines.store.names()]

    def phases(self) -> Mapping[PipelinePhase, int]:
        """Number of pipelines per phase."""
        counted = self.pipelines.store.counts("phase")
        return {phase: counted.get(phase, 0) for phase in get_args(PipelinePhase)}

    def pipeline(self, namespace: str, name: str) -> Object | None:
        """A pipeline, if there is one."""
        return self.pipelines.store.get(namespace, name)

    def put(self, thing: Object) -> None:
        """Take in what the API answered to a write of ours, before the watch brings it."""
        for reflector in (self.pipelines, self.jobs, self.ray_jobs):
            if reflector.kind.name == thing["kind"]:
                reflector.store.put_if_newer(dict(thing))

    def snapshot(self, key: str, settings: Settings, trouble: str, taken: str = "") -> Snapshot | None:
        """Everything known of a pipeline; None if there is none, or nothing can be said now of its namespace."""
        namespace, name = key.split("/")
        pipeline = self.pipeline(namespace, name)
        if pipeline is None or not self._readable(namespace):
            return None
        parsed, problem = self._parse(pipeline, settings)
        return Snapshot(
            object=pipeline,
            pipeline=parsed,
            problem=problem,
            attempts=self._attempts(key, pipeline["metadata"]),
            now=self._clock.now(),
            settings=settings,
            trouble=trouble,
            taken=taken,
        )

    def _attempts(self, key: str, owner: Object) -> tuple[AttemptView, ...]:
        objects: dict[tuple[str, int], Object] = {}
        pods: defaultdict[tuple[str, int], list[Object]] = defaultdict(list)
        clusters: defaultdict[tuple[str, int], list[Object]] = defaultdict(list)
        for child in [*self.jobs.store.by("pipeline", key), *self.ray_jobs.store.by("pipeline", key)]:
            # A namesake's children are on their way out, and none of ours. A submitter's Job belongs to a RayJob.
            if owner["uid"] in _owner_uids(child) and (place := _place(child)):
                objects[place] = child
        for cluster in self.ray_clusters.store.by("pipeline", key):
            if place := _place(cluster):
                clusters[place].append(cluster)
        # What a deleted pipeline of the same name left behind matters while it works, but not for its last words.
        gone = [pod for pod in self._gone_pods(key) if _created(pod) >= owner.get("creationTimestamp", "")]
        for pod in [*self.pods.store.by("pipeline", key), *gone]:
            if place := _place(pod):
                pods[place].append(pod)
        return tuple(
            self._view(place, objects.get(place), pods[place], clusters[place])
            for place in sorted({*objects, *pods, *clusters})
        )

    def _view(
        self, place: tuple[str, int], child: Object | None, pods: list[Object], clusters: list[Object]
    ) -> AttemptView:
        about = [*([child] if child else []), *clusters]
        events = [event for thing in about for r in self._events for event in r.store.by("about", key_of(thing))]
        owners = self.workloads.store.by("owner", child["metadata"]["uid"]) if child else []
        return AttemptView(
            stage=place[0],
            number=place[1],
            object=child,
            pods=tuple(pods),
            clusters=tuple(clusters),
            events=tuple(sorted(events, key=lambda event: str(event.get("lastTimestamp") or ""))),
            workload=owners[0] if owners else None,
            kueue=self.workloads.served,
        )

    def _parse(self, pipeline: Object, settings: Settings) -> tuple[CamelPipeline | None, str]:
        """The pipeline's models, and why they cannot run here, if so. The newest are kept: a spec is read often."""
        metadata = pipeline["metadata"]
        known = (metadata["uid"], metadata.get("generation", 0))
        with self._lock:
            kept = self._parsed.get(known)
            if kept is not None and kept[0] is settings.config:
                self._parsed.move_to_end(known)
                return kept[1:]
        parsed = parse(pipeline)
        made = (None, parsed) if isinstance(parsed, str) else (parsed, "; ".join(cluster_problems(parsed, settings)))
        with self._lock:
            self._parsed[known] = (settings.config, *made)
            while len(self._parsed) > _PARSED:
                self._parsed.popitem(last=False)
        return made

    def _gone_pods(self, key: str) -> list[Object]:
        oldest = time.monotonic() - GONE_SECONDS
        with self._lock:
            return [pod for at, pod in self._gone[key].values() if at >= oldest] if key in self._gone else []

    def _pipeline_changed(self, old: Object | None, new: Object | None) -> None:
        seen = new or old
        if seen is not None:
            if phase_of(seen) in TERMINAL or new is None:  # nobody will ask any more
                with self._lock:
                    self._gone.pop(key_of(seen), None)
            self._changed(key_of(seen), first=new is not None and not new.get("status"))

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        if new is None and old is not None:
            with self._lock:
                for key in _keys_by_label(old):
                    owner = self.pipelines.store.get(*key.split("/"))
                    if owner is None or phase_of(owner) in TERMINAL:
                        continue
                    kept = self._gone[key]
                    kept[old["metadata"]["name"]] = (time.monotonic(), {**old, "gone": True})
                    while len(kept) > _GONE_PODS:
                        del kept[next(iter(kept))]
        self._child_changed(old, new)

    def _child_changed(self, old: Object | None, new: Object | None) -> None:
        for key in _keys_by_label(new or old or {}):
            self._changed(key)

    def _workload_changed(self, old: Object | None, new: Object | None) -> None:
        seen = new or old or {}
        for owner in seen.get("metadata", {}).get("ownerReferences", ()):
            self._look_at(owner.get("kind", ""), seen["metadata"]["namespace"], owner.get("name", ""))

    def _event_heard(self, old: Object | None, new: Object | None) -> None:
        about = (new or {}).get("involvedObject")
        if about:
            self._look_at(about.get("kind", ""), about.get("namespace", ""), about.get("name", ""))

    def _look_at(self, kind: str, namespace: str, name: str) -> None:
        stores: Mapping[str, Store] = {
            "RayJob": self.ray_jobs.store,
            "RayCluster": self.ray_clusters.store,
            "Job": self.jobs.store,
        }
        store = stores.get(kind)
        # A submitter's Job is named like its RayJob, and carries no label of ours.
        child = store and (store.get(namespace, name) or self.ray_jobs.store.get(namespace, name))
        if child:
            self._child_changed(None, child)


def parse(pipeline: Object) -> CamelPipeline | str:
    """The models of a pipeline object, or the sentences that say why it has none."""
    metadata = pipeline["metadata"]
    document = {
        "apiVersion": pipeline["apiVersion"],
        "kind": pipeline["kind"],
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        "spec": pipeline.get("spec"),
    }
    text = orjson.dumps(document).decode()
    try:
        return CamelPipeline.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    except ValidationError:
        pass  # the loader, which is slower, has the sentences
    try:
        return load_pipeline_text(text, metadata["name"])
    except SpecError as error:
        return "; ".join(error.problems)


def phase_of(pipeline: Object) -> str:
    """The phase that its status tells; a new one is Pending."""
    phase: str = (pipeline.get("status") or {}).get("phase", "Pending")
    return phase


def key_of(thing: Object) -> str:
    """`namespace/name`."""
    return f"{thing['metadata']['namespace']}/{thing['metadata']['name']}"


def _keys_by_label(thing: Object) -> Iterable[str]:
    name = thing.get("metadata", {}).get("labels", {}).get(PIPELINE)
    return [f"{thing['metadata']['namespace']}/{name}"] if name else []


def _owner_uids(thing: Object) -> list[str]:
    return [owner["uid"] for owner in thing["metadata"].get("ownerReferences", ())]


def _about(event: Object) -> list[str]:
    about = event["involvedObject"]
    return [f"{about.get('namespace', '')}/{about.get('name', '')}"]


def _created(thing: Object) -> str:
    """When it was made, as text that sorts by time."""
    return str(thing["metadata"].get("creationTimestamp", ""))


def _place(thing: Object) -> tuple[str, int] | None:
    """Stage and attempt number by the labels; None where somebody wrote labels that are none."""
    labels = thing["metadata"].get("labels", {})
    number = labels.get(ATTEMPT, "")
    return (labels[STAGE], int(number)) if STAGE in labels and number.isdecimal() else None
