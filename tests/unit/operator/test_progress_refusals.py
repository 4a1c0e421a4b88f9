"""What the progress server refuses, with and without TLS: strangers, nonsense, floods and slow clients."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from progress_world import HOST, PATH, World, report

from camel_ray.operator import listen
from camel_ray.operator.certificates import renewed
from camel_ray.operator.progress_tls import serving


@pytest.fixture(params=["http", "https"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Where reports may come as fast as they like, over either protocol."""
    made = World()
    made.hurry(monkeypatch)
    if request.param == "https":
        certificates, _ = renewed({}, (HOST,), datetime.now(UTC))
        made.authority = certificates.bundle
        kept = serving(certificates.certificate.encode(), certificates.key.encode())
    with made.serve((lambda: kept) if made.authority else None):
        yield made


@pytest.mark.parametrize(
    ("token", "path", "status"),
    [
        ("mine", PATH, 200),
        ("", PATH, 401),
        ("unknown", PATH, 401),
        ("with spaces", PATH, 401),
        ("elsewhere", PATH, 403),
        ("foreign", PATH, 403),
        ("old", PATH, 403),
        ("reborn", PATH, 403),
        ("unseen", PATH, 503),
        ("broken", PATH, 503),
        ("mine", PATH.replace("/2", "/1"), 403),
        ("old", PATH.replace("/2", "/1"), 409),
        ("mine", PATH.replace("team", "other"), 403),
        ("mine", PATH.replace("llm", "mlm"), 403),
        ("mine", PATH + "/x", 404),
        ("mine", "/", 404),
        ("mine", PATH.replace("/2", "/02"), 404),
    ],
)
def test_only_pods_of_the_current_attempt_may_report(world: World, token: str, path: str, status: int) -> None:
    assert world.post(report(), token=token, path=path)[0] == status
    assert world.counted == [status]


@pytest.mark.parametrize(("number", "status"), [(1, 503), (3, 409)])
def test_a_replica_that_lags_behind_asks_to_come_again_and_ends_nothing(world: World, number: int, status: int) -> None:
    world.number = number  # what it takes for the current attempt; a reporter stops its stage after 409
    assert world.post(report())[0] == status


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"trainerStatus": {"progressPercentage": NaN}}', "not JSON"),
        (b"[" * 60_000, "not JSON|nested too deeply"),
        (b"[]", "not a JSON object"),
        ({"trainerStatus": []}, "trainerStatus is not an object"),
        ({"trainerStatus": {"progressPercentage": 101}}, "progressPercentage is not between 0 and 100"),
        ({"trainerStatus": {"progressPercentage": True}}, "progressPercentage is not a number"),
        ({"trainerStatus": {"estimatedRemainingSeconds": -1}}, "estimatedRemainingSeconds is not between 0"),
        ({"trainerStatus": {"estimatedRemainingSeconds": 10**300}}, "estimatedRemainingSeconds is not between 0"),
        ({"trainerStatus": {"metrics": {"loss": 1}}}, "metrics is not a list of names and values"),
        ({"stage": {"task": 4}}, "task is not a string"),
        ({"result": {}}, "result.code is missing"),
        ({"result": {"code": 1, "artifacts": [1]}}, "result.artifacts is not a list of objects"),
    ],
)
def test_a_malformed_report_is_refused_with_a_sentence(world: World, body: Any, words: str) -> None:
    status, answer = world.post(body)
    assert status == 400
    assert any(word in answer["error"] for word in words.split("|"))
    assert world.patches == []


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST %s HTTP/1.1\r\n\r\n", b"411"),
        (b"POST %s HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", b"413"),
        (b"POST %s HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"411"),
        (b"POST %s HTTP/1.1\r\nContent-Length: 1e9\r\n\r\n", b"411"),
        (b"POST %s HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}", b"411"),
        (b"GET %s HTTP/1.1\r\n\r\n", b"501"),
        (b"POST %s HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", b"431"),
    ],
)
def test_a_request_of_another_form_is_refused(world: World, head: bytes, status: bytes) -> None:
    answer = world.raw(head % PATH.encode())
    assert answer.split(b" ")[1] == status
    assert PATH.encode() not in answer


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    line=st.one_of(st.binary(max_size=200), st.just(f"POST {PATH} HTTP/1.1".encode())),
    headers=st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.just(b"Authorization: Bearer mine"),
            st.integers(-2, 300).map(lambda n: b"Content-Length: %d" % n),
        ),
        max_size=5,
    ),
    body=st.one_of(
        st.binary(max_size=300),
        st.dictionaries(
            st.sampled_from(["trainerStatus", "stage", "result", "x"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                    st.sampled_from(["metrics", "name", "value", "code", "task", "done", "progressPercentage"]), inner
                ),
                max_leaves=8,
            ),
        ).map(lambda value: json.dumps(value).encode()),
    ),
)  # fmt: skip
def test_no_bytes_break_the_server(world: World, line: bytes, headers: list[bytes], body: bytes) -> None:
    world.raw(b"\r\n".join([line, *headers, b"", b""]) + body)
    world.raw(
        b"POST %s HTTP/1.1\r\nAuthorization: Bearer mine\r\nContent-Length: %d\r\n\r\n" % (PATH.encode(), len(body))
        + body,
    )
    assert world.post({}) == (200, {"stop": False})
    assert not {status for status in world.counted if status not in (200, 400, 401, 404)}


