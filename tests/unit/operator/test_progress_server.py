"""The progress server over real sockets: who may report, what is kept of it, and how little a bad client can do."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from camel_ray.operator import progress_server, progress_writer, trim
from camel_ray.operator.kube.errors import Unreachable
from camel_ray.operator.names import attempt_labels
from camel_ray.operator.progress_server import Identity, ProgressServer, reviewer

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
    server: ProgressServer | None = None

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

    def post(self, body: Any, *, token: str = "mine", path: str = PATH) -> tuple[int, dict[str, Any]]:
        assert self.server is not None
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with closing(http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)) as connection:
            connection.request("POST", path, data, {"Authorization": f"Bearer {token}"} if token else {})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(progress_server, "_REPORT_SECONDS", 0.0)
    made = World()
    made.server = ProgressServer(
        0,
        review=made.review,
        find=made.find,
        pods=made.pods,
        write=made.write,
        count=made.counted.append,
        host="127.0.0.1",
    )
    yield made
    made.server.close()


def report(percentage: int = 40, **metrics: Any) -> dict[str, Any]:
    named = [{"name": name, "value": value} for name, value in metrics.items()]
    return {"trainerStatus": {"progressPercentage": percentage, "estimatedRemainingSeconds": 90, "metrics": named}}


def test_a_report_of_any_trainer_reaches_the_status(world: World) -> None:
    body = report(40, loss="2.1", tokens_per_second="5300.0", learning_rate=1e-4, grad_norm="nan")
    assert world.post(body) == (200, {"stop": False})
    world.wait_for(lambda: len(world.patches) == 1)
    (patch,) = world.patches
    values = {(step["op"], step["path"]): step["value"] for step in patch}
    progress = values["add", "/status/stages/1/progress"]
    assert values["test", "/status/stages/1/name"] == "base"
    assert values["test", "/status/stages/1/current/number"] == 2
    assert progress["attempt"] == 2
    assert (progress["percentage"], progress["remainingSeconds"]) == (40, 90)
    assert progress["metrics"] == {"loss": 2.1, "tokens_per_second": 5300.0, "learning_rate": 1e-4}
    assert values["add", "/status/progress"] == "1/2, 40%"
    assert values["add", "/status/metrics"] == "loss 2.1, 5.3k tokens/s"
    assert world.counted == [200]


def test_our_own_fields_are_kept_beside(world: World) -> None:
    stage = {"task": "train", "done": 4, "total": 10, "unit": "steps"}
    result = {"code": 14, "message": "the reward\n\x1b[31m failed", "artifacts": [], "metrics": {"loss": 2, "x y": 1}}
    assert world.post({**report(), "stage": stage, "result": result})[0] == 200
    world.wait_for(lambda: len(world.patches) == 1)
    values = {step["path"]: step["value"] for step in world.patches[0]}
    written = values["/status/stages/1/progress"]
    assert {key: written[key] for key in stage} == stage
    assert values["/status/stages/1/result"] == {
        "attempt": 2, "code": 14, "message": "the reward [31m failed", "artifacts": [], "metrics": {"loss": 2.0},
    }  # fmt: skip


def test_an_empty_report_only_asks_whether_to_stop(world: World) -> None:
    assert world.post({}) == (200, {"stop": False})
    world.stop = "suspend"
    assert world.post({}) == (200, {"stop": True})
    assert world.patches == []


def test_reports_in_between_are_written_as_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.post(report(1))
    world.wait_for(lambda: len(world.patches) == 1)
    for percentage in range(2, 9):
        assert world.post(report(percentage))[0] == 200
    assert len(world.patches) == 1
    world.post({"result": {"code": 0}})  # does not wait for its turn, and takes the waiting progress along
    world.wait_for(lambda: len(world.patches) == 2)
    values = {step["path"]: step["value"] for step in world.patches[1]}
    assert values["/status/stages/1/progress"]["percentage"] == 8
    assert values["/status/stages/1/result"]["code"] == 0


def test_progress_is_written_again_after_its_pause(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_writer, "PROGRESS_SECONDS", 0.05)
    world.post(report(1))
    world.wait_for(lambda: len(world.patches) == 1)
    world.post(report(1))  # says nothing new
    world.post(report(2))
    world.wait_for(lambda: len(world.patches) == 2)
    assert {step["path"]: step["value"] for step in world.patches[1]}["/status/progress"] == "1/2, 2%"


def test_the_end_of_an_attempt_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_writer, "_TRY_SECONDS", 0.01)
    world.write_errors = 2
    world.post({"result": {"code": 22}})
    world.wait_for(lambda: len(world.patches) == 1)
    assert world.write_errors == 0


def test_a_slow_api_server_delays_no_answer(world: World) -> None:
    with world.news:  # the writer waits for it
        for percentage in range(3):
            assert world.post({**report(percentage), "result": {"code": 0}})[0] == 200
    world.wait_for(lambda: len(world.patches) > 0)


def test_what_waits_when_the_server_ends_is_written_if_it_is_a_result(world: World) -> None:
    world.post(report(1))
    world.wait_for(lambda: len(world.patches) == 1)
    world.post(report(2))
    other = progress_writer.ProgressWriter(world.find, world.write)
    key = progress_writer.Key("team", "llm", "base", 2)
    with world.news:
        assert other.put(key, progress_writer.Write(None, progress_writer.Result(attempt=2, code=0)))
    other.close()
    assert len(world.patches) == 2


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


def test_a_pipeline_that_is_gone_is_not_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.server, "_find", lambda namespace, name: None)
    assert world.post(report())[0] == 404


def test_a_bug_is_answered_and_logged(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(world.server, "_pods", lambda namespace, name: 1 / 0)
    assert world.post(report())[0] == 500
    assert "ZeroDivisionError" in caplog.text


def test_an_attempt_that_is_not_current_any_more_is_told_so(world: World) -> None:
    world.number = 3
    assert world.post(report()) == (409, {"error": "this attempt is not the current one of its stage"})
    assert world.patches == []


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


def test_a_report_is_cut_to_size(world: World) -> None:
    body = {
        **report(1, **{f"m{i}": i for i in range(80)}, **{"bad name": 1.0, "n" * 65: 1.0}),
        "stage": {"task": "t" * 500},
        "result": {"code": 1, "message": "m" * 5000, "artifacts": [{"kind": "model", "uri": "u" * 3000}] * 15},
    }
    assert world.post(body)[0] == 200
    world.wait_for(lambda: len(world.patches) == 1)
    values = {step["path"]: step["value"] for step in world.patches[0]}
    progress, result = values["/status/stages/1/progress"], values["/status/stages/1/result"]
    assert (len(progress["metrics"]), len(progress["task"])) == (50, 64)
    assert (len(result["message"]), len(result["artifacts"]), len(result["artifacts"][0]["uri"])) == (1000, 10, 1024)


def test_the_second_report_within_a_second_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_server, "_REPORT_SECONDS", 3600.0)
    assert world.post(report())[0] == 200
    assert world.post(report())[0] == 429
    assert world.post({})[0] == 200  # a question costs nothing


def test_a_token_is_checked_once_a_minute(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        assert world.post({})[0] == 200
        assert world.post({}, token="unknown")[0] == 401
    assert world.reviews == ["mine", "unknown"]
    for _ in range(2):
        assert world.post({}, token="broken")[0] == 503
    assert world.reviews == ["mine", "unknown", "broken", "broken"]


def test_made_up_tokens_do_not_flood_the_api_server(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_server, "_REVIEWS_PER_SECOND", 3.0)
    monkeypatch.setattr(progress_server.time, "monotonic", lambda now=time.monotonic(): now)
    statuses = [world.post({}, token=f"token-{number}")[0] for number in range(5)]
    assert statuses == [401, 401, 401, 503, 503]


def raw(port: int, data: bytes) -> bytes:
    """What the server says to bytes that may be no HTTP at all."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        answer = b""
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                answer += piece
        except TimeoutError:
            raise
        except OSError:  # the server was first: reset, or no longer connected
            pass
        return answer


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
    assert world.server is not None
    answer = raw(world.server.port, head % PATH.encode())
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
    assert world.server is not None
    raw(world.server.port, b"\r\n".join([line, *headers, b"", b""]) + body)
    raw(
        world.server.port,
        b"POST %s HTTP/1.1\r\nAuthorization: Bearer mine\r\nContent-Length: %d\r\n\r\n" % (PATH.encode(), len(body))
        + body,
    )
    assert world.post({}) == (200, {"stop": False})
    assert not {status for status in world.counted if status not in (200, 400, 401, 404)}


