"""A pipeline with pods that report, as the progress server sees it, for the tests of that server."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from camel_ray.operator import progress_server, trim
from camel_ray.operator.kube.errors import Unreachable
from camel_ray.operator.names import attempt_labels
from camel_ray.operator.progress_server import Identity, ProgressServer
from camel_ray.operator.progress_tls import Serving

HOST = "127.0.0.1"

PATH = "/v1/namespaces/team/pipelines/llm/stages/base/attempts/2"


@dataclass
class World:
    """A pipeline whose second stage runs its second attempt, pods, and whose tokens they are."""

    patches: list[list[dict[str, Any]]] = field(default_factory=list)
    counted: list[int] = field(default_factory=list)
    reviews: list[str] = field(default_factory=list)
    stop: str | None = None
    number: int = 2
    write_errors: int = 0
    news: threading.Condition = field(default_factory=threading.Condition)
    authority: str = ""
    """PEM that clients trust; empty: they speak plain HTTP."""
    server: ProgressServer = field(init=False)

    @contextmanager
    def serve(self, tls: Callable[[], Serving | None] | None = None) -> Iterator[World]:
        """Serve until the end of the block; `post` and `connect` then reach it."""
        self.server = ProgressServer(
            0, review=self.review, find=self.find, pods=self.pods, write=self.write, tls=tls,
            count=self.counted.append, host=HOST,
        )  # fmt: skip
        try:
            yield self
        finally:
            self.server.close()

    def find(self, namespace: str, name: str) -> dict[str, Any] | None:
        if (namespace, name) != ("team", "llm"):
            return None
        created = "2026-11-23T07:00:00Z"
        attempt = {"number": self.number, "name": "llm-base-2", "executor": "Job", "created": created}
        current = {**attempt, "stop": self.stop} if self.stop else attempt
        stages = [
            {"name": "text", "kind": "data", "phase": "Succeeded"},
            {"name": "base", "kind": "pretrain", "phase": "Running", "current": current},
        ]
        return {"metadata": {"name": name, "namespace": namespace}, "status": {"stages": stages}}

    def pods(self, namespace: str, name: str) -> dict[str, Any] | None:
        labels = {"mine": attempt_labels("llm", "base", 2), "old": attempt_labels("llm", "base", 1), "foreign": {}}
        if name not in labels:
            return None
        metadata = {"name": name, "uid": f"uid-{name}", "labels": labels[name]}
        return trim.pod({"apiVersion": "v1", "kind": "Pod", "metadata": metadata})  # as the operator's cache holds it

    def review(self, token: str) -> Identity | None:
        self.reviews.append(token)
        if token == "broken":
            raise Unreachable("no answer")
        known = {name: Identity("team", name, f"uid-{name}") for name in ("mine", "old", "foreign", "unseen")}
        known["elsewhere"] = Identity("other", "mine")
        known["reborn"] = Identity("team", "mine", "uid-of-a-namesake")
        return known.get(token)

    def write(self, namespace: str, pipeline: str, patch: list[dict[str, Any]]) -> None:
        assert (namespace, pipeline) == ("team", "llm")
        with self.news:
            self.news.notify_all()
            if self.write_errors:
                self.write_errors -= 1
                raise Unreachable("no answer")
            self.patches.append(patch)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.news:
            assert self.news.wait_for(condition, timeout=60)

    def hurry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let reports come as fast as they like, and the server end at once."""
        monkeypatch.setattr(progress_server, "_REPORT_SECONDS", 0.0)
        monkeypatch.setattr(progress_server, "_POLL_SECONDS", 0.02)

    def trust(self) -> ssl.SSLContext:
        """What a careful client checks, and as of Python 3.13 every client."""
        context = ssl.create_default_context(cadata=self.authority)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    def connect(self, source: str = HOST) -> socket.socket:
        """A connection from an address of this machine, ready for bytes."""
        connection = socket.create_connection((HOST, self.server.port), timeout=60, source_address=(source, 0))
        try:
            return self.trust().wrap_socket(connection, server_hostname=HOST) if self.authority else connection
        except OSError:
            connection.close()
            raise

    def raw(self, data: bytes) -> bytes:
        """What the server says to bytes that may be no HTTP at all."""
        with self.connect() as connection:
            answer = b""
            try:
                connection.sendall(data)
                socket.socket.shutdown(connection, socket.SHUT_WR)
                while piece := connection.recv(65536):
                    answer += piece
            except TimeoutError:
                raise
            except OSError:  # the server was first: reset, or no longer connected
                pass
            return answer

    def post(self, body: Any, *, token: str = "mine", path: str = PATH) -> tuple[int, dict[str, Any]]:
        """Status and answer to a report."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with closing(http.client.HTTPConnection(HOST, self.server.port, timeout=60)) as connection:
            connection.sock = self.connect()
            connection.request("POST", path, data, {"Authorization": f"Bearer {token}"} if token else {})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())


def report(percentage: int = 40, **metrics: Any) -> dict[str, Any]:
    named = [{"name": name, "value": value} for name, value in metrics.items()]
    return {"trainerStatus": {"progressPercentage": percentage, "estimatedRemainingSeconds": 90, "metrics": named}}
