"""Hears from running attempts how far they are, writes it into their pipeline's status, and tells them to stop.

    POST /v1/namespaces/NS/pipelines/NAME/stages/STAGE/attempts/N
    Authorization: Bearer <projected service-account token, audience camel-ray.dev>
    {"trainerStatus": {...}, "stage": {...}, "result": {...}}          ->  200 {"stop": false}

The first key is Kubeflow Trainer's status contract, so any trainer that speaks it reports without code of ours. A
report is taken only from a pod of that very attempt: the API server says whose the token is (TokenReview), and the
pod's labels say which attempt it belongs to. Every replica of the operator answers, leader or not: it needs the caches
and the API only. Status is written by `progress_writer.py`, in its own thread, so a slow API server delays figures and
never an answer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from camel_ray.operator import names
from camel_ray.operator.clock import stamp
from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.errors import KubeError
from camel_ray.operator.kube.kinds import TOKEN_REVIEW
from camel_ray.operator.listen import Handler, Listener
from camel_ray.operator.model import Object
from camel_ray.operator.progress_report import parse_report
from camel_ray.operator.progress_tls import Serving
from camel_ray.operator.progress_writer import Key, ProgressWriter, Write

AUDIENCE = names.API_GROUP
"""Of the tokens that pods report with."""
MAX_BODY = 64 << 10
_POLL_SECONDS = 0.2
"""Between two looks for connections that take too long."""
_REPORT_SECONDS = 1.0
"""Least time between two reports of an attempt."""
_TRUST_SECONDS = 60.0
"""How long the API server's word about a token holds; a refusal holds a sixth of it."""
_REVIEWS_PER_SECOND = 50.0
_REVIEWS_OF_ONE = 5.0
"""The same for one client: whoever sends made-up tokens must not use up everybody's."""
_REMEMBERED = 20_000
"""Tokens, and attempts, that are remembered."""
_PATH = re.compile(
    r"/v1/namespaces/([a-z0-9-]{1,63})/pipelines/([a-z0-9.-]{1,253})/stages/([a-z0-9-]{1,63})/attempts/([1-9][0-9]{0,8})"
)
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,16384}")
_POD = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """Whose token it is."""

    namespace: str
    pod: str
    """Name of the pod the token was made for."""
    pod_uid: str = ""


def reviewer(client: Client) -> Callable[[str], Identity | None]:
    """Asks the API server about tokens: the function returns None for one that is not good for us. Raises KubeError."""

    def review(token: str) -> Identity | None:
        answer = client.create(TOKEN_REVIEW, {"spec": {"token": token, "audiences": [AUDIENCE]}})
        status = answer.get("status") or {}
        user = status.get("user") or {}
        account = str(user.get("username", "")).split(":")
        extra = user.get("extra") or {}
        pod, uid = ((extra.get(key) or [""])[0] for key in (_POD, _POD_UID))
        # An API server that knows no audiences returns none, and would take any token of the cluster for ours.
        good = status.get("authenticated") is True and AUDIENCE in (status.get("audiences") or [])
        if not good or account[:2] != ["system", "serviceaccount"] or len(account) != 4 or not pod:
            return None
        return Identity(account[2], pod, uid)

    return review


