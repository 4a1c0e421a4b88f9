"""What must be true of every pipeline at every moment, checked on the whole history of a control plane."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rig.history import Change

RESOURCES = ("camel-ray.dev/camelpipelines", "jobs", "ray.io/rayjobs", "pods")
"""The resources whose history `violations` needs."""
PIPELINE = "camel-ray.dev/pipeline"
STAGE = "camel-ray.dev/stage"
ATTEMPT = "camel-ray.dev/attempt"
_TERMINAL = ("Succeeded", "Failed", "Cancelled")

Object = dict[str, Any]


@dataclass
class _World:
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    """What exists, by resource and place."""
    pipelines: dict[str, Object] = field(default_factory=dict)
    """The last version of each pipeline by uid, deleted ones included: a child may be born while its owner is deleted,
    and is collected then."""
    made: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    """How often an attempt's object was created, by the pipeline's uid and its own name."""
    born_late: set[tuple[str, str]] = field(default_factory=set)
    """Pods that were made when their Job was gone: the Job controller's caches lag behind, too, and whoever asks the
    API before he starts something cannot know. They are collected at once."""

    def of_stage(self, labels: Object, namespace: str, *resources: str) -> Iterator[Object]:
        """Objects of the same stage but of another attempt."""
        for (resource, place), thing in self.objects.items():
            theirs = thing["metadata"].get("labels", {})
            same = place.startswith(f"{namespace}/") and all(
                theirs.get(key) == labels[key] for key in (PIPELINE, STAGE)
            )
            counts = resource in resources and (resource, place) not in self.born_late
            if counts and same and theirs.get(ATTEMPT) != labels[ATTEMPT]:
                yield thing

    def has_no_job(self, pod: Object) -> bool:
        """Whether it is the pod of a Job that does not exist."""
        jobs = {thing["metadata"].get("uid") for (resource, _), thing in self.objects.items() if resource == "jobs"}
        owners = pod["metadata"].get("ownerReferences", ())
        return any(owner["kind"] == "Job" and owner["uid"] not in jobs for owner in owners)


def violations(changes: Iterable[Change]) -> list[str]:
    """Sentences about everything that should never have been; empty if all was well.

    Never two live attempts of one stage; no attempt's object made twice; none that the status did not name before;
    counters that only grow and stay within the budget; final phases that stay; a status that always says why.
    """
    world, found = _World(), []
    for change in changes:
        key = (change.resource, change.place)
        before = world.objects.get(key)
        if change.object is None:
            world.objects.pop(key, None)
            world.born_late.discard(key)
            continue
        world.objects[key] = change.object
        labels = change.object["metadata"].get("labels", {})
        ours = {PIPELINE, STAGE, ATTEMPT} <= labels.keys()
        if change.resource == RESOURCES[0]:
            world.pipelines[change.object["metadata"]["uid"]] = change.object
            problems = _pipeline(before or {}, change.object)
        elif change.resource == "pods":
            problems = ()
            if before is None and world.has_no_job(change.object):
                world.born_late.add(key)
            elif before is None and ours:
                problems = tuple(_started(world, change, labels))
        else:
            new = ours and before is None
            problems = (*_created(world, change, labels), *_started(world, change, labels)) if new else ()
        found += [f"revision {change.revision}, {change.resource} {change.place}: {problem}" for problem in problems]
    return found


def _created(world: _World, change: Change, labels: Object) -> Iterator[str]:
    assert change.object is not None
    name = change.place.rpartition("/")[2]
    owner = change.object["metadata"]["ownerReferences"][0]
    if owner["kind"] != "CamelPipeline":  # a submitter's Job
        return
    place = f"{owner['uid']}/{name}"
    world.made[place] += 1
    if world.made[place] > 1:
        yield "was created a second time"
    pipeline = world.pipelines.get(owner["uid"], {})
    stages = pipeline.get("status", {}).get("stages", ())
    if name not in [stage.get("current", {}).get("name") for stage in stages]:
        yield "was created, and the status did not name it"


def _started(world: _World, change: Change, labels: Object) -> Iterator[str]:
    namespace = change.place.partition("/")[0]
    for other in world.of_stage(labels, namespace, "jobs", "ray.io/rayjobs", "pods"):
        if _lives(other):
            yield f"began while {other['metadata']['name']} of another attempt was still alive"


def _lives(thing: Object) -> bool:
    status = thing.get("status", {})
    if "containers" in thing["spec"]:
        return status.get("phase") not in ("Succeeded", "Failed")
    ended = any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in status.get("conditions", ()))
    return not ended and status.get("jobDeploymentStatus") not in ("Complete", "Failed", "ValidationFailed")


def _pipeline(before: Object, after: Object) -> Iterator[str]:
    old, new = before.get("status", {}), after.get("status", {})
    if not new or old == new:
        return
    if not new.get("message"):
        yield f"the status is {new.get('phase')} and does not say why"
    handled = old.get("handledRequest") != new.get("handledRequest")
    changed = old.get("observedGeneration") != new.get("observedGeneration")
    if old.get("phase") in _TERMINAL and new.get("phase") != old["phase"] and not (handled or changed):
        yield f"{old['phase']} became {new.get('phase')} without a request"
    earlier = {stage["name"]: stage for stage in old.get("stages", ())}
    limit = after["spec"].get("retry", {}).get("maxRetries", 3) + 1
    for stage in new.get("stages", ()):
        then = earlier.get(stage["name"], {})
        if stage.get("attempts", 0) - then.get("attempts", 0) not in (0, 1):
            yield f"attempts of {stage['name']} went from {then.get('attempts', 0)} to {stage.get('attempts', 0)}"
        if stage.get("failures", 0) > limit:
            yield f"stage {stage['name']} counts {stage['failures']} failures, with a budget of {limit}"
    if new.get("phase") == "Succeeded" and any(stage["phase"] != "Succeeded" for stage in new["stages"]):
        yield "it is Succeeded, and not all of its stages are"
