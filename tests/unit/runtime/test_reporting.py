"""What the operator is told of a running stage, and what becomes of a server that does not answer as it should."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from camel_ray.progress import Progress
from camel_ray.runtime import reporting
from camel_ray.runtime.reporting import Endpoint, Refused, Reporter, Standing


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses."""
    for name in ("_GLANCE_SECONDS", "_POST_SECONDS", "_ASK_SECONDS", "_LOG_SECONDS"):
        monkeypatch.setattr(reporting, name, 0.01)


def update(at: float, task: str, done: int, total: int | None, **fields: Any) -> dict[str, Any]:
    return {"event": "update", "time": at, "task": task, "done": done, "total": total, "unit": "steps", **fields}


def test_a_report_has_the_share_the_speed_and_the_newest_finite_figures() -> None:
    standing = Standing()
    assert standing.report() == {}
    standing.add(update(100.0, "train", 10, 40, tokens=1000, metrics={"loss": 3.0, "grad_norm": None}))
    standing.add(update(110.0, "train", 20, 40, tokens=6000, metrics={"loss": 2.5, "learning_rate": 1e-4}))
    standing.add(update(111.0, "validate", 20, 40, metrics={"loss": 2.75}))
    standing.add({"event": "finish", "task": "validate"})
    report = standing.report()
    assert report["stage"] == {"task": "train", "done": 20, "total": 40, "unit": "steps"}
    assert report["trainerStatus"] == {
        "lastUpdatedTime": "1970-01-01T00:01:50+00:00",
        "progressPercentage": 50,
        "estimatedRemainingSeconds": 20,
        "metrics": [
            {"name": "loss", "value": "2.5"},
            {"name": "tokens_per_second", "value": "500.0"},
            {"name": "learning_rate", "value": "0.0001"},
            {"name": "validation_loss", "value": "2.75"},
        ],
    }
    assert standing.line() == "train 20/40 steps, loss 2.5, 500 tokens/s, 20 s left"


def test_a_task_without_an_end_has_neither_a_share_nor_a_time_left() -> None:
    standing = Standing()
    standing.add(update(1.0, "perplexity", 10, None))
    standing.add(update(2.0, "perplexity", 20, None))
    assert standing.report()["stage"] == {"task": "perplexity", "done": 20, "unit": "steps"}
    assert standing.report()["trainerStatus"].keys() == {"lastUpdatedTime", "metrics"}


def test_at_most_fifty_metrics_are_sent_with_names_the_server_takes() -> None:
    standing = Standing()
    many = {f"m{number}": 1.0 for number in range(80)} | {"reward": 1.0, "idle_actor+critic": 0.5, "bad": math.inf}
    standing.add(update(1.0, "ppo", 1, 2, metrics=many))
    names = [metric["name"] for metric in standing.report()["trainerStatus"]["metrics"]]
    assert len(names) == 50
    assert names[:2] == ["reward", "idle_actor_critic"]


def follow(
    endpoint: Endpoint | None, path: Path, stop: Callable[[], None] = lambda: None
) -> tuple[Reporter, list[str]]:
    lines: list[str] = []
    reporter = Reporter(endpoint, log=lines.append, stop=stop)
    reporter.follow(path)
    return reporter, lines


def test_events_of_earlier_attempts_are_not_reported(server: Any, tmp_path: Path) -> None:
    progress = Progress(tmp_path / "progress.jsonl")
    progress.update("train", 30, 40)
    reporter, _ = follow(Endpoint(server.url), progress.path)
    progress.update("train", 31, 40)
    server.wait_for(lambda: any("stage" in report for report in server.reports))
    reporter.close({"code": 0})
    assert {report["stage"]["done"] for report in server.reports if "stage" in report} == {31}
    assert server.reports[-1]["result"] == {"code": 0}


def test_the_answer_asks_the_stage_to_stop_once(server: Any, tmp_path: Path) -> None:
    asked = threading.Event()
    calls: list[int] = []

    def stop() -> None:
        calls.append(1)
        asked.set()

    reporter, _ = follow(Endpoint(server.url), tmp_path / "progress.jsonl", stop)
    server.wait_for(lambda: len(server.reports) > 1)
    assert not asked.is_set()
    server.stop = True
    assert asked.wait(60)
    count = len(server.reports)
    server.wait_for(lambda: len(server.reports) > count + 2)
    reporter.close({})
    assert calls == [1]


