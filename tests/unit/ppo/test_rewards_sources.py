"""All rewards together: weighted sums, side by side, and what a failure does."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from camel_ray.api.stages.ppo_reward import AnswerRewardSpec, HttpRewardSpec, RewardFunctionSpec, RewardSpec
from camel_ray.errors import RewardError, WorkerLost
from camel_ray.ppo.rewards import Answered, RewardSources, Scores

Score = Callable[..., Scores]

ANSWERS = [
    Answered("How many?", "it is 4", '{"answer": "4"}'),
    Answered("And then?", "it is 5", '{"answer": "6"}'),
]
PLAIN = "return [1.0, 3.0][-len(answers):]"
BAD = "return [1 / (a != 'it is 5') for a in answers]"


class Scorer(BaseHTTPRequestHandler):
    """Scores answers by 10 times their last digit; `bad` in the path gives null."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        scores = [None if "bad" in self.path else 10 * int(answer[-1]) for answer in asked["answers"]]
        body = json.dumps({"scores": scores}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "*")
    server = HTTPServer(("127.0.0.1", 0), Scorer)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def score(tmp_path: Path) -> Score:
    def run(
        body: str | None = None,
        *,
        answers: Sequence[Answered] = ANSWERS,
        model: Callable[[], list[float]] | None = None,
        timeout: float = 20.0,
        **fields: Any,
    ) -> Scores:
        if body is not None:
            (tmp_path / "reward.py").write_text(f"import os, time\ndef reward(prompts, answers, rows):\n    {body}\n")
            fields["function"] = RewardFunctionSpec(path="reward.py", timeout_seconds=timeout)
        if model is not None:
            fields["model"] = "judge"
        with RewardSources(RewardSpec(**fields), base_dir=tmp_path) as sources:
            return sources.score(answers, model)

    return run


def test_the_score_is_the_weighted_sum_of_all_sources(score: Score, service: str) -> None:
    found = score(
        PLAIN,
        model=lambda: [4.0, -2.0],
        answer=AnswerRewardSpec(correct=1.0, wrong=-1.0),
        http=HttpRewardSpec(url=service),
        function_weight=2.0,
        model_weight=0.5,
        answer_weight=100.0,
        http_weight=-1.0,
    )
    assert found.scores_B.tolist() == [2.0 + 2.0 + 100.0 - 40.0, 6.0 - 1.0 - 100.0 - 50.0]
    assert found.scores_B.dtype == torch.float32
    assert found.failed_B.tolist() == [False, False]
    assert not found.failures


def test_sources_work_side_by_side(score: Score, tmp_path: Path) -> None:
    # The function waits for the model's scores, which come only when the function has begun.
    begun, scored = tmp_path / "begun", tmp_path / "scored"

    def model() -> list[float]:
        while not begun.exists():
            time.sleep(0.01)
        scored.touch()
        return [1.0, 2.0]

    body = f"open({str(begun)!r}, 'w').close()\n    while not os.path.exists({str(scored)!r}): time.sleep(0.01)"
    assert score(f"{body}\n    return [10.0] * len(answers)", model=model).scores_B.tolist() == [11.0, 12.0]


@pytest.mark.parametrize("policy", ["fail", "drop", "value"])
def test_a_score_of_zero_is_a_score(score: Score, policy: str) -> None:
    found = score("return [0.0, 0.0]", model=lambda: [0.0, 0.0], on_failure=policy, failure_value=-9.0)
    assert found.scores_B.tolist() == [0.0, 0.0]
    assert found.failed_B.tolist() == [False, False]


def test_without_any_source_scores_are_zero(score: Score) -> None:
    assert score().scores_B.tolist() == [0.0, 0.0]  # an environment gives the rewards
    assert score(answers=[]).scores_B.shape == (0,)


def test_policy_fail_names_source_reason_answer_and_remedy(score: Score, tmp_path: Path) -> None:
    with pytest.raises(RewardError) as raised:
        score(BAD)
    assert str(raised.value) == (
        f"reward function 'reward' of {tmp_path}/reward.py: raised ZeroDivisionError: division by zero, line 3, for "
        "the answer 'it is 5' to the prompt 'And then?'; fix it, or set reward.onFailure to drop or value"
    )


def test_policy_fail_names_the_service_and_the_model(score: Score, service: str) -> None:
    url = service.replace("://", "://me:secret@") + "bad?key=secret"
    with pytest.raises(
        RewardError, match=rf"^reward service {service}bad: not a number: returned null, for the answer"
    ):
        score(http=HttpRewardSpec(url=url, retries=0))
    with pytest.raises(
        RewardError, match=r"^reward model judge: not a number: returned nan, for an answer to the prompt"
    ):
        score(model=lambda: [1.0, float("nan")])


