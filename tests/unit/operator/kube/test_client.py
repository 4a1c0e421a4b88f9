from __future__ import annotations

import os
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from camel_ray.operator.kube import client as client_module
from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.config import Config, TokenFile
from camel_ray.operator.kube.errors import (
    AlreadyExists,
    Conflict,
    Gone,
    KubeError,
    ServerError,
    TooManyRequests,
    Unauthorized,
    Unreachable,
)
from camel_ray.operator.kube.kinds import CONFIG_MAP, JOB, POD

from .conftest import Reply, Request, Server

MANIFEST = {"metadata": {"name": "a", "namespace": "n"}}


def fine(request: Request, reply: Reply) -> None:
    reply.json({"metadata": {"name": "a"}})


def away(request: Request, reply: Reply) -> None:
    reply.reset()


def test_requests_carry_what_the_api_wants(server: Server, client: Client) -> None:
    server.answers = [fine]
    client.get(POD, "a", "n")
    client.create(CONFIG_MAP, MANIFEST)
    client.apply(CONFIG_MAP, MANIFEST)
    client.replace_status(JOB, MANIFEST)
    client.patch(JOB, "a", "n", {"spec": {"suspend": True}})
    client.patch(JOB, "a", "n", [{"op": "remove", "path": "/x"}], subresource="status")
    client.delete(JOB, "a", "n", uid="u")
    assert [(r.method, r.path, r.query, r.headers.get("Content-Type")) for r in server.requests] == [
        ("GET", "/api/v1/namespaces/n/pods/a", {}, None),
        ("POST", "/api/v1/namespaces/n/configmaps", {"fieldManager": "test"}, "application/json"),
        (
            "PATCH",
            "/api/v1/namespaces/n/configmaps/a",
            {"fieldManager": "test", "force": "true"},
            "application/apply-patch+yaml",
        ),
        ("PUT", "/apis/batch/v1/namespaces/n/jobs/a/status", {"fieldManager": "test"}, "application/json"),
        ("PATCH", "/apis/batch/v1/namespaces/n/jobs/a", {"fieldManager": "test"}, "application/merge-patch+json"),
        ("PATCH", "/apis/batch/v1/namespaces/n/jobs/a/status", {"fieldManager": "test"}, "application/json-patch+json"),
        ("DELETE", "/apis/batch/v1/namespaces/n/jobs/a", {}, "application/json"),
    ]
    assert server.requests[1].body == {"apiVersion": "v1", "kind": "ConfigMap", **MANIFEST}
    assert server.requests[-1].body == {"propagationPolicy": "Background", "preconditions": {"uid": "u"}}
    client.delete(JOB, "a", "n", uid="u", version="7")
    assert server.requests[-1].body["preconditions"] == {"uid": "u", "resourceVersion": "7"}
    assert server.connections == 1


def test_busy_and_broken_servers_are_asked_again_where_it_does_no_harm(server: Server, client: Client) -> None:
    def busy(request: Request, reply: Reply) -> None:
        reply.status(429, "TooManyRequests", Retry_After="0.001")

    def broken(request: Request, reply: Reply) -> None:
        reply.status(503, "ServiceUnavailable")

    server.answers = [busy, broken, away, fine]
    assert client.get(POD, "a", "n")["metadata"]["name"] == "a"
    assert len(server.requests) == 4

    server.requests.clear()
    server.answers = [busy, fine]
    client.create(CONFIG_MAP, MANIFEST)  # it was turned away unseen
    assert len(server.requests) == 2


@pytest.mark.parametrize("write", ["create", "patch"])
def test_a_write_that_may_have_happened_is_not_repeated(server: Server, client: Client, write: str) -> None:
    for answer, error in ((away, Unreachable), (lambda _, reply: reply.status(500), ServerError)):
        server.requests.clear()
        server.answers = [answer]
        with pytest.raises(error):
            if write == "create":
                client.create(CONFIG_MAP, MANIFEST)
            else:
                client.patch(CONFIG_MAP, "a", "n", {})
        assert len(server.requests) == 1


def test_tries_end_after_the_fifth_with_the_last_error(server: Server, client: Client) -> None:
    server.answers = [lambda _, reply: reply.status(429, "TooManyRequests", "too many", Retry_After="0.001")]
    with pytest.raises(TooManyRequests, match=r"^get pods n/a failed with 429 TooManyRequests: too many$") as caught:
        client.get(POD, "a", "n")
    assert (caught.value.status, caught.value.reason, caught.value.retry_after) == (429, "TooManyRequests", 0.001)
    assert len(server.requests) == 5
    with pytest.raises(TooManyRequests):
        client.hurried(1).get(POD, "a", "n")
    assert len(server.requests) == 6


