"""An API server small enough to run a thousand times: objects, versions, and a log per kind that caches read late."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

Obj = dict[str, Any]
KINDS = ("CamelPipeline", "RayJob", "Job", "RayCluster", "Pod", "Event", "Workload")
"""What the operator watches; it never reads back what goes with an attempt: ConfigMaps, budgets, network policies."""


class Refused(Exception):
    """The API's answer to a write it does not take: AlreadyExists, Conflict or NotFound."""


class Api:
    """Objects by kind and name in one namespace. A version of an object is never changed, so caches may share it."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Obj] = {}
        self.log: dict[str, list[tuple[str, Obj | None]]] = defaultdict(list)
        self.version = 0
        self.uids = 0

    def get(self, kind: str, name: str) -> Obj | None:
        return self.objects.get((kind, name))

    def all(self, kind: str) -> list[Obj]:
        return [obj for (k, _), obj in self.objects.items() if k == kind]

    def create(self, manifest: Mapping[str, Any]) -> Obj:
        key = manifest["kind"], manifest["metadata"]["name"]
        if key in self.objects:
            raise Refused("AlreadyExists")
        self.uids += 1
        made = merged(manifest, {"metadata": {"uid": f"uid-{self.uids}", "generation": 1}})
        return self._store(key, made)

    def update(self, kind: str, name: str, patch: Mapping[str, Any], *, version: str | None = None) -> Obj:
        """Merge a patch; `version` is the resourceVersion that the writer has read."""
        old = self.get(kind, name)
        if old is None:
            raise Refused("NotFound")
        if version is not None and version != old["metadata"]["resourceVersion"]:
            raise Refused("Conflict")
        new = merged(old, patch)
        if new == old:
            return old
        if new.get("spec") != old.get("spec"):
            new = merged(new, {"metadata": {"generation": old["metadata"]["generation"] + 1}})
        return self._store((kind, name), new)

    def replace_status(self, kind: str, name: str, status: Obj, *, version: str) -> Obj:
        """PUT of the status subresource. One that changes nothing writes nothing, but may be refused."""
        old = self.get(kind, name)
        if old is None:
            raise Refused("NotFound")
        if version != old["metadata"]["resourceVersion"]:
            raise Refused("Conflict")
        return old if old.get("status") == status else self._store((kind, name), {**old, "status": status})

    def delete(self, kind: str, name: str, uid: str | None = None) -> None:
        """Mark for deletion what somebody has yet to let go of; drop the rest. Dependents are left to the collector."""
        old = self.get(kind, name)
        if old is None:
            raise Refused("NotFound")
        if uid is not None and uid != old["metadata"]["uid"]:
            raise Refused("Conflict")
        held = old["metadata"].get("finalizers") or (kind == "Pod" and old["status"]["phase"] == "Running")
        if held:
            self.update(kind, name, {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
        else:
            self.drop(kind, name)

    def drop(self, kind: str, name: str) -> None:
        if self.objects.pop((kind, name), None) is not None:
            self.log[kind].append((name, None))

    def _store(self, key: tuple[str, str], obj: Obj) -> Obj:
        self.version += 1
        metadata = {**obj["metadata"], "resourceVersion": str(self.version)}
        stored = {**obj, "metadata": metadata}
        self.objects[key] = stored
        self.log[key[0]].append((key[1], stored))
        return stored


def merged(old: Mapping[str, Any], patch: Mapping[str, Any]) -> Obj:
    """RFC 7386: a new mapping, None removes."""
    new = dict(old)
    for key, value in patch.items():
        if value is None:
            new.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(new.get(key), Mapping):
            new[key] = merged(new[key], value)
        else:
            new[key] = value
    return new


def owner(obj: Obj) -> str | None:
    """Uid of the controlling owner."""
    references = obj["metadata"].get("ownerReferences") or [{}]
    uid: str | None = references[0].get("uid")
    return uid


def is_live_pod(pod: Obj) -> bool:
    return pod["status"]["phase"] not in ("Succeeded", "Failed")


def is_finished(obj: Obj) -> bool:
    """Whether a RayJob or Job says that it is done."""
    status = obj.get("status", {})
    if obj["kind"] == "RayJob":
        return status.get("jobDeploymentStatus") in ("Complete", "Failed")
    return any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in status.get("conditions", ()))