class ProgressServer:
    """Serves from the moment it is made until `close`. `port` 0 takes a free one; `port` then says which.

    `review` says whose a token is, `find` and `pods` look into the caches of pipelines and pods, `write` sends a JSON
    patch for the status of a pipeline, `count` hears the status of every answer, `now` is the time
    that all replicas share. `tls` is asked at each connection what to serve it with; where there is nothing yet, it is
    closed.
    """

    def __init__(
        self,
        port: int,
        *,
        review: Callable[[str], Identity | None],
        find: Callable[[str, str], Object | None],
        pods: Callable[[str, str], Object | None],
        write: Callable[[str, str, list[dict[str, Any]]], Any],
        tls: Callable[[], Serving | None] | None = None,
        count: Callable[[int], None] = lambda status: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        host: str = "",
    ) -> None:
        self._review, self._find, self._pods, self._count = review, find, pods, count
        self._now = now
        self._writer = ProgressWriter(find, write)
        self._lock = threading.Lock()
        self._trusted: dict[bytes, tuple[float, Identity | None]] = {}
        self._reported: dict[Key, float] = {}
        self._reviews: dict[str, tuple[float, float]] = {}
        """How many reviews a client has left, and since when; under the empty name, all of them together."""
        self._http = _Server(host, port, self._answer, tls)
        self.port = self._http.port
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(_POLL_SECONDS,), name="progress-server", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Take no more reports, write what is waiting, and end."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self._writer.close()

    def _answer(self, client: str, path: str, token: str, body: bytes) -> tuple[int, Mapping[str, Any]]:
        try:
            status, answer = self._judge(client, path, token, body)
        except _Refusal as refusal:
            status, answer = refusal.status, {"error": str(refusal)}
        except Exception:
            log.exception("a report cannot be taken")
            status, answer = 500, {"error": "a bug of the operator; its log says more"}
        self._count(status)
        return status, answer

    def _judge(self, client: str, path: str, token: str, body: bytes) -> tuple[int, Mapping[str, Any]]:
        matched = _PATH.fullmatch(path)
        if matched is None:
            raise _Refusal(404, "there is no such path; attempts get theirs in KUBEFLOW_TRAINER_SERVER_URL")
        namespace, pipeline, stage = matched[1], matched[2], matched[3]
        number = int(matched[4])
        identity = self._identity(client, token)
        if identity is None:
            raise _Refusal(401, "the token is not one of a pod for the audience camel-ray.dev")
        if identity.namespace != namespace:
            raise _Refusal(403, "the token is of another namespace")
        self._check_pod(identity, pipeline, stage, number)
        known = self._stage(namespace, pipeline, stage)
        current = known.get("current") or {}
        if number > max(known.get("attempts", 0), current.get("number", 0)):
            raise _Refusal(503, "this attempt has not been seen yet")
        if current.get("number") != number:
            raise _Refusal(409, "this attempt is not the current one of its stage")
        try:
            report = parse_report(body, attempt=number, now=stamp(self._now()))
        except ValueError as error:
            raise _Refusal(400, f"{error}; see the status contract of Kubeflow Trainer") from None
        key = Key(namespace, pipeline, stage, number)
        if report.progress is not None or report.result is not None:
            self._limit(key)
            if not self._writer.put(key, Write(report.progress, report.result)):
                raise _Refusal(503, "too many reports wait to be written")
        return 200, {"stop": bool(current.get("stop"))}

    def _check_pod(self, identity: Identity, pipeline: str, stage: str, number: int) -> None:
        pod = self._pods(identity.namespace, identity.pod)
        if pod is None:
            raise _Refusal(503, "the pod has not been seen yet")  # the API server knows it, so the cache soon will
        metadata = pod.get("metadata", {})
        labels = metadata.get("labels") or {}
        wanted = names.attempt_labels(pipeline, stage, number)
        same = not identity.pod_uid or metadata.get("uid", identity.pod_uid) == identity.pod_uid
        if not same or any(labels.get(key) != value for key, value in wanted.items()):
            raise _Refusal(403, "the token's pod does not belong to this attempt")

    def _stage(self, namespace: str, pipeline: str, stage: str) -> Mapping[str, Any]:
        """The status of a stage; empty if there is none."""
        found = self._find(namespace, pipeline)
        if found is None:
            raise _Refusal(404, "there is no such pipeline")
        stages = (found.get("status") or {}).get("stages") or []
        return next((each for each in stages if each["name"] == stage), {})

    def _identity(self, client: str, token: str) -> Identity | None:
        if not _TOKEN.fullmatch(token):
            return None
        key, now = hashlib.sha256(token.encode()).digest(), time.monotonic()
        with self._lock:
            known = self._trusted.get(key)
            if known is not None and now < known[0]:
                return known[1]
            # Buckets: whoever sends made-up tokens must not keep the API server busy, nor all others out.
            if not (self._may_review(client, _REVIEWS_OF_ONE, now) and self._may_review("", _REVIEWS_PER_SECOND, now)):
                raise _Refusal(503, "too many tokens to check")
        try:
            identity = self._review(token)
        except KubeError as error:
            log.warning("a token cannot be checked: %s", error)
            raise _Refusal(503, "the token cannot be checked now") from None
        with self._lock:
            _make_room(self._trusted)
            trust = _TRUST_SECONDS if identity is not None else _TRUST_SECONDS / 6
            self._trusted[key] = (now + trust, identity)
        return identity

    def _may_review(self, client: str, most: float, now: float) -> bool:
        left, since = self._reviews.pop(client, (most, now))
        left = min(most, left + (now - since) * most)
        _make_room(self._reviews)
        self._reviews[client] = (left - 1.0 if left >= 1.0 else left, now)
        return left >= 1.0

    def _limit(self, key: Key) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._reported.get(key, -_REPORT_SECONDS) < _REPORT_SECONDS:
                raise _Refusal(429, "one report per second is enough")
            self._reported.pop(key, None)
            _make_room(self._reported)
            self._reported[key] = now


class _Refusal(Exception):
    """An answer other than 200, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def _make_room(remembered: dict[Any, Any]) -> None:
    """Forget the oldest entry of a full memory."""
    if len(remembered) >= _REMEMBERED:
        del remembered[next(iter(remembered))]


class _Handler(Handler):
    server: _Server

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not re.fullmatch(r"\d{1,9}", length, re.ASCII):
            return self.send_error(411)
        if int(length) > MAX_BODY:
            return self.send_error(413)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            return None  # the client has gone
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        with self.server.serves(self.connection):
            token = token.strip() if scheme.lower() == "bearer" else ""
            status, answer = self.server.answer(self.client_address[0], self.path, token, body)
        return self._send(status, answer)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no report, without repeating any of it."""
        self._send(int(code), {"error": "POST a JSON object of at most 64 KiB with its Content-Length"})

    def _send(self, status: int, answer: Mapping[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status in (429, 503):
            self.send_header("Retry-After", "2" if status == 503 else "1")
        self.end_headers()
        self.wfile.write(data)


class _Server(Listener):
    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        host: str,
        port: int,
        answer: Callable[[str, str, str, bytes], tuple[int, Mapping[str, Any]]],
        tls: Callable[[], Serving | None] | None,
    ) -> None:
        self.answer = answer
        self._tls = tls
        super().__init__(host, port, _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """A new connection; TLS is agreed on in its own thread, at the first read."""
        connection, address = super().get_request()
        if self._tls is not None:
            serving = self._tls()
            if serving is None:
                connection.close()
                raise OSError("there is no certificate yet")
            connection = serving.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address