def test_nobody_listening_is_unreachable(server: Server) -> None:
    client = Client(Config("http://127.0.0.1:9"), manager="test").hurried(1)
    with pytest.raises(Unreachable, match=r"get pods n/a failed: .*Connection refused"):
        client.get(POD, "a", "n")
    client.close()


def test_a_silent_server_is_unreachable_after_the_time_limit(server: Server, client: Client) -> None:
    server.answers = [lambda _, reply: server.done.wait() and None]
    with pytest.raises(Unreachable, match="timed out"):
        client.hurried(0.1).get(POD, "a", "n")


def test_closing_the_client_ends_a_wait_between_tries(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_MAX_RETRY_AFTER_SECONDS", 40.0)
    closer = threading.Timer(0.2, client.close)

    def later(_: Request, reply: Reply) -> None:
        reply.status(429, Retry_After="40")
        closer.start()  # not before it was asked: a client that is closed asks nobody

    server.answers = [later]
    started = time.monotonic()
    with pytest.raises(TooManyRequests):
        client.get(POD, "a", "n")
    assert time.monotonic() - started < 40
    closer.join()
    with pytest.raises(Unreachable, match="closed"):
        client.get(POD, "a", "n")


def test_both_meanings_of_409_are_told_apart(server: Server, client: Client) -> None:
    server.answers = [
        lambda _, reply: reply.status(409, "AlreadyExists"),
        lambda _, reply: reply.status(409, "Conflict"),
    ]
    with pytest.raises(AlreadyExists):
        client.create(CONFIG_MAP, MANIFEST)
    with pytest.raises(Conflict):
        client.replace(CONFIG_MAP, MANIFEST)


def test_an_answer_that_is_no_json_is_quoted(server: Server, client: Client) -> None:
    def page(request: Request, reply: Reply) -> None:
        reply.begin()
        reply.chunk(b"<html>log in</html>")
        reply.end()

    server.answers = [page]
    with pytest.raises(KubeError, match="no JSON: '<html>log in</html>'"):
        client.get(POD, "a", "n")


def test_a_refused_token_is_read_again_once(server: Server, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    file = TokenFile(token)
    config = Config(server.url, authorization=file.authorization, renew=file.renew)
    client = Client(config, manager="test")

    def check(request: Request, reply: Reply) -> None:
        if request.headers["Authorization"] == "Bearer new":
            fine(request, reply)
        else:
            stat = token.stat()
            token.write_text("new")
            os.utime(token, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a file system that does not tell
            reply.status(401, "Unauthorized")

    server.answers = [check]
    client.get(POD, "a", "n")
    assert [r.headers["Authorization"] for r in server.requests] == ["Bearer old", "Bearer new"]

    server.requests.clear()
    server.answers = [lambda _, reply: reply.status(401, "Unauthorized")]
    with pytest.raises(Unauthorized):
        client.get(POD, "a", "n")
    assert len(server.requests) == 2
    client.close()


def test_lists_come_in_pages_and_start_again_when_their_moment_is_too_long_ago(server: Server, client: Client) -> None:
    def page(*names: str, token: str = "") -> Any:
        items = [{"metadata": {"name": name}} for name in names]
        return lambda _, reply: reply.json({"metadata": {"resourceVersion": "7", "continue": token}, "items": items})

    server.answers = [page("a", "b", token="t1"), page("c")]
    items, version = client.list(POD, "n", labels="x=y", page=2)
    assert ([item["metadata"]["name"] for item in items], version) == (["a", "b", "c"], "7")
    assert items[0]["kind"] == "Pod"
    assert [r.query for r in server.requests] == [
        {"labelSelector": "x=y", "limit": "2"},
        {"labelSelector": "x=y", "limit": "2", "continue": "t1"},
    ]

    server.requests.clear()
    expired = [page("a", token="t1"), lambda _, reply: reply.status(410, "Expired"), page("a", "b")]
    server.answers = expired
    assert [item["metadata"]["name"] for item in client.list(POD, "n")[0]] == ["a", "b"]
    assert server.requests[-1].query == {}

    server.answers = [page(), lambda _, reply: reply.status(410, "Expired")]
    client.list(POD)
    with pytest.raises(Gone):
        client.list(POD)


def test_events_are_found_wherever_the_pieces_are_cut(server: Server, client: Client) -> None:
    big = "x" * 300_000
    lines = b"".join(b'{"type":"ADDED","object":{"n":%d,"big":"%s"}}\n' % (n, big.encode()) for n in range(2))
    lines += b'{"type":"BOOKMARK","object":{"n":2}}\n{"type":"MODIFIED","object":{"n":3}}\n'

    def watch(request: Request, reply: Reply) -> None:
        reply.begin()
        cuts = [0, 1, 17, 100_000, 100_001, 400_000, len(lines) - 1, len(lines)]
        for start, end in pairwise(cuts):
            reply.chunk(lines[start:end])
        reply.end()

    server.answers = [watch, fine]
    events = list(client.watch(POD, resource_version="5"))
    assert [(event["type"], event["object"]["n"]) for event in events] == [
        ("ADDED", 0),
        ("ADDED", 1),
        ("BOOKMARK", 2),
        ("MODIFIED", 3),
    ]
    assert len(events[0]["object"]["big"]) == 300_000
    query = server.requests[0].query
    assert (query["watch"], query["allowWatchBookmarks"], query["resourceVersion"]) == ("1", "true", "5")
    assert 243 <= int(query["timeoutSeconds"]) <= 297
    client.get(POD, "a", "n")
    assert server.connections == 1  # a watch that ended in order gives its connection back


def test_a_watch_says_how_it_ended(server: Server, client: Client) -> None:
    def gone(request: Request, reply: Reply) -> None:
        reply.begin()
        reply.event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})
        reply.end()

    def half(request: Request, reply: Reply) -> None:
        reply.begin()
        reply.chunk(b'{"type":"ADDED","obj')
        reply.end()

    def torn(request: Request, reply: Reply) -> None:
        reply.begin()
        reply.event("ADDED", {})
        reply.reset()

    def silent(request: Request, reply: Reply) -> None:
        reply.begin()
        reply.event("ADDED", {})
        server.done.wait()

    for answer, error, words in (
        (gone, Gone, "too old"),
        (lambda _, reply: reply.status(410, "Expired"), Gone, "410"),
        (half, Unreachable, "middle of an event"),
        (torn, Unreachable, "cut off"),
        (silent, Unreachable, "cut off.*timed out"),
        (lambda _, reply: reply.status(503), ServerError, "503"),
    ):
        server.answers = [answer]
        with pytest.raises(error, match=words):
            list(client.watch(POD, resource_version="5", idle_seconds=0.2 if answer is silent else 60))
    assert len(server.requests) == 6  # a watch is not tried again here: its caller has a pace of its own


def test_closing_a_watch_from_another_thread_ends_it_at_once(server: Server, client: Client) -> None:
    def silent(request: Request, reply: Reply) -> None:
        reply.begin()
        server.done.wait()

    server.answers = [silent]
    watch = client.watch(POD, resource_version="5")
    threading.Timer(0.1, watch.close).start()
    started = time.monotonic()
    assert list(watch) == []
    assert time.monotonic() - started < 30
    watch.close()
    assert list(watch) == []


def test_logs_come_as_they_are_written(server: Server, client: Client) -> None:
    second = threading.Event()

    def log(request: Request, reply: Reply) -> None:
        reply.begin()
        reply.chunk(b"one\n")
        second.wait()
        reply.chunk(b"two\n")
        reply.end()

    server.answers = [log, lambda _, reply: reply.status(400, "BadRequest", "container not found")]
    stream = client.logs("p", "n", container="stage", follow=True, tail=0)
    assert next(stream) == b"one\n"
    second.set()
    assert list(stream) == [b"two\n"]
    assert server.requests[0].query == {"container": "stage", "follow": "true", "tailLines": "0"}
    with pytest.raises(KubeError, match="log of n/p failed with 400 BadRequest: container not found"):
        client.logs("p", "n", container="none")


def test_each_answer_is_observed(server: Server) -> None:
    seen: list[tuple[str, str]] = []
    config = Config(server.url)
    client = Client(config, manager="test", observe=lambda verb, code, seconds: seen.append((verb, code)))
    server.answers = [fine, lambda _, reply: reply.status(409, "Conflict"), away]
    client.get(POD, "a", "n")
    with pytest.raises(Conflict):
        client.replace(POD, MANIFEST)
    with pytest.raises(Unreachable):
        client.create(POD, MANIFEST)
    assert seen == [("get", "200"), ("update", "409"), ("create", "error")]
    client.close()


def test_warnings_of_the_server_are_logged_once(
    server: Server, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = [lambda _, reply: reply.json({}, Warning='299 - "unknown field spec.x"')]
    client.get(POD, "a", "n")
    client.get(POD, "a", "n")
    assert caplog.messages == ['the API server warns: 299 - "unknown field spec.x"']
