from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from camel_ray.operator.kube import reflector as reflector_module
from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.kinds import POD
from camel_ray.operator.kube.reflector import Reflector

from .conftest import Answer, Reply, Request, Server

Told = list[tuple[str | None, str | None]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector_module, "_FIRST_DELAY_SECONDS", 0.001)
    monkeypatch.setattr(reflector_module, "_MAX_DELAY_SECONDS", 0.01)


@pytest.fixture
def told() -> Told:
    """What `changed` was told, as name@version."""
    return []


@pytest.fixture
def reflector(client: Client, server: Server, told: Told) -> Iterator[Reflector]:
    def changed(old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        assert not reflector.store._lock.locked()
        told.append((short(old), short(new)))

    reflector = Reflector(client, POD, namespaces=["n"], labels="x=y", changed=changed)
    yield reflector
    server.done.set()
    reflector.stop()


def pod(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "n", "resourceVersion": str(version), "managedFields": [{}]}}


def short(obj: dict[str, Any] | None) -> str | None:
    return obj and f"{obj['metadata']['name']}@{obj['metadata']['resourceVersion']}"


def lists(version: int, *objects: dict[str, Any]) -> Answer:
    return lambda _, reply: reply.json({"metadata": {"resourceVersion": str(version)}, "items": list(objects)})


def watches(server: Server, *events: tuple[str, dict[str, Any]], wait: bool = False, torn: bool = False) -> Answer:
    def answer(request: Request, reply: Reply) -> None:
        reply.begin()
        for kind, obj in events:
            reply.event(kind, obj)
        if wait:
            server.done.wait()
        if torn:
            reply.reset()
        else:
            reply.end()

    return answer


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def asked(server: Server) -> list[str]:
    """The requests: `list`, or the version that a watch starts from."""
    return [request.query.get("resourceVersion", "list") for request in server.requests]


def test_a_watch_goes_on_where_the_last_one_ended(server: Server, reflector: Reflector, told: Told) -> None:
    bookmark = {"metadata": {"resourceVersion": "30"}}
    server.answers = [
        lists(10, pod("a", 5)),
        watches(server, ("ADDED", pod("b", 11)), ("BOOKMARK", bookmark)),
        watches(server, ("MODIFIED", pod("a", 31)), torn=True),
        watches(server, ("DELETED", pod("b", 32)), wait=True),
    ]
    assert not reflector.synced
    reflector.start()
    wait_until(lambda: len(told) == 4)
    assert told == [(None, "a@5"), (None, "b@11"), ("a@5", "a@31"), ("b@11", None)]
    assert asked(server) == ["list", "10", "30", "31"]
    assert {request.query["labelSelector"] for request in server.requests} == {"x=y"}
    assert [short(obj) for obj in reflector.store.all()] == ["a@31"]
    stored = reflector.store.get("n", "a")
    assert stored is not None and "managedFields" not in stored["metadata"]
    assert (reflector.synced, reflector.served) == (True, True)


def test_a_version_that_is_too_old_leads_to_a_list_and_what_was_missed_is_told(
    server: Server, reflector: Reflector, told: Told
) -> None:
    expired = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
    server.answers = [
        lists(10, pod("a", 5), pod("b", 6)),
        watches(server, ("ERROR", expired)),
        lists(20, pod("b", 6), pod("c", 15)),
        watches(server, wait=True),
    ]
    reflector.start()
    wait_until(lambda: len(told) == 4)
    assert told == [(None, "a@5"), (None, "b@6"), (None, "c@15"), ("a@5", None)]
    wait_until(lambda: asked(server) == ["list", "10", "list", "20"])


def test_the_list_is_read_again_when_the_watch_fails_three_times(
    server: Server, reflector: Reflector, told: Told
) -> None:
    def broken(request: Request, reply: Reply) -> None:
        reply.status(500)

    # A restored server: it does not know the version yet, and its list is older than what we saw.
    server.answers = [
        lists(100, pod("a", 90)),
        broken,
        broken,
        broken,
        lists(50, pod("a", 40)),
        watches(server, wait=True),
    ]
    reflector.start()
    wait_until(lambda: len(told) == 2)
    assert told == [(None, "a@90"), ("a@90", "a@40")]
    wait_until(lambda: asked(server) == ["list", "100", "100", "100", "list", "50"])