def test_policy_drop_marks_the_answer_and_counts_it(score: Score) -> None:
    found = score(BAD, model=lambda: [1.0, 2.0], on_failure="drop")
    assert found.scores_B.tolist() == [2.0, 0.0]
    assert found.failed_B.tolist() == [False, True]
    assert found.failures == {"function: raised ZeroDivisionError": 1}


@pytest.mark.parametrize("first", [0, 1])
def test_a_failure_does_not_depend_on_its_place_among_the_others(score: Score, first: int) -> None:
    # A peer loses the rewards of all others when the first of a batch fails, and crashes when another does.
    answers = ANSWERS if first == 0 else ANSWERS[::-1]
    found = score(BAD, answers=answers * 3, on_failure="drop")
    assert found.failed_B.tolist() == [(i + first) % 2 == 1 for i in range(6)]
    assert found.scores_B.tolist() == [0.0 if failed else 1.0 for failed in found.failed_B.tolist()]


def test_policy_value_replaces_the_whole_score(score: Score) -> None:
    found = score(BAD, model=lambda: [1.0, 1.0], on_failure="value", failure_value=-3.0)
    assert found.scores_B.tolist() == [2.0, -3.0]
    assert found.failed_B.tolist() == [False, False]
    assert found.failures == {"function: raised ZeroDivisionError": 1}


def test_failures_are_counted_by_source_and_reason(score: Score, service: str) -> None:
    body = "return [float('nan'), None, 1.0, 2.0][:len(answers)]"
    found = score(
        body,
        answers=ANSWERS * 2,
        model=lambda: [float("inf"), 1.0, 1.0, 1.0],
        http=HttpRewardSpec(url=service + "bad"),
        on_failure="value",
    )
    assert found.failures == {"function: not a number": 2, "http: not a number": 4, "model: not a number": 1}
    assert found.scores_B.tolist() == [0.0] * 4


def test_a_sum_that_float32_cannot_hold_is_a_failure(score: Score) -> None:
    found = score(PLAIN, function_weight=2e38, on_failure="drop")
    assert found.failed_B.tolist() == [False, True]
    assert found.failures == {"sum: not a number": 1}
    assert torch.isfinite(found.scores_B).all()


def test_a_round_without_any_score_is_an_error(score: Score) -> None:
    with pytest.raises(RewardError, match=r"^all 2 answers of a round failed .* raised ValueError: no, line 3; fix it"):
        score("raise ValueError('no')", on_failure="drop")


def test_an_error_of_the_model_ends_the_others_at_once(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "import pathlib, os, time\ndef reward(prompts, answers, rows):\n"
        f"    begun = pathlib.Path({str(tmp_path)!r}, 'pid')\n"
        "    if begun.exists(): return [1.0] * len(answers)\n"
        "    pathlib.Path(str(begun) + '.new').write_text(str(os.getpid())); os.rename(str(begun) + '.new', begun)\n"
        "    time.sleep(600)\n"
    )

    def lost() -> list[float]:
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        raise WorkerLost("a reward host is gone")

    spec = RewardSpec(model="judge", function=RewardFunctionSpec(path="reward.py", timeout_seconds=300.0))
    with RewardSources(spec, base_dir=tmp_path) as sources:
        with pytest.raises(WorkerLost):
            sources.score(ANSWERS, lost)
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)
        # The round is repeated once the host is back.
        assert sources.score(ANSWERS, lambda: [1.0, 2.0]).scores_B.tolist() == [2.0, 3.0]


def test_text_is_needed_by_all_but_the_model(tmp_path: Path) -> None:
    def needs_text(**fields: Any) -> bool:
        with RewardSources(RewardSpec(**fields), base_dir=tmp_path) as sources:
            return sources.needs_text

    assert not needs_text(model="judge")
    assert needs_text(model="judge", answer=AnswerRewardSpec())
    assert needs_text(http=HttpRewardSpec(url="http://localhost/"))
    (tmp_path / "reward.py").write_text("def reward(*_): pass\n")
    assert needs_text(function=RewardFunctionSpec(path="reward.py"))


def test_rows_without_a_right_answer_are_found_before_the_run(tmp_path: Path) -> None:
    with RewardSources(RewardSpec(answer=AnswerRewardSpec()), base_dir=tmp_path) as sources:
        sources.check([answered.row for answered in ANSWERS])
        with pytest.raises(RewardError, match="row 1 of the prompts has no column 'answer'"):
            sources.check(['{"other": 1}'])
    with RewardSources(RewardSpec(model="judge"), base_dir=tmp_path) as sources:
        sources.check(["{}"])


def test_what_cannot_work_is_said_by_the_constructor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    for fields, message in (
        ({"function": RewardFunctionSpec(path="none.py")}, "reward.function.path: there is no file"),
        ({"http": HttpRewardSpec(url="http://h/", token_env="REWARD_TOKEN")}, "variable REWARD_TOKEN is not set"),
    ):
        with pytest.raises(RewardError, match=message):
            RewardSources(RewardSpec(**fields), base_dir=tmp_path)
