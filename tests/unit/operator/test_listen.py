"""The operator's HTTP servers under clients that open connections and let them wait, over real sockets."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from camel_ray.operator import listen
from camel_ray.operator.metrics import Metrics, MetricsServer

HOST = "127.0.0.1"
FEW = "127.0.0.2"
MANY = tuple(f"127.0.1.{number}" for number in range(1, 101))


class Work:
    """What /readyz does: nothing, or wait until it may answer."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.under_way = threading.Semaphore(0)

    def __call__(self) -> str:
        self.under_way.release()
        assert self.may_answer.wait(60)
        return ""


@pytest.fixture
def work() -> Iterator[Work]:
    made = Work()
    yield made
    made.may_answer.set()


@pytest.fixture
def server(work: Work) -> Iterator[MetricsServer]:
    server = MetricsServer(Metrics(), port=0, healthy=str, ready=work, host=HOST)
    yield server
    work.may_answer.set()
    server.close()


def places(server: MetricsServer) -> int:
    return len(server._server._open)


def connect(server: MetricsServer, source: str = HOST) -> socket.socket:
    return socket.create_connection((HOST, server.port), timeout=60, source_address=(source, 0))


def probe(server: MetricsServer, source: str = HOST, path: str = "/healthz") -> int:
    with closing(http.client.HTTPConnection(HOST, server.port, timeout=60, source_address=(source, 0))) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


def ask(connection: socket.socket) -> None:
    connection.sendall(b"GET /readyz HTTP/1.1\r\n\r\n")


def answer(connection: socket.socket) -> bytes:
    """All that the server says until it closes the connection; empty if it says nothing."""
    said = b""
    try:
        while piece := connection.recv(65536):
            said += piece
    except ConnectionResetError:
        pass
    return said


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("sources", [(FEW,), (HOST,), MANY], ids=["another pod", "the prober's own address", "many"])
@pytest.mark.parametrize("beginning", [b"", b"GET /met", b"GET /metrics HTTP/1.1\r\nX: "], ids=["", "line", "head"])
def test_probes_are_answered_while_a_hundred_connections_are_held_open(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch, sources: tuple[str, ...], beginning: bytes
) -> None:
    monkeypatch.setattr(listen, "IDLE_SECONDS", 3600.0)
    monkeypatch.setattr(listen, "WHOLE_SECONDS", 3600.0)
    with ExitStack() as stack:
        for number in range(100):
            held = stack.enter_context(connect(server, sources[number % len(sources)]))
            held.sendall(beginning)
        for path in ("/healthz", "/readyz", "/metrics") * 3:
            assert probe(server, path=path) == 200
        assert places(server) <= (listen.PLACES if len(sources) > 4 else listen.PLACES_OF_ONE + 1)


def test_one_address_takes_places_from_itself_only(server: MetricsServer) -> None:
    with ExitStack() as stack:
        patient = stack.enter_context(connect(server, "127.0.0.3"))
        wait_until(lambda: places(server) == 1)
        greedy = [stack.enter_context(connect(server, FEW)) for _ in range(listen.PLACES + 10)]
        assert [answer(connection) for connection in greedy[: -listen.PLACES_OF_ONE]] == [b""] * 58
        wait_until(lambda: places(server) == 1 + listen.PLACES_OF_ONE)
        ask(patient)
        assert answer(patient).startswith(b"HTTP/1.0 200 ")


def test_who_has_asked_keeps_its_place_until_the_answer(server: MetricsServer, work: Work) -> None:
    work.may_answer.clear()
    with ExitStack() as stack:
        asked = [stack.enter_context(connect(server, FEW)) for _ in range(listen.PLACES_OF_ONE)]
        for connection in asked:
            ask(connection)
            assert work.under_way.acquire(timeout=60)
        assert answer(stack.enter_context(connect(server, FEW))) == b""  # turned away: all are worked for
        assert probe(server) == 200  # another address
        work.may_answer.set()
        assert {answer(connection)[:13] for connection in asked} == {b"HTTP/1.0 200 "}


@pytest.mark.parametrize("beginning", [b"", b"GET /healthz HTTP/1.1\r\n"])
def test_a_client_that_says_nothing_for_long_is_cut(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(listen, "IDLE_SECONDS", 0.2)
    with connect(server) as connection:
        connection.sendall(beginning)
        assert answer(connection) == b""
    wait_until(lambda: places(server) == 0)


def test_a_client_that_drips_is_cut(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "WHOLE_SECONDS", 0.5)
    with connect(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        wait_until(lambda: _refuses(connection, b"y"))
    wait_until(lambda: places(server) == 0)


def _refuses(connection: socket.socket, data: bytes) -> bool:
    try:
        connection.sendall(data)
    except OSError:
        return True
    return False


def test_a_head_that_is_too_long_is_not_read_to_its_end(server: MetricsServer) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n" + (b"X: " + b"y" * 16_500 + b"\r\n") * 2 + b"\r\n")
        assert answer(connection).split(b" ")[1:2] in ([b"431"], [])  # the answer is lost where bytes were not read
    assert probe(server) == 200


def test_closing_gives_the_answers_under_way_and_waits_for_nobody_else(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "IDLE_SECONDS", 3600.0)
    before = set(threading.enumerate())
    server = MetricsServer(Metrics(), port=0, healthy=str, ready=work, host=HOST)
    work.may_answer.clear()
    with connect(server) as silent, connect(server) as asked:
        ask(asked)
        assert work.under_way.acquire(timeout=60)
        closing_it = threading.Thread(target=server.close)
        closing_it.start()
        assert answer(silent) == b""
        work.may_answer.set()
        closing_it.join(60)
        assert answer(asked).endswith(b"\r\n\r\nok\n")
    assert set(threading.enumerate()) <= before
