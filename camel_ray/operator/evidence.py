"""What pods, RayClusters, events and queues say of an attempt: why it waits, and what ended its containers.

Pods of a Ray cluster vanish seconds after the end, and KubeRay's own status never names the cause. So their words are
read while they are there. Pure; called by `observe`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime

from camel_ray.api.status import FailureClass
from camel_ray.operator.clock import seconds_since, stamp
from camel_ray.operator.model import AttemptView, Object

WORDS = 400
"""Longest message copied from anywhere into a status: it is other people's text."""
FRESH_SECONDS = 600.0
"""How long evidence explains a failure: a worker lost an hour ago was replaced and is not why the attempt ends now."""
_LINES = 8

# A container in one of these is only on its way.
_BENIGN = frozenset({"ContainerCreating", "PodInitializing"})
_AWAY = frozenset({"PreemptionByScheduler", "EvictionByEvictionAPI", "DeletionByTaintManager", "DeletionByPodGC"})
# What the API server says of a pod that it will never take, as an event of the Job controller and the condition of a
# RayCluster pass it on. All else that it refuses may heal by itself, and is waited for: quotas, webhooks, accounts and
# classes that are missing, namespaces that go.
_PASSED_ON = (
    r"(?:\(combined from similar events\): )?Error creating: |"
    r"FailedCreate(?:Head|Worker)Pod\s+|Failed to create (?:head|worker) Pod \S+, "
)
_NEVER = r'Pod "[^"]*" is invalid: |pods "[^"]*" is forbidden: violates PodSecurity "'
_REFUSED = re.compile(rf"(?:{_PASSED_ON})((?:{_NEVER}).*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def clean(text: object, limit: int = WORDS) -> str:
    """Text of others in one line without control characters, cut to `limit` characters."""
    line = " ".join(_CONTROL.sub(" ", str(text or "")).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def waiting_words(view: AttemptView) -> str:
    """Why the attempt does not run yet, in the words of whoever holds it up; empty if nobody says anything."""
    for words in (_pod_words(view), _event_words(view), _cluster_words(view)):
        if words:
            return words
    return ""


def queue_words(view: AttemptView) -> str:
    """Why Kueue does not admit the attempt, in its own words."""
    for condition in (view.workload or {}).get("status", {}).get("conditions", ()):
        if condition["type"] == "QuotaReserved" and condition["status"] != "True":
            return clean(condition.get("message"))
    return ""


def refusal_words(view: AttemptView) -> str:
    """What the API server says of pods of the attempt that it will never take; empty if there are none, or they may be
    taken another time.
    """
    uid = (view.object or {}).get("metadata", {}).get("uid")
    texts: list[object] = []
    if not _owned(view.pods, uid):  # else one was taken after all
        about = [event for event in view.events if event.get("involvedObject", {}).get("uid") == uid]
        texts = [event.get("message") for event in about if event.get("reason") == "FailedCreate"][-1:]
    for cluster in _owned(view.clusters, uid):
        conditions = cluster.get("status", {}).get("conditions", ())
        texts += [c.get("message") for c in conditions if c["type"] == "ReplicaFailure" and c["status"] == "True"]
    found = (_REFUSED.match(str(text)) for text in texts)
    return next((match[1] for match in found if match), "")


def invalid_words(trouble: str, name: str) -> str:
    """What the API server says of the object `name` where it did not take it as invalid, which it never will."""
    found = re.search(rf' failed with 422 Invalid: (\S+ "{re.escape(name)}" is invalid: .*)', trouble)
    return found[1] if found else ""


def _owned(things: Iterable[Object], uid: str | None) -> list[Object]:
    """Those of this very attempt: a deleted pipeline of the same name may have left others with the same labels."""
    return [t for t in things if uid and any(o["uid"] == uid for o in t["metadata"].get("ownerReferences", ()))]


def new_evidence(view: AttemptView, known: list[str], now: datetime) -> list[str]:
    """`known` and what the pods say of ended containers that is not in it yet, at most eight lines.

    Eight fresh ones are enough, and stay: what was left out is seen at every look, and must not take turns with them.
    """
    kept = list(known)
    for pod in view.pods:
        if seconds_since(_last_sign(pod, now), now) <= FRESH_SECONDS:
            for kind, words in _terminations(pod):
                if f"{kind} {words}" not in {line.partition(" ")[2] for line in kept}:
                    kept = _admitted(kept, kind, f"{stamp(now)} {kind} {words}", now)
    return kept


def _admitted(kept: list[str], kind: str, line: str, now: datetime) -> list[str]:
    """With `line`, in place of an old one if there are eight, or of one of many if nothing speaks for its class yet."""
    if len(kept) < _LINES:
        return [*kept, line]
    kinds = [old.split(" ", 2)[1] for old in kept]
    spare = [i for i, old in enumerate(kept) if seconds_since(old.partition(" ")[0], now) > FRESH_SECONDS]
    if not spare and kind not in kinds:
        spare = [i for i, other in enumerate(kinds) if kinds.count(other) > 1]
    return [*(old for i, old in enumerate(kept) if i != spare[0]), line] if spare else kept


def _last_sign(pod: Object, now: datetime) -> str:
    """When a pod that has ended was last heard of; `now` if it does not say."""
    states = [state for c in _containers(pod) for state in (c.get("state", {}), c.get("lastState", {}))]
    times = [state.get("terminated", {}).get("finishedAt") for state in states]
    return max([t for t in (*times, pod["metadata"].get("deletionTimestamp")) if t], default=stamp(now))


def strongest(evidence: list[str], now: datetime) -> tuple[FailureClass, str] | None:
    """The class that recent evidence speaks for, and its words: machines taken away before memory before the rest."""
    recent = []
    for line in evidence:
        at, _, rest = line.partition(" ")
        kind, _, words = rest.partition(" ")
        if seconds_since(at, now) <= FRESH_SECONDS:
            recent.append((kind, words))
    for wanted in ("Preemption", "OutOfMemory", "Infrastructure"):
        for kind, words in recent:
            if kind == wanted:
                return wanted, words
    return None


def _terminations(pod: Object) -> Iterator[tuple[FailureClass, str]]:
    status, name = pod.get("status", {}), pod["metadata"]["name"]
    for condition in status.get("conditions", ()):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            reason = condition.get("reason", "")
            if reason in _AWAY:
                yield "Preemption", f"pod {name} was taken away ({reason}): {clean(condition.get('message'), 200)}"
    if status.get("reason") == "NodeLost":
        yield "Preemption", f"the node of pod {name} was lost"
    elif status.get("reason") in ("Shutdown", "NodeShutdown", "Terminated", "Preempting"):
        yield "Preemption", f"pod {name} was taken away ({status['reason']}): {clean(status.get('message'), 200)}"
    elif status.get("reason") == "Evicted":
        # A pod beyond its own limits would be evicted again on any node; one that a full node sends away would not.
        words = clean(status.get("message"), 200)
        own = "exceeds" in words or "limit" in words
        yield ("Infrastructure" if own else "Preemption"), f"pod {name} was evicted: {words}"
    for container in _containers(pod):
        for state in (container.get("state", {}), container.get("lastState", {})):
            ended = state.get("terminated")
            if ended and ended.get("reason") == "OOMKilled":
                yield "OutOfMemory", f"container {container['name']} of pod {name} exceeded its memory limit"


def _pod_words(view: AttemptView) -> str:
    unscheduled = ""
    for pod in view.live_pods:
        name = pod["metadata"]["name"]
        for container in _containers(pod):
            held = container.get("state", {}).get("waiting")
            if held and held.get("reason", "") not in _BENIGN:
                return clean(f"pod {name}: {held.get('reason')}: {held.get('message', '')}".rstrip(": "))
        for condition in pod.get("status", {}).get("conditions", ()):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                unscheduled = clean(f"pod {name}: {condition.get('reason', '')}: {condition.get('message', '')}")
    return unscheduled.rstrip(": ")


def _event_words(view: AttemptView) -> str:
    """Warnings about objects that got no pod: quota, admission. The one pod of a Job speaks for itself, once there."""
    thing = view.object or {}
    if thing.get("kind") == "Job" and view.live_pods:
        return ""
    # What a deleted pipeline of the same name left behind has other uids; that of a submitter's Job nobody knows.
    uid = thing.get("metadata", {}).get("uid")
    ours = {uid, *(cluster["metadata"].get("uid") for cluster in _owned(view.clusters, uid))}
    for event in reversed(view.events):
        about = event.get("involvedObject", {})
        if about.get("uid") not in ours and not (about.get("kind") == "Job" and thing.get("kind") == "RayJob"):
            continue
        return clean(
            f"{about.get('kind', '')} {about.get('name', '')}: {event.get('reason')}: {event.get('message', '')}"
        )
    return ""


def _cluster_words(view: AttemptView) -> str:
    for cluster in view.clusters:
        for condition in cluster.get("status", {}).get("conditions", ()):
            name = cluster["metadata"]["name"]
            failed = condition["type"] == "ReplicaFailure" and condition["status"] == "True"
            unready = condition["type"] == "HeadPodReady" and condition["status"] == "False"
            if failed or (unready and condition.get("reason") not in ("", "Unknown", "ContainersNotReady", *_BENIGN)):
                words = f"RayCluster {name}: {condition.get('reason')}: {condition.get('message', '')}"
                return clean(words.rstrip(": "))
    return ""


def _containers(pod: Object) -> list[Object]:
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
