from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from camel_ray.operator.kube import events as events_module
from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.events import EventRecorder

from .conftest import Reply, Request, Server

ABOUT = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {}}}


@pytest.fixture
def recorder(client: Client) -> Iterator[EventRecorder]:
    recorder = EventRecorder(client, controller="camel-ray.dev/operator", instance="i")
    yield recorder
    recorder.close()


def fine(request: Request, reply: Reply) -> None:
    reply.json({})


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_an_event_says_all_that_the_api_wants(server: Server, recorder: EventRecorder) -> None:
    server.answers = [fine]
    recorder.record(ABOUT, "Warning", "Failed", "it broke", "Reconcile")
    wait_until(lambda: server.requests)
    request = server.requests[0]
    assert request.path == "/apis/events.k8s.io/v1/namespaces/n/events"
    body = request.body
    assert body["metadata"].pop("name").startswith("p.")
    assert body.pop("eventTime").endswith("Z")
    assert body == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": "n"},
        "reportingController": "camel-ray.dev/operator",
        "reportingInstance": "i",
        "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": "n", "name": "p", "uid": "u"},
        "type": "Warning",
        "reason": "Failed",
        "action": "Reconcile",
        "note": "it broke",
    }


def test_repetitions_are_counted_and_told_seldom_and_the_rest_at_the_end(
    server: Server, recorder: EventRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "_PATCH_SECONDS", 1000.0)
    server.answers = [fine]
    for _ in range(50):
        recorder.record(ABOUT, "Normal", "Waiting", "no quota", "Reconcile")
    recorder.record(ABOUT, "Normal", "Waiting", "another message", "Reconcile")
    recorder.close()
    assert [request.method for request in server.requests] == ["POST", "POST", "PATCH"]
    assert server.requests[2].path.endswith(server.requests[0].body["metadata"]["name"])
    assert server.requests[2].body["series"]["count"] == 50


def test_after_ten_minutes_or_an_expired_event_a_new_one_begins(
    server: Server, recorder: EventRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [fine]
    recorder.record(ABOUT, "Normal", "Waiting", "no quota", "Reconcile")
    wait_until(lambda: len(server.requests) == 1)
    monkeypatch.setattr(events_module, "_PATCH_SECONDS", 0.0)
    server.answers = [lambda _, reply: reply.status(404, "NotFound"), fine]
    recorder.record(ABOUT, "Normal", "Waiting", "no quota", "Reconcile")
    wait_until(lambda: len(server.requests) == 3)
    assert [request.method for request in server.requests] == ["POST", "PATCH", "POST"]
    assert server.requests[2].body["series"]["count"] == 2
    monkeypatch.setattr(events_module, "_SERIES_SECONDS", -1.0)
    recorder.record(ABOUT, "Normal", "Waiting", "no quota", "Reconcile")
    wait_until(lambda: len(server.requests) == 4)
    assert (server.requests[3].method, "series" in server.requests[3].body) == ("POST", False)


def test_recording_never_waits_and_drops_the_oldest(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "_MAX_WAITING", 10)
    held = threading.Event()

    def slow(request: Request, reply: Reply) -> None:
        held.wait()
        reply.json({})

    server.answers = [slow]
    recorder = EventRecorder(client, controller="c", instance="i")
    recorder.record(ABOUT, "Normal", "First", "", "a")
    wait_until(lambda: server.requests)
    for number in range(15):
        recorder.record(ABOUT, "Normal", f"R{number}", "", "a")
    held.set()
    recorder.close()
    assert [r.body["reason"] for r in server.requests] == ["First", *(f"R{number}" for number in range(5, 15))]
    assert recorder.dropped == 5
    recorder.record(ABOUT, "Normal", "Late", "", "a")
    assert len(server.requests) == 11


def test_an_event_that_is_refused_is_counted_and_the_next_ones_go_on(server: Server, recorder: EventRecorder) -> None:
    server.answers = [lambda _, reply: reply.status(403, "Forbidden", "namespace is being terminated"), fine]
    recorder.record(ABOUT, "Normal", "One", "", "a")
    recorder.record({"kind": "Node", "name": "node"}, "Normal", "Two", "x" * 3000, "a")
    recorder.close()
    assert recorder.dropped == 1
    assert server.requests[1].path == "/apis/events.k8s.io/v1/namespaces/default/events"
    assert server.requests[1].body["note"] == "x" * 1021 + "..."