def test_an_attempt_that_was_given_up_is_stopped(server: Any, tmp_path: Path) -> None:
    asked = threading.Event()
    server.answers.append((409, {}, "this attempt is not the current one of its stage"))
    reporter, lines = follow(Endpoint(server.url), tmp_path / "progress.jsonl", asked.set)
    assert asked.wait(60)
    reporter.close({})
    assert "status 409: this attempt is not the current one" in lines[0]


def test_a_result_is_offered_again_while_the_server_is_busy(server: Any, tmp_path: Path) -> None:
    reporter, lines = follow(None, tmp_path / "progress.jsonl")
    reporter.close({})
    reporter, lines = follow(Endpoint(server.url), tmp_path / "progress.jsonl")
    server.wait_for(lambda: server.reports)
    reporter._closing.set()
    reporter._thread.join()
    server.reports.clear()
    server.answers += [(429, {"Retry-After": "0"}, ""), (503, {"Retry-After": "0"}, "")]
    reporter.close({"code": 14})
    assert [report["result"]["code"] for report in server.reports] == [14, 14, 14]
    assert lines == []


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(server: Any, tmp_path: Path, status: int) -> None:
    server.answers.append((status, {"Retry-After": "1"}, "busy"))
    reporter, lines = follow(Endpoint(server.url), tmp_path / "progress.jsonl")
    server.wait_for(lambda: len(server.moments) > 1)
    reporter.close({})
    assert server.moments[1] - server.moments[0] >= 1.0  # its own pace would be 0.02 s
    assert lines == [f"warning: progress cannot be reported (status {status}: busy); the stage goes on"]


@pytest.mark.parametrize(("status", "asked"), [(503, "86400"), (500, "86400"), (429, "soon"), (503, "")])
def test_a_server_cannot_silence_a_stage_for_long(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, asked: str
) -> None:
    monkeypatch.setattr(reporting, "_LONGEST_PAUSE_SECONDS", 0.05)
    server.answers += [(status, {"Retry-After": asked}, "busy")] * 3
    reporter, _ = follow(Endpoint(server.url), tmp_path / "progress.jsonl")
    server.wait_for(lambda: len(server.reports) > 3)
    reporter.close({})


def test_the_pause_before_the_next_try_stays_a_number_after_days_of_failures() -> None:
    assert reporting._pause(OSError("no answer"), 100_000) == pytest.approx(0.01 * 2**10)  # 2.0**100_000 overflows


def test_a_server_that_fails_costs_one_warning(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "progress.jsonl")
    reporter, lines = follow(Endpoint("http://127.0.0.1:9/x", token=tmp_path / "token"), progress.path)
    progress.update("train", 1, 2)
    warned = threading.Event()
    while not any("cannot be reported" in line for line in lines):
        assert not warned.wait(0.01)
    reporting_seconds = pytest.MonkeyPatch()
    reporting_seconds.setattr(reporting, "_RESULT_SECONDS", 0.0)
    reporter.close({"code": 0})
    reporting_seconds.undo()
    assert len([line for line in lines if "cannot be reported" in line]) == 1


def test_the_token_is_read_for_every_report(server: Any, tmp_path: Path) -> None:
    token = tmp_path / "token"
    endpoint = Endpoint(server.url, token=token)
    for value in ("first", "second\n"):
        token.write_text(value)
        assert endpoint.post({}) is False
    assert server.tokens == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ((307, {"Location": "http://127.0.0.1:9/"}, ""), Refused, "status 307"),
        ((403, {}, "not your pod"), Refused, "status 403: not your pod"),
        ((200, {}, "<html>"), OSError, "not JSON"),
    ],
)
def test_an_answer_that_is_none_is_an_error(server: Any, answer: Any, error: type[Exception], words: str) -> None:
    server.answers.append(answer)
    with pytest.raises(error, match=words):
        Endpoint(server.url).post({})
    assert len(server.reports) == 1


def test_no_url_means_no_server() -> None:
    assert Endpoint.of({}) is None
    assert Endpoint.of({"KUBEFLOW_TRAINER_SERVER_URL": "https://h:1/p", "KUBEFLOW_TRAINER_SERVER_TOKEN": "/t"}) == (
        Endpoint("https://h:1/p", Path("/t"), None)
    )


def test_notes_and_progress_go_to_the_log(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "progress.jsonl")
    reporter, lines = follow(None, progress.path)
    progress.note("2 rows left out", level="warning")
    progress.update("train", 1, 2)
    while not any(line.startswith("train 1/2") for line in lines):
        reporter._closing.wait(0.01)
    reporter.close({})
    assert lines[0] == "warning: 2 rows left out"
    assert lines.count("train 1/2 steps") == 1