def test_a_watch_that_ends_at_once_is_a_failure_and_not_a_reason_to_hurry(
    server: Server, reflector: Reflector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector_module, "_FIRST_DELAY_SECONDS", 100)
    monkeypatch.setattr(reflector_module, "_MAX_DELAY_SECONDS", 100)
    server.answers = [lists(10), watches(server)]
    reflector.start()
    wait_until(lambda: len(server.requests) == 2)
    reflector.stop(timeout=0.2)
    assert asked(server) == ["list", "10"]


def forbidden(request: Request, reply: Reply) -> None:
    reply.status(403, "Forbidden", "cannot list pods")


def missing(request: Request, reply: Reply) -> None:
    reply.status(404, "NotFound")


def test_what_may_not_be_read_is_no_ground_for_decisions_until_it_may_again(
    server: Server, client: Client, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[str | None, bool, Told]] = []

    def again(namespace: str | None) -> None:
        seen.append((namespace, reflector.readable("n"), list(told)))

    def changed(old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        told.append((short(old), short(new)))

    closed = threading.Event()

    def forbidden_until(request: Request, reply: Reply) -> None:
        closed.wait(60)
        forbidden(request, reply)

    reflector = Reflector(client, POD, namespaces=["n"], changed=changed, again=again)
    server.answers = [
        lists(10, pod("a", 1), pod("b", 2)),
        watches(server, ("MODIFIED", pod("a", 11))),
        forbidden,
        forbidden,
        forbidden_until,
        lists(20, pod("b", 2), pod("c", 15)),
        watches(server, wait=True),
    ]
    reflector.start()
    wait_until(lambda: len(server.requests) == 5)
    assert (reflector.synced, reflector.waiting, reflector.readable("n")) == (False, False, False)
    assert sorted(str(short(obj)) for obj in reflector.store.all()) == ["a@11", "b@2"]
    assert told == [(None, "a@1"), (None, "b@2"), ("a@1", "a@11")]  # nothing is taken for deleted
    closed.set()
    wait_until(lambda: seen)
    assert seen == [("n", True, [*told[:3], (None, "c@15"), ("a@11", None)])]
    assert reflector.synced
    server.done.set()
    reflector.stop()
    assert asked(server)[:7] == ["list", "10", "11", "list", "list", "list", "20"]
    assert [message.split(":")[1] for message in caplog.messages] == [
        " may not be read, so whatever rests on them waits",
        " may be read again",
    ]


def test_to_be_forbidden_is_an_answer_and_no_silence(server: Server, reflector: Reflector) -> None:
    server.answers = [forbidden]
    reflector.start()
    wait_until(lambda: server.requests)
    asked_first = time.monotonic()
    wait_until(lambda: len(server.requests) > 40)
    assert reflector.age_seconds() < time.monotonic() - asked_first
    assert not reflector.synced


def test_who_may_list_and_not_watch_may_not_read(
    server: Server, reflector: Reflector, caplog: pytest.LogCaptureFixture
) -> None:
    lasting = [answer for _ in range(5) for answer in (forbidden, lists(10, pod("a", 1)))]
    server.answers = [lists(10, pod("a", 1)), *lasting, watches(server, wait=True)]
    reflector.start()
    wait_until(lambda: len(server.requests) == 12)
    wait_until(lambda: reflector.readable("n"))
    assert len(caplog.messages) == 2


def test_one_namespace_that_may_not_be_read_does_not_hold_the_others_back(server: Server, client: Client) -> None:
    def answer(request: Request, reply: Reply) -> None:
        if "/namespaces/closed/" in request.path:
            forbidden(request, reply)
        elif "watch" in request.query:
            watches(server, wait=True)(request, reply)
        else:
            lists(10, pod("a", 1))(request, reply)

    server.answers = [answer]
    reflector = Reflector(client, POD, namespaces=["closed", "n"], changed=lambda old, new: None)
    reflector.start()
    wait_until(lambda: reflector.synced)
    assert (reflector.readable("n"), reflector.readable("closed")) == (True, False)
    server.done.set()
    reflector.stop()


def test_a_kind_that_is_not_served_counts_as_empty(server: Server, client: Client) -> None:
    told: list[object] = []
    reflector = Reflector(
        client,
        POD,
        namespaces=["n"],
        changed=lambda old, new: told.append((short(old), short(new))),
        again=lambda namespace: told.append(("all of", namespace, reflector.served)),
    )
    server.answers = [missing, missing, lists(10, pod("a", 1)), missing, missing, lists(20), watches(server, wait=True)]
    reflector.start()
    wait_until(lambda: reflector.synced)
    wait_until(lambda: len(told) == 5)
    assert told == [
        (None, "a@1"),
        ("all of", "n", True),
        ("a@1", None),
        ("all of", "n", False),
        ("all of", "n", True),
    ]
    server.done.set()
    reflector.stop()


def test_an_older_version_is_read_where_the_server_has_no_newer_one(server: Server, client: Client) -> None:
    served = ["v1"]

    def answer(request: Request, reply: Reply) -> None:
        if f"/{served[0]}/" not in request.path:
            missing(request, reply)
        elif "watch" in request.query:
            watches(server)(request, reply)
        else:
            lists(10, pod("a", 1))(request, reply)

    server.answers = [answer]
    told: list[bool] = []
    newer = dataclasses.replace(POD, version="v2")
    reflector = Reflector(client, newer, older=(POD,), changed=lambda old, new: told.append(new is not None))
    reflector.start()
    wait_until(lambda: reflector.synced)
    assert (len(reflector.store), reflector.served) == (1, True)
    served[0] = "v2"  # an upgrade that ends the old one is no loss of the objects
    wait_until(lambda: "/v2/" in server.requests[-1].path and "watch" in server.requests[-1].query)
    assert (told, reflector.served) == ([True], True)
    served[0] = "v3"
    wait_until(lambda: not reflector.served)
    assert len(reflector.store) == 0
    server.done.set()
    reflector.stop()


def test_bugs_of_a_listener_or_a_trim_do_not_end_the_thread(
    server: Server, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    def changed(old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        seen.append(short(new))
        raise RuntimeError("listener")

    def trim(obj: dict[str, Any]) -> dict[str, Any]:
        if len(server.requests) == 1:
            raise RuntimeError("trim")
        return obj

    server.answers = [lists(10, pod("a", 1)), lists(10, pod("a", 1), pod("b", 2)), watches(server, wait=True)]
    reflector = Reflector(client, POD, trim=trim, changed=changed)
    reflector.start()
    wait_until(lambda: len(seen) == 2)
    wait_until(lambda: reflector.synced)
    server.done.set()
    reflector.stop()
    assert seen == ["a@1", "b@2"]
    assert caplog.messages == ["pods of all namespaces: trim"] + ["pods of all namespaces: the listener failed"] * 2


def test_silence_shows_in_the_age(server: Server, reflector: Reflector) -> None:
    server.answers = [lists(10), watches(server, ("BOOKMARK", {"metadata": {"resourceVersion": "11"}}), wait=True)]
    reflector.start()
    wait_until(lambda: len(server.requests) == 2)
    age = reflector.age_seconds()
    wait_until(lambda: reflector.age_seconds() > age + 0.05)


def test_stopping_does_not_wait_for_the_end_of_a_watch(server: Server, reflector: Reflector) -> None:
    server.answers = [lists(10), watches(server, wait=True)]
    reflector.start()
    wait_until(lambda: len(server.requests) == 2)
    started = time.monotonic()
    reflector.stop(timeout=60)
    assert time.monotonic() - started < 50
    assert not any(thread.name.startswith("reflect") for thread in threading.enumerate())
