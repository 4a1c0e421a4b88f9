"""The real queue, caches, election and controller against an API server of a few lines: what is written when."""

from __future__ import annotations

import queue as queues
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from unit.operator.kube.conftest import Reply, Request, Server, client, server

from camel_ray.operator import caches
from camel_ray.operator.caches import Caches
from camel_ray.operator.controller import NEXT_SECONDS, Controller
from camel_ray.operator.kube import lease as lease_module
from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.events import EventRecorder
from camel_ray.operator.kube.lease import LeaderElection
from camel_ray.operator.kube.queue import WorkQueue
from camel_ray.operator.metrics import Metrics
from camel_ray.operator.model import Object, Settings
from camel_ray.operator.names import attempt_labels

__all__ = ["client", "server"]  # fixtures

Obj = dict[str, Any]
SPEC = {
    "storage": "s3://b/a",
    "cluster": {"image": "trainer:1", "executor": "Job"},
    "stages": [{"name": "rows", "data": {"source": "s3://b/rows.jsonl"}}],
}
RUNNING = {
    "phase": "Running",
    "stages": [{"name": "rows", "kind": "data", "phase": "Running", "attempts": 1}],
}


def pipeline(name: str = "p", **status: Any) -> Obj:
    metadata = {"name": name, "namespace": "team", "uid": f"uid-{name}", "generation": 1, "resourceVersion": "1"}
    metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
    kind = {"apiVersion": "camel-ray.dev/v1alpha1", "kind": "CamelPipeline"}
    return {**kind, "metadata": metadata, "spec": SPEC, **({"status": status} if status else {})}


def pod(number: int, owner: str = "p") -> Obj:
    metadata = {"name": f"pod-{number}", "namespace": "team", "uid": f"pod-{number}", "resourceVersion": "1"}
    metadata["creationTimestamp"] = "2026-01-01T00:10:00Z"
    labels = attempt_labels(owner, "rows", 1)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {**metadata, "labels": labels}, "status": {}}


class Api:
    """Lists and watches what a test puts in, and notes what is written."""

    def __init__(self, server: Server) -> None:
        self._done = server.done
        self.things: defaultdict[str, list[Obj]] = defaultdict(list)
        """What is listed, by plural."""
        self.news: defaultdict[str, queues.SimpleQueue[tuple[str, Obj]]] = defaultdict(queues.SimpleQueue)
        """What watches tell, by plural."""
        self.writes: list[str] = []
        """Method and path of each write of the controller."""
        self.renewals = 0
        self.heard: Callable[[str], object] = lambda write: None
        """What happens between a write and its answer; renewals of the lease are named by their number."""
        self._lock = threading.Lock()
        server.answers = [self]

    def __call__(self, request: Request, reply: Reply) -> None:
        plural = request.path.rpartition("/")[2]
        if "/leases" in request.path:
            self._lease(request, reply)
        elif request.method != "GET":
            self._write(request, reply)
        elif "watch" in request.query:
            self._watch(plural, reply)
        elif plural.endswith("s"):
            reply.json({"metadata": {"resourceVersion": "1"}, "items": self.things[plural]})
        else:
            reply.status(404, "NotFound")

    def _lease(self, request: Request, reply: Reply) -> None:
        if request.method == "GET":
            reply.status(404, "NotFound")
            return
        self.renewals += 1
        self.heard(f"renewal {self.renewals}")
        metadata = {**request.body["metadata"], "resourceVersion": str(self.renewals)}
        reply.json({**request.body, "metadata": metadata})

    def _write(self, request: Request, reply: Reply) -> None:
        write = f"{request.method} {request.path}"
        with self._lock:
            self.writes.append(write)
            version = str(100 + len(self.writes))
        self.heard(write)
        metadata = {"uid": f"uid-{version}", **request.body["metadata"], "resourceVersion": version}
        reply.json({**pipeline(), **request.body, "metadata": metadata})

    def _watch(self, plural: str, reply: Reply) -> None:
        reply.begin()
        while not self._done.is_set():
            try:
                kind, thing = self.news[plural].get(timeout=0.05)
            except queues.Empty:
                continue
            reply.event(kind, thing)
        reply.end()

    def written(self, part: str) -> list[str]:
        """Writes whose method and path hold `part`."""
        with self._lock:
            return [write for write in self.writes if part in write]


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def api(server: Server) -> Api:
    made = Api(server)
    made.things["camelpipelines"] = [pipeline()]
    return made


class Parts:
    """What `main` puts together, without its process."""

    def __init__(self, client: Client) -> None:
        self.client, self.metrics = client, Metrics()
        self.queue = WorkQueue(metrics=self.metrics.queue)
        self.caches = Caches(client, [None], self.queue.add)
        self.recorder = EventRecorder(client, controller="test", instance="me")
        self.started: list[Controller] = []

    def controller(self, leads: Callable[[], bool]) -> Controller:
        return Controller(
            self.client, self.caches, self.queue, self.recorder, self.metrics, Settings, leads=leads, workers=2
        )

    def taken(self) -> float:
        """How many keys were worked on."""
        name = "workqueue_work_duration_seconds_count"
        return self.metrics.registry.get_sample_value(name, {"name": "camelpipeline"}) or 0.0

    def end(self) -> None:
        self.queue.shut_down()
        for controller in self.started:
            controller.join()
        self.caches.stop()
        self.recorder.close()


