"""Creates parent objects, and notes when the first child of each appears."""

from __future__ import annotations

import http.client
import json
import queue
import ssl
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from operator_sides.cluster import compact
from rig.control_plane import ControlPlane

JOBS = "/apis/batch/v1/namespaces/{}/jobs"


@dataclass(frozen=True)
class Latencies:
    """What one run of creations came to."""

    seconds: tuple[float, ...]
    """From the answer to the creation until the first child was heard of, sorted."""
    span: float
    """From the first creation until the last first child."""

    @property
    def per_second(self) -> float:
        """Objects per second to their first child."""
        return len(self.seconds) / self.span

    def quantile(self, share: float) -> float:
        """The latency that `share` of the objects stay below."""
        return self.seconds[min(len(self.seconds) - 1, int(share * len(self.seconds)))]

    @property
    def median(self) -> float:
        """The median latency."""
        return statistics.median(self.seconds)


class Children:
    """Hears of Jobs in a namespace, by a watch of its own."""

    def __init__(self, plane: ControlPlane, namespace: str, parent_of: Callable[[dict[str, Any]], str | None]) -> None:
        self.seen: dict[str, float] = {}
        self._parent_of = parent_of
        self._plane, self._path, self._closed = plane, JOBS.format(namespace), False
        self._connection = connection(plane)
        self._version: str = plane.request("GET", self._path)["metadata"]["resourceVersion"]
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        """The server ends a watch whose reader falls behind; then it is taken up where it ended."""
        while not self._closed:
            with suppress(OSError, ValueError, http.client.HTTPException):
                for line in self._watch():
                    event = json.loads(line)
                    thing = event["object"]
                    if event["type"] == "ERROR":
                        raise RuntimeError(f"the watch of Jobs ended: {thing}")
                    self._version = thing["metadata"]["resourceVersion"]
                    if event["type"] == "ADDED" and (name := self._parent_of(thing)):
                        self.seen.setdefault(name, time.perf_counter())

    def _watch(self) -> http.client.HTTPResponse:
        self._connection.close()
        path = f"{self._path}?watch=1&resourceVersion={self._version}&timeoutSeconds=3600"
        self._connection.request("GET", path, headers=headers(self._plane))
        return self._connection.getresponse()

    def close(self) -> None:
        """End the watch."""
        self._closed = True
        with suppress(OSError):
            if self._connection.sock is not None:
                self._connection.sock.shutdown(2)
        self._thread.join(5)
        self._connection.close()


def create(
    plane: ControlPlane,
    namespace: str,
    path: str,
    parents: list[dict[str, Any]],
    parent_of: Callable[[dict[str, Any]], str | None],
    *,
    rate: float | None,
    writers: int = 4,
) -> Latencies:
    """Create the parents, `rate` per second or as fast as `writers` connections can, and wait for all first children.

    Raises TimeoutError if nothing happens for a minute.
    """
    group, _, plural = path.rpartition("/")
    url = f"/apis/{group}/namespaces/{namespace}/{plural}"
    children = Children(plane, namespace, parent_of)
    work: queue.SimpleQueue[tuple[float, dict[str, Any]] | None] = queue.SimpleQueue()
    created: dict[str, float] = {}
    failures: list[str] = []

    def write() -> None:
        link = connection(plane)
        while (item := work.get()) is not None:
            due, parent = item
            if (wait := due - time.perf_counter()) > 0:
                time.sleep(wait)
            link.request("POST", url, compact(parent), headers(plane))
            answer = link.getresponse()
            body = answer.read()
            created[parent["metadata"]["name"]] = time.perf_counter()
            if answer.status != 201:
                failures.append(body[:300].decode())
        link.close()

    began = time.perf_counter()
    for i, parent in enumerate(parents):
        work.put((began + i / rate if rate else 0.0, parent))
    threads = [threading.Thread(target=write) for _ in range(writers)]
    for thread in threads:
        work.put(None)
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"{len(failures)} objects were refused: {failures[0]}")
    known, last = 0, time.perf_counter()
    while len(children.seen) < len(parents):
        if len(children.seen) > known:
            known, last = len(children.seen), time.perf_counter()
        elif time.perf_counter() - last > 60:
            raise TimeoutError(f"{len(parents) - known} of {len(parents)} {plural} have no child after a minute")
        time.sleep(0.01)
    children.close()
    waits = sorted(max(0.0, children.seen[name] - at) for name, at in created.items())
    return Latencies(tuple(waits), max(children.seen.values()) - began)


def connection(plane: ControlPlane) -> http.client.HTTPSConnection:
    """A connection of one's own."""
    context = ssl.create_default_context(cafile=str(plane.ca_file))
    host, _, port = plane.url.removeprefix("https://").partition(":")
    return http.client.HTTPSConnection(host, int(port), timeout=3600, context=context)


def headers(plane: ControlPlane) -> dict[str, str]:
    """Headers of an administrator's request."""
    return {"Authorization": f"Bearer {plane.admin_token}", "Content-Type": "application/json"}