@pytest.mark.parametrize("line", [b"X: " + b"y" * 60_000 + b"\r\n", b"/x" * 30_000], ids=["headers", "path"])
def test_a_head_that_is_too_long_is_not_read_to_its_end(world: World, line: bytes) -> None:
    first = b"POST %s HTTP/1.1\r\n" % PATH.encode() if line.startswith(b"X") else b"POST "
    answer = world.raw(first + line * 90 + b"\r\n\r\n")
    assert answer.split(b" ")[1:2] in ([b"431"], [])  # the answer is lost where the client was still sending
    assert world.counted == []
    assert world.post({})[0] == 200


@pytest.mark.parametrize("line", ["POST {}", "POST {} HTTP/9.9", "POST {} HTTP/1.1 more", "{}"])
def test_what_is_no_http_hears_nothing_of_itself(world: World, line: str) -> None:
    answer = world.raw(line.format(PATH).encode() + b"\r\nContent-Length: 2\r\n\r\n{}")
    assert answer.endswith(b'{"error": "POST a JSON object of at most 64 KiB with its Content-Length"}')
    assert PATH.encode() not in answer
    assert world.counted == []


def silent(world: World, source: str) -> socket.socket:
    """A client that connects and says nothing, not even what TLS begins with."""
    return socket.create_connection((HOST, world.server.port), timeout=60, source_address=(source, 0))


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def dripped(connection: socket.socket) -> bool:
    """Send a byte, then look whether the server has closed the connection."""
    try:
        connection.sendall(b"x")
        return ended(connection)
    except TimeoutError:
        return False
    except OSError:
        return True


def ended(connection: socket.socket) -> bool:
    """Whether the server has closed a connection on which it had said nothing."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_one_client_takes_a_quarter_of_the_places_and_silent_ones_make_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "IDLE_SECONDS", 3600.0)
    monkeypatch.setattr(listen, "WHOLE_SECONDS", 3600.0)
    taken = world.server._http._open
    threads = threading.active_count()
    with ExitStack() as stack:
        greedy = [stack.enter_context(silent(world, "127.0.0.2")) for _ in range(40)]
        assert all(ended(connection) for connection in greedy[:24])
        wait_until(lambda: len(taken) == 16)
        assert world.post({})[0] == 200  # there is place for others
        wait_until(lambda: len(taken) == 16)
        for number in range(48):
            stack.enter_context(silent(world, f"127.0.0.{4 + number % 3}"))
        wait_until(lambda: len(taken) == 64)
        wait_until(lambda: threading.active_count() - threads <= 64)
        assert world.post({})[0] == 200  # there is none, but the one who has been silent for longest goes
        assert ended(greedy[24])
        wait_until(lambda: len(taken) == 63)
    wait_until(lambda: not taken)
    assert world.counted == [200, 200]


def test_a_client_that_says_nothing_for_long_is_cut(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "IDLE_SECONDS", 2.0)
    monkeypatch.setattr(listen, "WHOLE_SECONDS", 3600.0)
    with silent(world, HOST) as nothing, world.connect() as half:
        half.sendall(b"POST %s HTTP/1.1\r\nContent-Length: 9\r\n" % PATH.encode())
        assert ended(nothing)
        assert ended(half)


@pytest.mark.parametrize("beginning", ["", "POST {} HTTP/1.1\r\nContent-Length: 60000\r\n\r\n"], ids=["head", "body"])
def test_a_client_that_drips_is_cut(world: World, monkeypatch: pytest.MonkeyPatch, beginning: str) -> None:
    monkeypatch.setattr(listen, "WHOLE_SECONDS", 3.0)
    with world.connect() as connection:
        connection.sendall(beginning.format(PATH).encode())
        until = time.monotonic() + 60
        connection.settimeout(0.02)
        while not dripped(connection):
            assert time.monotonic() < until
    assert world.counted == []


def test_a_body_that_ends_early_is_no_report(world: World) -> None:
    head = b"POST %s HTTP/1.1\r\nAuthorization: Bearer mine\r\nContent-Length: 9\r\n\r\n"
    assert world.raw(head % PATH.encode() + b"{}") == b""
    assert world.counted == []
