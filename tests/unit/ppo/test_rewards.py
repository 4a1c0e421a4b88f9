"""Scores: the reward function in its process, and what a failure does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from camel_ray.api.stages.ppo import RewardFunctionSpec, RewardSpec
from camel_ray.errors import RewardError
from camel_ray.ppo.reward_function import Failure, RewardFunction
from camel_ray.ppo.score import Answered, combine


@pytest.fixture
def function(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    started: list[RewardFunction] = []

    def make(body: str, *, timeout: float = 20.0) -> RewardFunction:
        (tmp_path / "reward.py").write_text(f"def reward(prompts, answers, rows):\n    {body}\n")
        spec = RewardFunctionSpec(path="reward.py", timeout_seconds=timeout)
        started.append(RewardFunction(spec, base_dir=tmp_path))
        return started[-1]

    yield make
    for item in started:
        item.close()


ASK: tuple[list[str], list[str], list[dict[str, Any]]] = (["p", "q"], ["aa", "b"], [{"n": 1}, {"n": 2}])


def reasons(scores: list[float | Failure]) -> list[str]:
    return [score.reason for score in scores if isinstance(score, Failure)]


def test_scores_come_from_prompts_answers_and_rows(function: Any) -> None:
    make = function("print('noise'); return [len(a) + r['n'] / 10 for a, r in zip(answers, rows)]")
    assert make(*ASK) == [2.1, 1.2]
    assert make(*ASK) == [2.1, 1.2]


def test_one_bad_answer_costs_one_score(function: Any) -> None:
    scores = function("return [1 / (len(a) - 1) for a in answers]")(*ASK)
    assert scores[0] == 1.0
    assert reasons(scores) == ["raised ZeroDivisionError: division by zero"]


def test_a_hanging_function_is_killed_and_started_again(function: Any) -> None:
    reward = function("return [1.0] if answers == ['ok'] else __import__('time').sleep(60)", timeout=1.0)
    assert reasons(reward(*ASK)) == ["did not return within 1 s (reward.function.timeoutSeconds)"] * 2
    assert reward(["p"], ["ok"], [{}]) == [1.0]


def test_a_dying_function_is_reported(function: Any) -> None:
    scores = function("__import__('os')._exit(3)")(*ASK)
    assert reasons(scores) == ["ended its process (exit code 3)"] * 2


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return [1.0]", "returned 1 scores for 2 answers"),
        ("return [float('nan'), float('nan')]", "returned nan for an answer"),
        ("return [None, None]", "returned None for an answer"),
        ("return 7", "raised TypeError: 'int' object is not iterable"),
    ],
)
def test_unusable_results_are_failures(function: Any, body: str, reason: str) -> None:
    assert reasons(function(body)(*ASK)) == [reason] * 2


def test_a_large_request_to_a_hanging_function_does_not_block(function: Any) -> None:
    reward = function("__import__('time').sleep(60)", timeout=1.0)
    assert len(reasons(reward(["p" * 500_000], ["a" * 500_000], [{}]))) == 1


def test_a_missing_file_and_a_missing_function_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="there is no file"):
        RewardFunction(RewardFunctionSpec(path="none.py"), base_dir=tmp_path)
    (tmp_path / "reward.py").write_text("x = 1\n")
    with pytest.raises(RewardError, match="it defines no function 'reward'"):
        RewardFunction(RewardFunctionSpec(path="reward.py"), base_dir=tmp_path)
    (tmp_path / "reward.py").write_text("import nothing_like_this\n")
    with pytest.raises(RewardError, match="No module named 'nothing_like_this'"):
        RewardFunction(RewardFunctionSpec(path="reward.py"), base_dir=tmp_path)


ANSWERS = [Answered("p", "aa", '{"n": 1}'), Answered("q", "b", '{"n": 2}')]
BAD = "return [1 / (len(a) - 1) for a in answers]"


def spec_of(**fields: Any) -> RewardSpec:
    return RewardSpec(function=RewardFunctionSpec(path="reward.py"), **fields)


def test_model_and_function_add_up_by_their_weights(function: Any) -> None:
    spec = spec_of(model="rm", model_weight=0.5, function_weight=2.0)
    scores = combine(spec, ANSWERS, model=lambda: [4.0, -2.0], function=function("return [1.0, 3.0]"))
    assert scores.scores_B.tolist() == [4.0, 5.0]
    assert not scores.failures


def test_failure_policy_fail_names_the_answer_and_the_remedy(function: Any) -> None:
    with pytest.raises(
        RewardError, match=r"raised ZeroDivisionError.* answer 'b' to the prompt 'q'; fix it, or set reward.onFai"
    ):
        combine(spec_of(), ANSWERS, model=None, function=function(BAD))


def test_failure_policy_drop_marks_the_answer_and_counts_it(function: Any) -> None:
    scores = combine(spec_of(on_failure="drop"), ANSWERS, model=None, function=function(BAD))
    assert scores.failed_B.tolist() == [False, True]
    assert list(scores.failures.values()) == [1]


def test_failure_policy_value_replaces_the_whole_score(function: Any) -> None:
    spec = spec_of(model="rm", on_failure="value", failure_value=-3.0)
    scores = combine(spec, ANSWERS, model=lambda: [1.0, 1.0], function=function(BAD))
    assert scores.scores_B.tolist() == [2.0, -3.0]
    assert scores.failed_B.tolist() == [False, False]
    assert sum(scores.failures.values()) == 1


def test_a_round_without_any_score_is_an_error(function: Any) -> None:
    with pytest.raises(RewardError, match="all 2 answers of a round were dropped"):
        combine(spec_of(on_failure="drop"), ANSWERS, model=None, function=function("return [None, None]"))


def test_a_reward_model_that_gives_nan_is_a_failure() -> None:
    with pytest.raises(RewardError, match="reward model rm returned nan"):
        combine(RewardSpec(model="rm"), ANSWERS, model=lambda: [1.0, float("nan")], function=None)
