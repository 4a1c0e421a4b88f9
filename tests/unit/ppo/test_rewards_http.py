"""The web service as reward, against real servers on loopback that are slow, dying, wrong or busy."""

from __future__ import annotations

import json
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from camel_ray.api.stages.ppo_reward import HttpRewardSpec
from camel_ray.errors import RewardError
from camel_ray.ppo.rewards import http
from camel_ray.ppo.rewards.http import HttpReward
from camel_ray.ppo.rewards.score import Answered, Failure


@dataclass
class Service:
    """A running server, what it was asked, and how it replies: a status, and a body or headers."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)


Reply = Callable[[BaseHTTPRequestHandler, dict[str, Any], int], None]
Serve = Callable[[Reply], Service]


def send(handler: BaseHTTPRequestHandler, body: Any, *, status: int = 200, **headers: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(data)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)


def scores(handler: BaseHTTPRequestHandler, asked: dict[str, Any], number: int) -> None:
    send(handler, {"scores": [len(answer) for answer in asked["answers"]]})


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setattr(http, "_FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setenv("NO_PROXY", "*")
    running: list[tuple[ThreadingHTTPServer, Service]] = []

    def start(reply: Reply) -> Service:
        service = Service()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.requests.append(asked)
                service.headers.append(dict(self.headers))
                try:
                    reply(self, asked, len(service.requests))
                except OSError:  # the client has gone
                    self.close_connection = True

            do_GET = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

        server = Server(("127.0.0.1", 0), Handler)
        service.url = f"http://127.0.0.1:{server.server_port}/score"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append((server, service))
        return service

    yield start
    for server, service in running:
        service.stop.set()
        server.shutdown()
        server.server_close()


def answered(*texts: str) -> list[Answered]:
    return [Answered(f"p{i}", text, f'{{"n": {i}}}') for i, text in enumerate(texts)]


def ask(service: Service, *texts: str, **fields: Any) -> list[Any]:
    spec = HttpRewardSpec(url=service.url, **{"timeout_seconds": 20.0, **fields})
    with HttpReward(spec) as reward:
        return [str(s) if isinstance(s, Failure) else s for s in reward(answered(*texts))]


def test_answers_go_out_in_batches_and_scores_come_back_in_order(serve: Serve) -> None:
    service = serve(scores)
    texts = ["x" * n for n in range(10)]
    assert ask(service, *texts, batch_size=4) == [float(n) for n in range(10)]
    by_first = sorted(service.requests, key=lambda request: str(request["prompts"][0]))
    assert [len(request["answers"]) for request in by_first] == [4, 4, 2]
    assert by_first[2] == {"prompts": ["p8", "p9"], "answers": texts[8:], "rows": [{"n": 8}, {"n": 9}]}
    assert ask(service) == []


def test_requests_are_sent_side_by_side(serve: Serve) -> None:
    meeting = threading.Barrier(5)  # nobody is answered before all five have asked

    def together(handler: BaseHTTPRequestHandler, asked: dict[str, Any], number: int) -> None:
        meeting.wait(timeout=20.0)
        scores(handler, asked, number)

    assert ask(serve(together), *"abcde", batch_size=1) == [1.0] * 5


def test_zero_is_a_score(serve: Serve) -> None:
    assert ask(serve(lambda h, asked, n: send(h, {"scores": [0, 0.0]})), "a", "b") == [0.0, 0.0]


def test_text_that_is_no_unicode_can_be_sent(serve: Serve) -> None:
    service = serve(scores)
    assert ask(service, "\ud800x") == [2.0]
    assert service.requests[0]["answers"] == ["\ud800x"]


def test_a_busy_service_is_asked_again(serve: Serve) -> None:
    def busy(handler: BaseHTTPRequestHandler, asked: dict[str, Any], number: int) -> None:
        if number <= 3:
            send(handler, {}, status=(429, 500, 503)[number - 1])
        else:
            scores(handler, asked, number)

    service = serve(busy)
    assert ask(service, "aa", "b", retries=3) == [2.0, 1.0]
    assert len(service.requests) == 4


def test_a_service_that_stays_busy_fails_its_batch_once_the_tries_are_spent(serve: Serve) -> None:
    service = serve(lambda handler, asked, number: send(handler, {}, status=503))
    assert ask(service, "a", "b", retries=2) == ["HTTP 503: Service Unavailable"] * 2
    assert len(service.requests) == 3


@pytest.mark.parametrize(
    ("status", "count"),
    [(401, 1), (403, 1), (404, 1), (400, 3), (422, 3)],  # 400 and 422 may be one answer's fault: each is tried alone
)
def test_errors_of_the_request_are_not_tried_again(serve: Serve, status: int, count: int) -> None:
    service = serve(lambda handler, asked, number: send(handler, {}, status=status))
    assert [s.partition(":")[0] for s in ask(service, "a", "b")] == [f"HTTP {status}"] * 2
    assert len(service.requests) == count


@pytest.mark.parametrize("how", ["400", "500", "hang up", "nan", "hang", "drip"])
def test_one_bad_answer_costs_one_score(serve: Serve, how: str) -> None:
    def reply(handler: BaseHTTPRequestHandler, asked: dict[str, Any], number: int) -> None:
        if "bad" not in asked["answers"]:
            return scores(handler, asked, number)
        match how:
            case "400" | "500":
                send(handler, {}, status=int(how))
            case "hang up":
                handler.close_connection = True
            case "nan":
                send(handler, {"scores": [None if a == "bad" else len(a) for a in asked["answers"]]})
            case "hang":
                service.stop.wait(60.0)
            case "drip":  # never silent for long, never done
                handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while not service.stop.wait(0.05):
                    handler.wfile.write(b"X-More: more\r\n")
        return None

    service = serve(reply)
    expected = {
        "400": "HTTP 400: Bad Request",
        "500": "HTTP 500: Internal Server Error",
        "nan": "not a number: returned null",
        "hang": "timed out: no reply within 3 s",
        "drip": "timed out: no reply within 3 s",
    }
    found = ask(service, "a", "bad", "ccc", "dd", retries=1 if how in ("500", "hang up") else 0, timeout_seconds=3.0)
    assert found[:1] + found[2:] == [1.0, 3.0, 2.0]
    assert found[1].startswith("connection lost: ") if how == "hang up" else found[1] == expected[how]


def test_a_service_that_always_hangs_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_CONNECTIONS", 4)
    service = serve(lambda handler, asked, number: service.stop.wait(60.0) and None)
    found = ask(service, *"abcdefghijklmnopqrstuvwxyz", batch_size=26, timeout_seconds=0.3, retries=0)
    reasons = [failure.partition(":")[0] for failure in found]
    assert 8 <= reasons.count("timed out") <= 8 + 3  # three more were under way when the eighth was over
    assert reasons.count("not tried") == 26 - reasons.count("timed out")


def test_a_service_that_is_not_there(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found = ask(Service(url=f"http://127.0.0.1:{port}/"), "a", "b", retries=1)
    assert [failure.partition(":")[0] for failure in found] == ["connection lost"] * 2


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (b"nonsense", "unreadable reply: it is no JSON"),
        (b"\xff\xfe", "unreadable reply: it is no JSON"),
        (b"[" * 200_000, "unreadable reply: it is no JSON"),
        (b"", "unreadable reply: it is no JSON"),
        ([1.0], "unreadable reply: it has no list 'scores'"),
        ({"score": [1.0]}, "unreadable reply: it has no list 'scores'"),
        ({"scores": 1.0}, "unreadable reply: it has no list 'scores'"),
        ({"scores": []}, "wrong number of scores: 0 for 1 answers"),
        ({"scores": [1.0, 2.0]}, "wrong number of scores: 2 for 1 answers"),
        ({"scores": [None]}, "not a number: returned null"),
        ({"scores": ["1.0"]}, "not a number: returned str"),
        ({"scores": [[1.0]]}, "not a number: returned list"),
        (b'{"scores": [NaN]}', "not a number: returned nan"),
        (b'{"scores": [1e999]}', "not a number: returned inf"),
        (b'{"scores": [1e39]}', "not a number: returned 1e+39, beyond float32"),
        (b'{"scores": [' + b"9" * 400 + b"]}", "not a number: returned an integer beyond the range of floats"),
        (b'{"scores": [' + b"9" * 5000 + b"]}", "unreadable reply: it is no JSON"),
        (b" " * (9 << 20), "unreadable reply: more than 8 MiB"),
    ],
)
def test_replies_of_the_wrong_shape(serve: Serve, body: Any, failure: str) -> None:
    assert ask(serve(lambda handler, asked, number: send(handler, body)), "a") == [failure]


def test_redirects_are_not_followed(serve: Serve) -> None:
    other = serve(scores)
    for status in (301, 302, 307, 308):
        service = serve(lambda handler, asked, number, s=status: send(handler, {}, status=s, Location=other.url))
        (found,) = ask(service, "a")
        assert found == f"HTTP {status}: redirects are not followed; name the final address"
    assert other.requests == []


@pytest.mark.parametrize("how", ["seconds", "date", "too long", "nonsense"])
def test_retry_after_is_honoured_within_the_limit(serve: Serve, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {
        "seconds": "7",
        "date": formatdate(time.time() + 200, usegmt=True),
        "too long": "9" * 30,
        "nonsense": "soon",
    }
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(http.asyncio, "sleep", sleep)

    def busy(handler: BaseHTTPRequestHandler, asked: dict[str, Any], number: int) -> None:
        if number == 1:
            send(handler, {}, status=503, Retry_After=value[how])
        else:
            scores(handler, asked, number)

    assert ask(serve(busy), "a", timeout_seconds=300.0) == [1.0]
    low, high = {"seconds": (7, 7), "date": (100, 200), "too long": (300, 300), "nonsense": (0.005, 0.01)}[how]
    assert len(waits) == 1 and low <= waits[0] <= high


def test_the_token_comes_from_the_environment_and_is_never_shown(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("REWARD_TOKEN", "t0p-secret\n")
    service = serve(lambda handler, asked, number: send(handler, {}, status=401))
    found = ask(service, "a", token_env="REWARD_TOKEN")
    assert service.headers[0]["Authorization"] == "Bearer t0p-secret"
    assert found == ["HTTP 401: Unauthorized"]
    assert "t0p-secret" not in caplog.text


@pytest.mark.parametrize("value", [None, "", " \n", "two words", "t0p-secret\r\nX: y", "sécret"])
def test_a_token_that_cannot_be_used_is_said_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("REWARD_TOKEN", value)
    with pytest.raises(RewardError, match=r"^reward\.http\.tokenEnv: .*REWARD_TOKEN") as raised:
        HttpReward(HttpRewardSpec(url="http://localhost/", token_env="REWARD_TOKEN"))
    assert not any(word in str(raised.value) for word in ("t0p", "two words", "sécret"))


@pytest.mark.parametrize("url", ["http://", "http://:80/", "http://host:port/", "http://[::1/"])
def test_a_url_that_is_none_is_said_before_anything_runs(url: str) -> None:
    with pytest.raises(RewardError, match=r"^reward\.http\.url: .*correct it"):
        HttpReward(HttpRewardSpec(url=url if len(url) > 7 else "http://?"))


def test_the_address_shows_no_secrets() -> None:
    reward = HttpReward(HttpRewardSpec(url="https://me:pass@host:8443/score?key=abc"))
    assert reward.address == "https://host:8443/score"


def test_the_runs_random_numbers_are_left_alone(serve: Serve) -> None:
    service = serve(lambda handler, asked, number: send(handler, {}, status=503))
    random.seed(3)
    expected = random.Random(3).random()
    ask(service, "a", retries=2)
    assert random.random() == expected


def test_a_call_ends_when_another_thread_closes(serve: Serve) -> None:
    asked_once = threading.Event()

    def hang(handler: BaseHTTPRequestHandler, asked: dict[str, Any], number: int) -> None:
        asked_once.set()
        service.stop.wait(60.0)

    service = serve(hang)
    reward = HttpReward(HttpRewardSpec(url=service.url, timeout_seconds=300.0))
    ended: list[str] = []

    def call() -> None:
        try:
            reward(answered("a"))
        except BaseException as error:
            ended.append(type(error).__name__)

    thread = threading.Thread(target=call)
    thread.start()
    assert asked_once.wait(timeout=60.0)
    reward.close()
    thread.join(timeout=60.0)
    assert ended == ["CancelledError"]
