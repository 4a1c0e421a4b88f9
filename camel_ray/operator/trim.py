"""What the caches keep of each kind of object: only what is read, so that ten thousand pipelines fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from camel_ray.api.status import RESULT_MARK
from camel_ray.operator.names import API_GROUP, ATTEMPT, MANAGED_BY, PIPELINE, QUEUE, STAGE

_METADATA = ("name", "namespace", "uid", "resourceVersion", "labels", "ownerReferences", "deletionTimestamp")
_TEXT = 1000
"""Characters kept of a message; KubeRay puts up to 20,000 of a log into one."""


def pipeline(thing: dict[str, Any]) -> dict[str, Any]:
    """All but what clients keep in annotations for themselves."""
    metadata = _some(thing["metadata"], (*_METADATA, "generation", "creationTimestamp", "annotations"))
    if "annotations" in metadata:
        metadata["annotations"] = {k: v for k, v in metadata["annotations"].items() if k.startswith(API_GROUP)}
    return {**_some(thing, ("apiVersion", "kind", "spec", "status")), "metadata": metadata}


def ray_job(thing: dict[str, Any]) -> dict[str, Any]:
    """Where it stands, and the result at the end of the log it carries."""
    status = _some(thing.get("status") or {}, ("jobDeploymentStatus", "jobStatus", "reason", "startTime", "endTime"))
    text = str((thing.get("status") or {}).get("message", ""))
    at = text.rfind(RESULT_MARK)
    status["message"] = text[:_TEXT] if at < 0 else text[: _TEXT // 2] + "\n" + text[at:]
    return _with(thing, status)


def job(thing: dict[str, Any]) -> dict[str, Any]:
    """Its conditions."""
    return {
        **_with(thing, _some(thing.get("status") or {}, ("conditions",))),
        "spec": _some(thing["spec"], ("suspend",)),
    }


def pod(thing: dict[str, Any]) -> dict[str, Any]:
    """Its phase, and the states of its containers."""
    status = thing.get("status") or {}
    kept = _some(status, ("phase", "reason", "message", "conditions"))
    for name in ("initContainerStatuses", "containerStatuses"):
        if name in status:
            kept[name] = [_some(c, ("name", "state", "lastState")) for c in status[name]]
    made = _with(thing, kept)
    made["metadata"]["creationTimestamp"] = thing["metadata"].get("creationTimestamp", "")
    return made


def ray_cluster(thing: dict[str, Any]) -> dict[str, Any]:
    """Its conditions."""
    return _with(thing, _some(thing.get("status") or {}, ("state", "conditions")))


def workload(thing: dict[str, Any]) -> dict[str, Any]:
    """Its conditions."""
    return _with(thing, _some(thing.get("status") or {}, ("conditions",)))


def event(thing: dict[str, Any]) -> dict[str, Any]:
    """Whom it is about, and its words."""
    kept = _some(thing, ("reason", "message", "lastTimestamp"))
    kept["involvedObject"] = _some(thing["involvedObject"], ("kind", "namespace", "name", "uid"))
    kept["metadata"] = _some(thing["metadata"], ("name", "namespace", "uid", "resourceVersion"))
    return {"apiVersion": thing["apiVersion"], "kind": thing["kind"], **kept}


def _with(thing: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    metadata = _some(thing["metadata"], _METADATA)
    metadata["labels"] = _some(metadata.get("labels", {}), (MANAGED_BY, PIPELINE, STAGE, ATTEMPT, QUEUE))
    metadata["ownerReferences"] = [_some(o, ("kind", "name", "uid")) for o in metadata.get("ownerReferences", ())]
    for condition in status.get("conditions") or ():
        for moment in ("lastTransitionTime", "lastProbeTime", "lastHeartbeatTime", "observedGeneration"):
            condition.pop(moment, None)
    return {"apiVersion": thing["apiVersion"], "kind": thing["kind"], "metadata": metadata, "status": status}


def _some(thing: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: thing[key] for key in keys if key in thing}
