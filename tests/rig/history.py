"""What really happened on a control plane: every version of every object, in the order in which they were stored."""

from __future__ import annotations

import base64
import http.client
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rig.control_plane import ControlPlane
from rig.process import HOST, RigError


@dataclass(frozen=True)
class Change:
    """One version of an object as it was stored."""

    revision: int
    resource: str
    place: str
    """`namespace/name`."""
    object: dict[str, Any] | None
    """None: it was deleted."""


def history(control_plane: ControlPlane, *resources: str) -> Iterator[Change]:
    """Every change of the resources (`pods`, `camel-ray.dev/camelpipelines`) since the control plane was made.

    It is read from etcd, so it has no gaps, whatever happened to the apiserver meanwhile.
    """
    if not control_plane.keeps_history:
        raise RigError("this control plane keeps no history; start it with ControlPlane(history=True)")
    last = f"/registry/rig/end-{secrets.token_hex(4)}"
    control_plane.etcd("POST", "/v3/kv/put", {"key": _base64(last)})
    everything = {"key": _base64("/registry/"), "range_end": _base64("/registry0"), "start_revision": 1}
    connection = http.client.HTTPConnection(HOST, control_plane.etcd_port, timeout=60)
    try:
        connection.request("POST", "/v3/watch", json.dumps({"create_request": everything}))
        for line in connection.getresponse():
            for event in json.loads(line)["result"].get("events", ()):
                key = base64.b64decode(event["kv"]["key"]).decode()
                if key == last:
                    return
                change = _change(key, event["kv"])
                if change.resource in resources:
                    yield change
    finally:
        connection.close()


def brief(change: Change) -> str:
    """One line about a change: what it was about, and what its status said then."""
    thing = change.object
    if thing is None:
        return f"{change.revision} {change.resource} {change.place}: deleted"
    status, words = thing.get("status", {}), []
    words += [
        f"{name}={status[name]}" for name in ("phase", "state", "jobDeploymentStatus", "reason") if status.get(name)
    ]
    words += [
        c["type"] for c in status.get("conditions", ()) if c.get("status") == "True" and change.resource == "jobs"
    ]
    words += [
        f"{s['name']}:{s['phase']}:{s.get('attempts', 0)}:{s.get('message', '')}" for s in status.get("stages", ())
    ]
    words += ["suspended"] if thing.get("spec", {}).get("suspend") else []
    words += ["terminating"] if "deletionTimestamp" in thing["metadata"] else []
    return f"{change.revision} {change.resource} {change.place}: {', '.join(words)}"


def _change(key: str, entry: dict[str, str]) -> Change:
    resource, _, place = key.removeprefix("/registry/").partition("/")
    if "." in resource:  # custom resources lie under their group
        plural, _, place = place.partition("/")
        resource = f"{resource}/{plural}"
    value = base64.b64decode(entry.get("value", ""))
    return Change(int(entry["mod_revision"]), resource, place, json.loads(value) if value[:1] == b"{" else None)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
