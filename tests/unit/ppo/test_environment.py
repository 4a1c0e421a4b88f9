"""A user's environment class in processes of its own: conversations that fail, hang or die, one by one."""

from __future__ import annotations

import json
import os
import select
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from camel_ray.errors import RewardError
from camel_ray.ppo.environment import Environments, Opening, Turn
from camel_ray.ppo.rewards.score import Failure
from camel_ray.ppo.settings import EnvironmentSettings

GAME = """
import os, random, signal, subprocess, sys, time
SHARED = []

class Environment:
    def reset(self, prompt, row):
        self.turn = 0
        if prompt == "sleep":
            time.sleep(60)
        return "" if prompt == "nothing" else f"{prompt} {row.get('n')} {random.random()}"

    def step(self, answer):
        self.turn += 1
        SHARED.append(answer)
        print("noise", flush=True)
        match answer:
            case "hang": time.sleep(60)
            case "spin":
                while True: pass
            case "die": os._exit(3)
            case "leave": sys.exit(4)
            case "crash": os.kill(os.getpid(), signal.SIGSEGV)
            case "raise": raise ValueError("no such move")
            case "nan": return "x", float("nan"), False
            case "short": return 1.0
            case "null": return None, 1.0, False
            case "long": return "x" * 3_000_000, 1.0, False
            case "child":
                child = subprocess.Popen(["sleep", "60"])
                open(os.environ["CHILD_FILE"], "w").write(str(child.pid))
                time.sleep(60)
        return f"{len(SHARED)} {random.random()}", len(answer) / 2, self.turn == 2
"""

Start = Callable[..., Environments]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Environments] = []

    def make(source: str = GAME, *, timeout: float = 20.0, name: str = "Environment") -> Environments:
        started.append(Environments(EnvironmentSettings(source, "/games/game.py", name, 4, timeout)))
        return started[-1]

    yield make
    for environments in started:
        environments.close()


def openings(count: int) -> list[Opening]:
    return [Opening("p", json.dumps({"n": number}), seed=number) for number in range(count)]


def gone(process: int) -> bool:
    """Whether a process ends: a kill takes effect a moment later."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 60.0)[0])
    finally:
        os.close(descriptor)


def test_a_conversation_keeps_its_state_and_ends_when_it_says_so(start: Start) -> None:
    environments = start()
    first = environments.reset(openings(2))
    assert [str(message).split()[:2] for message in first] == [["p", "0"], ["p", "1"]]
    replies = environments.step({0: "abcd", 1: "ab"})
    assert [(r.reward, r.done) for r in replies.values() if isinstance(r, Turn)] == [(2.0, False), (1.0, False)]
    assert environments.step({1: "abcdef"}) == {1: Turn("", 3.0, True)}
    with pytest.raises(ValueError, match="conversation 1 is not open"):
        environments.step({1: "x"})
    assert environments.step({0: "x"}) == {0: Turn("", 0.5, True)}


def test_random_numbers_are_those_of_the_seed_whatever_else_runs(start: Start) -> None:
    environments = start()
    many = environments.reset(openings(12))
    turns = environments.step(dict.fromkeys(range(12), "x"))
    (alone,) = environments.reset(openings(12)[5:6])
    assert alone == many[5] != many[4]
    assert environments.step({0: "x"})[0] == turns[5]


def test_conversations_share_nothing_they_write(start: Start) -> None:
    environments = start()
    environments.reset(openings(3))
    replies = [environments.step({number: "x"})[number] for number in range(3)]
    assert [r.message.split()[0] for r in replies if isinstance(r, Turn)] == ["1", "1", "1"]


def test_what_goes_wrong_in_one_conversation_costs_no_other(start: Start) -> None:
    environments = start(timeout=10.0)
    environments.reset(openings(12))
    said = ["hang", "spin", "die", "leave", "crash", "raise", "nan", "short", "null", "long", "y" * 3_000_000, "ok"]
    replies = environments.step(dict(enumerate(said)))
    failures = {said[n]: str(reply) for n, reply in replies.items() if isinstance(reply, Failure)}
    assert failures == {
        "hang": "timed out: no reply within 10 s (environment.timeoutSeconds)",
        "spin": "timed out: no reply within 10 s (environment.timeoutSeconds)",
        "die": "process died: exit code 3",
        "leave": "process died: exit code 4",
        "crash": f"process died: exit code {-signal.SIGSEGV}",
        "raise": "raised ValueError: no such move, line 23",
        "nan": "not a number: returned nan",
        "short": "raised TypeError: step returned float instead of (message, reward, done)",
        "null": "unusable message: returned null instead of text",
    }
    healthy = {said[n][:4]: reply for n, reply in replies.items() if isinstance(reply, Turn)}
    assert sorted(healthy) == ["long", "ok", "yyyy"]
    assert len(healthy["long"].message) == 3_000_000 and healthy["yyyy"].reward == 1_500_000
    assert environments.step({11: "abcd"}) == {11: Turn("", 2.0, True)}


def test_a_first_message_may_fail_too(start: Start) -> None:
    environments = start(timeout=5.0)
    replies = environments.reset([Opening(prompt, "{}", 0) for prompt in ("sleep", "nothing", "p")])
    assert [str(reply) for reply in replies[:2]] == [
        "timed out: no reply within 5 s (environment.timeoutSeconds)",
        "unusable message: returned an empty text",
    ]
    assert isinstance(replies[2], str)
    assert isinstance(environments.step({2: "x"})[2], Turn)


def test_when_everything_hangs_the_rest_is_not_tried(start: Start) -> None:
    environments = start()
    environments.settings = replace(environments.settings, timeout_seconds=0.2)  # loading may take longer than that
    count = 300
    replies = environments.reset([Opening("sleep", "{}", 0)] * count)
    reasons = Counter(reply.reason for reply in replies if isinstance(reply, Failure))
    assert reasons["timed out"] + reasons["not tried"] == count
    assert reasons["not tried"] > count / 2


def test_a_kill_reaches_what_the_class_has_started(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHILD_FILE", str(tmp_path / "pid"))
    environments = start(timeout=5.0)
    environments.reset(openings(1))
    assert isinstance(environments.step({0: "child"})[0], Failure)
    assert gone(int((tmp_path / "pid").read_text()))


def test_closing_ends_every_process(start: Start) -> None:
    environments = start()
    environments.reset(openings(3))
    assert environments._process is not None
    processes = [environments._process.pid, *(process for _, process in environments._open.values())]
    environments.close()
    assert all(gone(process) for process in processes)


def test_a_killed_first_process_is_replaced(start: Start) -> None:
    environments = start()
    (before,) = environments.reset(openings(1))
    assert environments._process is not None
    os.kill(environments._process.pid, signal.SIGKILL)
    environments._process.wait()
    assert environments.reset(openings(1)) == [before]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("x = 1", "AttributeError: it defines no class 'Environment'"),
        ("class Environment", r"SyntaxError: expected ':' \(game.py, line 1\)"),
        ("import time\ntime.sleep(60)", r"it takes longer than 2 s \(environment.timeoutSeconds\)"),
        ("import os\nos._exit(5)", "it ended the process"),
        ("\n1 / 0", "ZeroDivisionError: division by zero, line 2"),
    ],
)
def test_a_class_that_cannot_be_loaded_is_refused_at_once(start: Start, source: str, reason: str) -> None:
    with pytest.raises(RewardError, match=f"/games/game.py: the environment cannot be loaded: {reason}; fix the file"):
        start(source, timeout=2.0 if "sleep" in source else 60.0)