@pytest.fixture
def parts(api: Api, client: Client) -> Iterator[Parts]:
    made = Parts(client)
    made.caches.start()
    wait_until(lambda: made.caches.synced and made.caches.keys())
    yield made
    made.end()


def test_keys_taken_while_a_renewal_is_late_are_written_for_when_it_has_come(
    api: Api, parts: Parts, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(lease_module, "boot_seconds", lambda: now[0])
    late, go_on = threading.Event(), threading.Event()

    def heard(write: str) -> None:
        if write == "renewal 2":
            now[0] += 600.0
        elif write == "renewal 3":  # sent after 600 s, and no answer for 600 more
            now[0] += 600.0
            late.set()
            assert go_on.wait(60)

    api.heard = heard
    election = LeaderElection(
        client, name="l", namespace="n", identity="me", lease_seconds=1500, renew_seconds=1000, retry_seconds=0.01
    )
    leader = threading.Thread(target=election.run, args=(lambda stop: stop.wait(),))
    leader.start()
    try:
        assert late.wait(60)
        assert not election.is_leader
        controller = parts.controller(lambda: election.is_leader)
        parts.started.append(controller)
        controller.start()
        wait_until(lambda: parts.taken() >= 2)  # taken, put back, and taken once more
        assert api.writes == []
        go_on.set()
        wait_until(lambda: api.written("POST /apis/batch/v1/namespaces/team/jobs"))
        assert election.is_leader
        assert api.writes[0] == "PUT /apis/camel-ray.dev/v1alpha1/namespaces/team/camelpipelines/p/status"
    finally:
        go_on.set()
        election.stop()
        leader.join()


def test_a_plan_that_the_lease_does_not_outlast_is_given_up_in_the_middle_and_comes_again(
    api: Api, parts: Parts
) -> None:
    leads = [True]
    controller = parts.controller(lambda: leads[0])
    api.heard = lambda write: leads.__setitem__(0, not write.endswith("/status"))
    assert controller.reconcile_once("team/p") == NEXT_SECONDS
    assert api.writes == ["PUT /apis/camel-ray.dev/v1alpha1/namespaces/team/camelpipelines/p/status"]
    api.heard, leads[0] = lambda write: None, True
    controller.reconcile_once("team/p")
    assert len(api.written("POST /apis/batch/v1/namespaces/team/jobs")) == 1


# Last words of pods ---------------------------------------------------------------------------------------------------


def remembered(parts: Parts, name: str = "p") -> list[str]:
    """Names of the pods that exist no more and are still told of, the oldest first."""
    snapshot = parts.caches.snapshot(f"team/{name}", Settings(), "", "")
    found: list[Object] = [pod for view in snapshot.attempts for pod in view.pods] if snapshot else []
    return [pod["metadata"]["name"] for pod in found if pod.get("gone")]


def vanish(api: Api, parts: Parts, numbers: range, owner: str = "p") -> None:
    """Pods come and go; returns when the caches have seen it."""
    for number in numbers:
        api.news["pods"].put(("ADDED", pod(number, owner)))
        api.news["pods"].put(("DELETED", pod(number, owner)))
    marker = pod(-1, "somebody-else")
    api.news["pods"].put(("ADDED", marker))
    wait_until(lambda: parts.caches.pods.store.get("team", "pod--1"))
    api.news["pods"].put(("DELETED", marker))
    wait_until(lambda: not parts.caches.pods.store.get("team", "pod--1"))


def test_the_last_words_of_the_newest_hundred_pods_are_kept(api: Api, parts: Parts) -> None:
    vanish(api, parts, range(150))
    assert remembered(parts) == [f"pod-{number}" for number in range(50, 150)]


def test_last_words_are_told_for_a_while_only(api: Api, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    vanish(api, parts, range(1))
    assert remembered(parts) == ["pod-0"]
    monkeypatch.setattr(caches, "GONE_SECONDS", -1.0)
    assert remembered(parts) == []


@pytest.mark.parametrize("kind", ["MODIFIED", "DELETED"])
def test_last_words_go_with_their_pipeline(api: Api, parts: Parts, kind: str) -> None:
    vanish(api, parts, range(3))
    assert len(remembered(parts)) == 3
    ended = pipeline(phase="Succeeded")
    ended["metadata"] |= {"resourceVersion": "2"}
    api.news["camelpipelines"].put((kind, ended))
    again = pipeline(**RUNNING)
    again["metadata"] |= {"resourceVersion": "3"}
    api.news["camelpipelines"].put(("ADDED" if kind == "DELETED" else "MODIFIED", again))
    wait_until(lambda: (parts.caches.pipeline("team", "p") or {}).get("status", {}).get("phase") == "Running")
    assert remembered(parts) == []


def test_nothing_is_kept_of_pods_whose_pipeline_is_not_there_or_over(api: Api, parts: Parts) -> None:
    over = pipeline("over", phase="Failed")
    api.news["camelpipelines"].put(("ADDED", over))
    wait_until(lambda: parts.caches.pipeline("team", "over"))
    vanish(api, parts, range(3), "over")
    vanish(api, parts, range(3, 6), "nobody")
    for name in ("over", "nobody"):
        again = pipeline(name, **RUNNING)
        again["metadata"] |= {"resourceVersion": "9"}
        api.news["camelpipelines"].put(("MODIFIED" if name == "over" else "ADDED", again))
        running = lambda name=name: (parts.caches.pipeline("team", name) or {}).get("status", {}).get("phase")  # noqa: E731
        wait_until(lambda running=running: running() == "Running")
        assert remembered(parts, name) == []
