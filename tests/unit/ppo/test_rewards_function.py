"""The reward function: scores, failures of one answer, and several processes."""

from __future__ import annotations

import os
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from camel_ray.api.stages.ppo_reward import RewardFunctionSpec
from camel_ray.errors import RewardError
from camel_ray.ppo.rewards.function import RewardFunction
from camel_ray.ppo.rewards.process import CallFailed, UserSource
from camel_ray.ppo.rewards.score import Answered, Failure

Make = Callable[..., RewardFunction]


@pytest.fixture
def function(tmp_path: Path) -> Iterator[Make]:
    started: list[RewardFunction] = []

    def make(body: str, *, timeout: float = 20.0, workers: int = 1, head: str = "") -> RewardFunction:
        text = textwrap.dedent(head) + "\ndef reward(prompts, answers, rows):\n" + textwrap.indent(body, "    ") + "\n"
        (tmp_path / "reward.py").write_text("import os, sys, time, signal\n" + text)
        spec = RewardFunctionSpec(path="reward.py", timeout_seconds=timeout, workers=workers)
        source = UserSource.read("reward.py", "reward", base_dir=tmp_path, field="reward.function.path")
        started.append(RewardFunction(spec, source))
        return started[-1]

    yield make
    for item in started:
        item.close()


def answered(*texts: str) -> list[Answered]:
    return [Answered(f"p{i}", text, f'{{"n": {i}}}') for i, text in enumerate(texts)]


def shown(scores: list[float | Failure]) -> list[Any]:
    return [str(score) if isinstance(score, Failure) else score for score in scores]


def test_scores_come_from_prompts_answers_and_rows(function: Make) -> None:
    make = function("return [len(a) + r['n'] / 10 + 100 * int(p[1]) for p, a, r in zip(prompts, answers, rows)]")
    assert make(answered("aa", "b")) == [2.0, 101.1]
    assert make(answered("aa", "b")) == [2.0, 101.1]
    assert make([]) == []


def test_zero_is_a_score(function: Make) -> None:
    assert function("return [0, 0.0, False]")(answered("a", "b", "c")) == [0.0, 0.0, 0.0]


def test_arrays_and_their_scalars_are_numbers(function: Make) -> None:
    head = "import numpy"
    assert function("return numpy.arange(2) / 2", head=head)(answered("a", "b")) == [0.0, 0.5]
    assert function("return [numpy.float32(0.5), numpy.array(2)]", head=head)(answered("a", "b")) == [0.5, 2.0]


