"""The progress server over real sockets: what it keeps of a report, when it is written, whom it asks about tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from progress_world import World, report

from camel_ray.operator import progress_server, progress_writer
from camel_ray.operator.progress_server import Identity, reviewer


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Where reports may come as fast as they like."""
    made = World()
    made.hurry(monkeypatch)
    with made.serve():
        yield made


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


@pytest.mark.parametrize("limit", ["_REVIEWS_PER_SECOND", "_REVIEWS_OF_ONE"])
def test_made_up_tokens_do_not_flood_the_api_server(world: World, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(progress_server, limit, 3.0)
    now = progress_server.time.monotonic()
    monkeypatch.setattr(progress_server.time, "monotonic", lambda: now)
    statuses = [world.post({}, token=f"token-{number}")[0] for number in range(5)]
    assert statuses == [401, 401, 401, 503, 503]


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
