"""A small HTTP server that answers as each test says, with every fault a test can think of."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from camel_ray.operator.kube import client as client_module
from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.config import Config


@dataclass(frozen=True)
class Request:
    """What the server was asked."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


class Reply:
    """One answer, written by the test itself."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._handler = handler

    def json(self, body: object, status: int = 200, **headers: str) -> None:
        """A whole answer; `Retry_After` becomes `Retry-After`."""
        data = json.dumps(body).encode()
        self._handler.send_response(status)
        for name, value in headers.items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.send_header("Content-Length", str(len(data)))
        self._handler.end_headers()
        self._handler.wfile.write(data)

    def status(self, code: int, reason: str = "", message: str = "no", **headers: str) -> None:
        """A failure as the API server says it."""
        self.json({"kind": "Status", "code": code, "reason": reason, "message": message}, code, **headers)

    def begin(self) -> None:
        """Begin a chunked answer."""
        self._handler.send_response(200)
        self._handler.send_header("Transfer-Encoding", "chunked")
        self._handler.end_headers()

    def chunk(self, data: bytes) -> None:
        """The next piece of it."""
        self._handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self._handler.wfile.flush()

    def event(self, kind: str, obj: object) -> None:
        """An event of a watch, as one piece."""
        self.chunk(json.dumps({"type": kind, "object": obj}).encode() + b"\n")

    def end(self) -> None:
        """End it in order."""
        self._handler.wfile.write(b"0\r\n\r\n")

    def reset(self) -> None:
        """Break the connection off."""
        self._handler.close_connection = True
        self._handler.connection.shutdown(socket.SHUT_RDWR)


Answer = Callable[[Request, Reply], None]


@dataclass
class Server:
    """Answers requests with `answers` in turn; the last of them is used for ever."""

    url: str
    answers: list[Answer] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    done: threading.Event = field(default_factory=threading.Event)
    """The test is over: answers that wait shall return."""


@pytest.fixture
def server() -> Iterator[Server]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            state.connections += 1

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except ConnectionError:
                self.close_connection = True

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            request = Request(self.command, url.path, query, dict(self.headers), body)
            with lock:
                state.requests.append(request)
                answer = state.answers.pop(0) if len(state.answers) > 1 else state.answers[0]
            answer(request, Reply(self))

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

        def log_message(self, *args: Any) -> None:
            pass

    class Listener(ThreadingHTTPServer):
        daemon_threads = True

    listener = Listener(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{listener.server_port}")
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    state.done.set()
    listener.shutdown()
    thread.join()
    listener.server_close()


@pytest.fixture
def client(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client of the server, which waits little between its tries."""
    monkeypatch.setattr(client_module, "_FIRST_DELAY_SECONDS", 0.001)
    client = Client(Config(server.url), manager="test")
    yield client
    client.close()