def test_text_that_is_no_unicode_reaches_the_function(function: Make) -> None:
    assert function("return [len(a) for a in answers]")(answered("\ud800x", "\n\0", "\u2028")) == [2.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("bad", "failure"),
    [
        ("raise ValueError(a)", "raised ValueError: bad, line 3"),
        ("sys.exit(2)", "raised SystemExit: 2, line 3"),
        ("os._exit(3)", "process died: exit code 3"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "process died: signal SIGSEGV"),
        ("return None", "not a number: returned None"),
        ("return float('nan')", "not a number: returned nan"),
        ("return -float('inf')", "not a number: returned -inf"),
        ("return 10 ** 400", "not a number: returned an integer beyond the range of floats"),
        ("return 1e39", "not a number: returned 1e+39, beyond float32"),
        ("return '1.0'", "not a number: returned a str"),
        ("return [1.0]", "not a number: returned a list"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_one_bad_answer_costs_one_score(function: Make, bad: str, failure: str, workers: int) -> None:
    head = f"def one(a):\n    if a == 'bad': {bad}\n    return len(a)"
    scores = function("return [one(a) for a in answers]", head=head, workers=workers)(
        answered("a", "bb", "bad", "dddd", "ee")
    )
    assert shown(scores) == [1.0, 2.0, failure, 4.0, 2.0]


def test_one_hanging_answer_costs_one_score(function: Make) -> None:
    head = "def one(a):\n    if a == 'bad': time.sleep(600)\n    return len(a)"
    make = function("return [one(a) for a in answers]", head=head, timeout=3.0, workers=2)
    scores = make(answered("a", "bb", "bad", "dddd", "ee"))
    assert shown(scores) == [1.0, 2.0, "timed out: no result within 3 s", 4.0, 2.0]
    assert make(answered("a", "bb")) == [1.0, 2.0]


def test_a_slow_answer_does_not_hold_up_the_other_process(function: Make, tmp_path: Path) -> None:
    # The slow answer waits until the other process has scored the other half.
    flag = tmp_path / "flag"
    body = f"""
if 'slow' in answers:
    while not os.path.exists({str(flag)!r}): time.sleep(0.01)
else:
    open({str(flag)!r}, 'w').close()
return [1.0] * len(answers)"""
    assert function(body, workers=2)(answered("slow", "a", "b", "c")) == [1.0] * 4


def test_answers_are_divided_evenly_among_processes(function: Make) -> None:
    make = function("return [os.getpid() + len(answers) / 10] * len(answers)", workers=3)
    scores = make(answered(*"abcdefgh"))
    assert len(set(scores)) == 3
    assert sorted(round(s % 1 * 10) for s in set(scores) if isinstance(s, float)) == [2, 3, 3]
    assert len(make(answered("a"))) == 1


@pytest.mark.parametrize(
    ("body", "failures"),
    [
        ("return [1.0, 2.0, 3.0]", ["wrong number of scores: more for 1 answers"] * 2),
        ("return []", ["wrong number of scores: 0 for 1 answers"] * 2),
        ("return iter(int, 1)", ["wrong number of scores: more for 1 answers"] * 2),
        ("return 7", ["raised TypeError: 'int' object is not iterable"] * 2),
        ("return {'a': 1.0}", ["raised TypeError: the function returned a dict instead of a list of numbers"] * 2),
        ("return 'ab'", ["raised TypeError: the function returned a str instead of a list of numbers"] * 2),
        ("return [1.0]", [1.0, 1.0]),  # right for each alone
    ],
)
def test_results_of_the_wrong_shape(function: Make, body: str, failures: list[Any]) -> None:
    assert shown(function(body)(answered("a", "b"))) == failures


def test_a_function_that_always_hangs_is_given_up(function: Make) -> None:
    scores = function("time.sleep(600)", timeout=0.2, workers=2)(answered(*"abcdefghijklmnopqrstuvwxyz"))
    reasons = [score.reason for score in scores if isinstance(score, Failure)]
    assert len(reasons) == 26
    # 8 in a row, and what was under way on the other process when they were full.
    assert reasons.count("timed out") in (8, 9)
    assert reasons.count("not tried") == 26 - reasons.count("timed out")


def test_many_answers_that_hang_among_others_are_all_found(function: Make) -> None:
    body = "if any(a == 'bad' for a in answers): time.sleep(600)\nreturn [1.0] * len(answers)"
    scores = function(body, timeout=1.5)(answered(*["bad", "good"] * 5))
    assert [isinstance(score, Failure) for score in scores] == [True, False] * 5


def test_a_process_that_was_killed_from_outside_is_replaced(function: Make) -> None:
    make = function("return [os.getpid()] * len(answers)")
    (before,) = make(answered("a"))
    assert isinstance(before, float)
    os.kill(int(before), 9)
    scores = make(answered("a", "b"))
    assert all(isinstance(score, float) and score != before for score in scores)


def test_a_call_ends_when_another_thread_closes(function: Make) -> None:
    make = function("time.sleep(600)", timeout=300.0, workers=2)
    ended: list[BaseException] = []

    def call() -> None:
        try:
            make(answered("a", "b", "c"))
        except CallFailed as error:
            ended.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    make.close()
    thread.join(timeout=60.0)
    assert [str(error) for error in ended] == ["interrupted"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "it defines no 'reward' that can be called"),
        ("import nothing_like_this\n", "No module named 'nothing_like_this', line 1"),
        ("def reward(:\n", "invalid syntax"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_said_at_once(tmp_path: Path, text: str, message: str) -> None:
    source = UserSource(text, str(tmp_path / "reward.py"), "reward")
    with pytest.raises(RewardError, match=f"reward.py: the reward function cannot be loaded: .*{message}.*; fix the"):
        RewardFunction(RewardFunctionSpec(path="reward.py", workers=3), source)
