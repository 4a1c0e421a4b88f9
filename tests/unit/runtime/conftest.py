"""A progress server that remembers what it was sent, and a real S3 server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from s3 import S3, s3_server, use

from camel_ray.runtime import objects
from camel_ray.runtime import storage as storage_module


@dataclass
class Received:
    """Reports, tokens and moments (monotonic) in order.

    `answers`: (status, headers, body) of the next ones; then 200 and `stop`.
    """

    url: str = ""
    reports: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    stop: bool = False
    news: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, condition: Any) -> None:
        with self.news:
            assert self.news.wait_for(condition, timeout=60)


@pytest.fixture
def server() -> Iterator[Received]:
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with received.news:
                received.reports.append(body)
                received.tokens.append(self.headers.get("Authorization"))
                received.moments.append(time.monotonic())
                status, headers, text = (
                    received.answers.pop(0) if received.answers else (200, {}, json.dumps({"stop": received.stop}))
                )
                received.news.notify_all()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        received.url = f"http://127.0.0.1:{http.server_port}/v1/namespaces/a/pipelines/p/stages/text/attempts/1"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield received
        http.shutdown()
        thread.join()


@pytest.fixture(scope="package")
def running() -> Iterator[S3]:
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(running: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """The server with an empty bucket; this process and its clients know it, and give up after half a second."""
    use(running, monkeypatch)
    monkeypatch.setattr(objects, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(storage_module, "_OPEN_PATIENCE_SECONDS", 0.5)
    for name in running.names():
        running.client().delete_object(Bucket="team", Key=name)
    running.requests.clear()
    yield running
    running.fail = lambda method, path: None
