"""The apiserver as the stand-in sees it: requests, and a copy of the objects that watches keep up to date."""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import urllib3
import yaml

Object = dict[str, Any]
Key = tuple[str, str]
"""Namespace and name."""
MANAGER = "kuberay-operator"
_GROUPS = {
    "rayjobs": "/apis/ray.io/v1",
    "rayclusters": "/apis/ray.io/v1",
    "jobs": "/apis/batch/v1",
    "leases": "/apis/coordination.k8s.io/v1",
    "roles": "/apis/rbac.authorization.k8s.io/v1",
    "rolebindings": "/apis/rbac.authorization.k8s.io/v1",
}
_KINDS = {"rayjobs": ("ray.io/v1", "RayJob"), "rayclusters": ("ray.io/v1", "RayCluster"), "jobs": ("batch/v1", "Job")}


class ApiError(Exception):
    """A refused or failed request; `status` is 0 if nothing answered."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason

    @property
    def outdated(self) -> bool:
        """Whether it was decided on what is no more, or in a namespace that goes: the next look knows better."""
        return self.status in (404, 409) or (self.status == 403 and "being terminated" in str(self))

    def tell(self) -> None:
        """Write it to the log: a line if the apiserver was away or busy, and where it came from if it is a mistake."""
        if self.status in (0, 429) or self.status >= 500:
            print(f"the next look tries again: {self.status} {self}", file=sys.stderr, flush=True)
        elif not self.outdated:
            traceback.print_exception(self)


def key_of(obj: Mapping[str, Any]) -> Key:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def timestamp(seconds: float | None = None) -> str:
    """A time of the API, now by default; `seconds` since the epoch."""
    return datetime.fromtimestamp(time.time() if seconds is None else seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_of(stamp: str) -> float:
    """The inverse of `timestamp`."""
    return datetime.fromisoformat(stamp).timestamp()


class Api:
    """Requests with the token of a kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        context = next(c["context"] for c in config["contexts"] if c["name"] == config["current-context"])
        cluster = next(c["cluster"] for c in config["clusters"] if c["name"] == context["cluster"])
        user = next(u["user"] for u in config["users"] if u["name"] == context["user"])
        self._server = cluster["server"].rstrip("/")
        token = Path(user["tokenFile"]).read_text() if "tokenFile" in user else user["token"]
        self._headers = {"Authorization": f"Bearer {token}"}
        self._pool = urllib3.PoolManager(
            maxsize=8,
            retries=False,
            ca_certs=cluster.get("certificate-authority"),
            timeout=urllib3.Timeout(10, read=20),
        )

    def path(self, resource: str, namespace: str = "", name: str = "", part: str = "") -> str:
        """The URL path of a collection, an object or a part of it."""
        within = ["namespaces", namespace] if namespace else []
        return "/".join([_GROUPS.get(resource, "/api/v1"), *within, resource, *(p for p in (name, part) if p)])

    def call(self, method: str, path: str, body: Any = None, *, kind: str = "application/json", **query: str) -> Object:
        """One request and its JSON. Raises ApiError."""
        fields = {"fieldManager": MANAGER, **query} if method in ("POST", "PUT", "PATCH") else query
        response = self._request(method, path, fields, None if body is None else json.dumps(body), kind, preload=True)
        return json.loads(response.data) if response.data else {}

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        """An object, None if there is none."""
        try:
            return self.call("GET", self.path(resource, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def create(self, resource: str, obj: Object) -> Object:
        return self.call("POST", self.path(resource, obj["metadata"].get("namespace", "")), obj)

    def delete(self, resource: str, obj: Object, *, grace: int | None = None) -> None:
        """Delete this very object (by its uid) in the background; that it is gone is success."""
        options: Object = {"preconditions": {"uid": obj["metadata"]["uid"]}, "propagationPolicy": "Background"}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        try:
            self.call("DELETE", self.path(resource, *key_of(obj)), options)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    def event(
        self, regarding: Object, reason: str, message: str, *, kind: str = "Warning", source: str = "kubelet"
    ) -> None:
        """Tell a core Event about an object."""
        namespace, name = key_of(regarding)
        stamp = timestamp()
        about = {k: regarding["metadata"][k] for k in ("name", "namespace", "uid")}
        about |= {"kind": regarding.get("kind", "Pod"), "apiVersion": regarding.get("apiVersion", "v1")}
        meta = {"generateName": f"{name[:50]}.", "namespace": namespace}
        body: Object = {"apiVersion": "v1", "kind": "Event", "metadata": meta, "involvedObject": about, "type": kind}
        body |= {
            "reason": reason,
            "message": message[:1024],
            "count": 1,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
        }
        try:
            self.create("events", body | {"source": {"component": source}})
        except ApiError as error:
            if not error.outdated:
                raise

    def watch(self, path: str, **query: str) -> Iterator[Object]:
        """Events of a collection, until the server ends them. Raises ApiError."""
        response = self._request("GET", path, {"watch": "true", **query}, None, "application/json", preload=False)
        try:
            buffer = b""
            for chunk in response.stream(65536):
                *lines, buffer = (buffer + chunk).split(b"\n")
                yield from (json.loads(line) for line in lines if line)
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(0, "Unreachable", str(error)) from error
        finally:
            response.close()

    def close(self) -> None:
        self._pool.clear()

    def _request(
        self, method: str, path: str, fields: Mapping[str, str], body: str | None, kind: str, *, preload: bool
    ) -> urllib3.BaseHTTPResponse:
        url = f"{self._server}{path}?{'&'.join(f'{k}={v}' for k, v in fields.items())}"
        headers = {**self._headers, "Content-Type": kind}
        try:
            response = self._pool.request(method, url, body=body, headers=headers, preload_content=preload)
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(0, "Unreachable", str(error)) from error
        if response.status >= 300:
            try:
                status = json.loads(response.data)
            except ValueError:
                status = {}
            response.close()
            raise ApiError(response.status, status.get("reason", ""), status.get("message", f"HTTP {response.status}"))
        return response


class Mirror:
    """Copies of whole collections; `changed` names the objects that changed since it was last asked."""

    def __init__(self, api: Api, resources: tuple[str, ...], namespace: str = "") -> None:
        self._api, self._namespace = api, namespace
        self._objects: dict[str, dict[Key, Object]] = {resource: {} for resource in resources}
        self._gone: set[str] = set()
        self._changes: list[tuple[str, Object]] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._synced = {resource: threading.Event() for resource in resources}
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._follow, args=(r,), name=f"watch-{r}", daemon=True) for r in resources
        ]

    def start(self) -> None:
        """Begin to watch, and wait for the first lists."""
        for thread in self._threads:
            thread.start()
        for event in self._synced.values():
            event.wait()

    def stop(self) -> None:
        """No more changes; the threads die with the process."""
        self._stopping = True

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        with self._lock:
            return self._objects[resource].get((namespace, name))

    def all(self, resource: str) -> list[Object]:
        with self._lock:
            return list(self._objects[resource].values())

    def put(self, resource: str, obj: Object) -> None:
        """Take over the answer to a write, so that the next look does not see what was before it."""
        with self._lock:
            self._store(resource, obj)

    def changed(self, timeout: float) -> list[tuple[str, Object]]:
        """What changed, waiting up to `timeout` seconds for something."""
        self._wake.wait(timeout)
        with self._lock:
            self._wake.clear()
            changes, self._changes = self._changes, []
        return changes

    def _store(self, resource: str, obj: Object) -> None:
        if resource in _KINDS:  # lists leave them out of their items
            obj["apiVersion"], obj["kind"] = _KINDS[resource]
        known = self._objects[resource].get(key_of(obj))
        if obj["metadata"]["uid"] in self._gone:
            return
        if known and int(known["metadata"]["resourceVersion"]) >= int(obj["metadata"]["resourceVersion"]):
            return
        self._objects[resource][key_of(obj)] = obj
        self._changes.append((resource, obj))
        self._wake.set()

    def _drop(self, resource: str, obj: Object) -> None:
        known = self._objects[resource].get(key_of(obj))
        self._gone.add(obj["metadata"]["uid"])
        if known and known["metadata"]["uid"] == obj["metadata"]["uid"]:
            del self._objects[resource][key_of(obj)]
        self._changes.append((resource, obj))
        self._wake.set()

    def _follow(self, resource: str) -> None:
        path = self._api.path(resource, self._namespace)
        while not self._stopping:
            try:
                listed = self._api.call("GET", path)
                with self._lock:
                    found = {item["metadata"]["uid"] for item in listed["items"]}
                    for old in [o for o in self._objects[resource].values() if o["metadata"]["uid"] not in found]:
                        self._drop(resource, old)
                    for item in listed["items"]:
                        self._store(resource, item)
                self._synced[resource].set()
                version = listed["metadata"]["resourceVersion"]
                while not self._stopping:
                    for event in self._api.watch(path, resourceVersion=version, timeoutSeconds="15"):
                        if event["type"] == "ERROR":
                            raise ApiError(event["object"].get("code", 0), "Gone", event["object"].get("message", ""))
                        version = event["object"]["metadata"]["resourceVersion"]
                        with self._lock:
                            (self._drop if event["type"] == "DELETED" else self._store)(resource, event["object"])
            except ApiError as error:
                if error.status in (401, 403):
                    print(f"cannot watch {resource}: {error}", file=sys.stderr, flush=True)
                time.sleep(0.2)  # the server restarts, or the version is too old: list again