def test_more_connections_than_places_are_turned_away_and_silent_ones_cut(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert world.server is not None
    monkeypatch.setattr(progress_server, "_WHOLE_SECONDS", 1.0)
    silent = [socket.create_connection(("127.0.0.1", world.server.port), timeout=60) for _ in range(64)]
    until = time.monotonic() + 60
    while len(world.server._http._open) < 64:
        assert time.monotonic() < until
        time.sleep(0.01)
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        world.post({})
    for connection in silent:
        assert connection.recv(1) == b""  # cut by the server
        connection.close()
    while world.server._http._open:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert world.post({})[0] == 200


def test_tls_with_a_certificate_that_is_renewed(tmp_path: Path) -> None:
    world = World()
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def renew() -> str:
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=progress"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run(command, check=True, capture_output=True)
        return certificate.read_text()

    first = renew()
    server = ProgressServer(
        0, review=world.review, find=world.find, pods=world.pods, write=world.write,
        tls=(certificate, key), host="127.0.0.1",
    )  # fmt: skip

    def post(authority: str) -> int:
        context = ssl.create_default_context(cadata=authority)
        with closing(http.client.HTTPSConnection("127.0.0.1", server.port, timeout=60, context=context)) as connection:
            connection.request("POST", PATH, b"{}", {"Authorization": "Bearer mine"})
            return connection.getresponse().status

    assert post(first) == 200
    assert raw(server.port, b"POST / HTTP/1.1\r\n\r\n")[:4] != b"HTTP"
    second = renew()
    until = time.monotonic() + 60
    while True:
        try:
            assert post(second) == 200
            break
        except ssl.SSLError:
            assert time.monotonic() < until
            time.sleep(0.05)
    server.close()


class Reviewing:
    """The one method of a client that a review needs."""

    def __init__(self, status: dict[str, Any]) -> None:
        self.status = status
        self.asked: list[Any] = []

    def create(self, kind: Any, manifest: Any) -> dict[str, Any]:
        self.asked.append((kind.plural, manifest))
        return {"status": self.status}


GOOD: dict[str, Any] = {
    "authenticated": True,
    "audiences": ["camel-ray.dev"],
    "user": {
        "username": "system:serviceaccount:team:trainer",
        "extra": {
            "authentication.kubernetes.io/pod-name": ["llm-base-2-x"],
            "authentication.kubernetes.io/pod-uid": ["77"],
        },
    },
}


def test_a_review_asks_for_our_audience_and_names_the_pod() -> None:
    client = Reviewing(GOOD)
    assert reviewer(client)("secret") == Identity("team", "llm-base-2-x", "77")  # type: ignore[arg-type]
    assert client.asked == [("tokenreviews", {"spec": {"token": "secret", "audiences": ["camel-ray.dev"]}})]


@pytest.mark.parametrize(
    "change",
    [
        {"authenticated": False},
        {"audiences": None},
        {"audiences": ["https://kubernetes.default.svc"]},
        {"user": {**GOOD["user"], "username": "admin"}},
        {"user": {**GOOD["user"], "extra": {}}},
        {"user": None},
    ],
)
def test_other_tokens_are_no_ones(change: dict[str, Any]) -> None:
    assert reviewer(Reviewing({**GOOD, **change}))("secret") is None  # type: ignore[arg-type]
