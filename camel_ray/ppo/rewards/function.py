"""A user's Python function as reward, called in processes that are killed when they take too long.

The answers of a round are divided among `workers` processes, which work side by side. A part whose call raises, hangs,
dies or returns the wrong number of scores is tried again answer by answer, each with the whole time limit and on
whichever process is free: one slow or fatal answer costs its own score and nobody else's.

How long a round can take: with W workers and the limit T, all healthy calls end within T. A single answer adds at most
T to one of the workers (and the time to load the file again, at most 60 s or T); the others go on meanwhile. When 8
answers in a row, tried alone, have hung with no result between them, it is the function that hangs and not an answer:
the rest fails as `not tried`. A function that hangs always therefore ends a round after about (1 + 8 / W) T.
"""

from __future__ import annotations

import itertools
import queue
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from camel_ray.api.stages.ppo_reward import RewardFunctionSpec
from camel_ray.errors import RewardError
from camel_ray.ppo.rewards import function_handler
from camel_ray.ppo.rewards.process import INTERRUPTED, LOAD_SECONDS, CallFailed, UserProcess, UserSource
from camel_ray.ppo.rewards.score import NOT_A_NUMBER, NOT_TRIED, TIMED_OUT, WRONG_COUNT, Answered, Failure, as_score

_STUCK_AFTER = 8
_COSTS_THE_LIMIT = (TIMED_OUT, "cannot be loaded")

Outcome = list[float | Failure] | Failure
"""Of one call: an entry per answer, or why there is none for any."""


class RewardFunction:
    """`reward(prompts, answers, rows)` of a Python file. Use as a context manager, or call `close`.

    All processes load the file before the constructor returns. Raises RewardError if it cannot be loaded.
    """

    def __init__(self, spec: RewardFunctionSpec, source: UserSource) -> None:
        self.source, self.timeout_seconds = source, spec.timeout_seconds
        handler = Path(str(function_handler.__file__))
        self._processes = [UserProcess(source, handler=handler) for _ in range(spec.workers)]
        self._free: queue.SimpleQueue[UserProcess] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(spec.workers, thread_name_prefix="reward-function")
        try:
            limit = max(spec.timeout_seconds, LOAD_SECONDS)
            for _ in self._threads.map(lambda process: process.start(seconds=limit), self._processes):
                pass
        except BaseException as error:
            self.close()
            if isinstance(error, CallFailed):
                raise RewardError(f"{source.path}: the reward function {error}; fix the file") from None
            raise
        for process in self._processes:
            self._free.put(process)

    def __call__(self, answers: Sequence[Answered]) -> list[float | Failure]:
        """A score or a failure for each answer, in their order. Raises CallFailed if another thread calls `close`."""
        result: list[float | Failure] = [Failure(NOT_TRIED)] * len(answers)
        outcomes: queue.SimpleQueue[tuple[range, Future[Outcome]]] = queue.SimpleQueue()
        waiting, hung_in_a_row = 0, 0

        def submit(part: range) -> None:
            try:
                future = self._threads.submit(self._ask, [answers[i] for i in part])
            except RuntimeError:  # shut down
                raise CallFailed(INTERRUPTED) from None
            future.add_done_callback(lambda done: outcomes.put((part, done)))

        for part in _parts(len(answers), len(self._processes)):
            submit(part)
            waiting += 1
        alone: deque[int] = deque()
        while waiting:
            part, future = outcomes.get()
            waiting -= 1
            if future.cancelled():
                raise CallFailed(INTERRUPTED)
            outcome = future.result()
            if isinstance(outcome, Failure) and len(part) > 1:
                alone += part
            else:
                entries = [outcome] if isinstance(outcome, Failure) else outcome
                for i, entry in zip(part, entries, strict=True):
                    result[i] = entry
                hung = isinstance(outcome, Failure) and outcome.reason in _COSTS_THE_LIMIT
                hung_in_a_row = hung_in_a_row + 1 if hung else 0
            if hung_in_a_row >= _STUCK_AFTER:
                for i in alone:
                    result[i] = Failure(NOT_TRIED, f"{hung_in_a_row} answers in a row took too long")
                alone.clear()
            while alone and waiting < len(self._processes):  # no more than can start, so that giving up is at once
                i = alone.popleft()
                submit(range(i, i + 1))
                waiting += 1
        return result

    def _ask(self, answers: Sequence[Answered]) -> Outcome:
        request = {
            "prompts": [a.prompt for a in answers],
            "answers": [a.answer for a in answers],
            "rows": [a.row for a in answers],
        }
        process = self._free.get()
        try:
            scores = process.ask(request, seconds=self.timeout_seconds)
        except CallFailed as error:
            if error.reason == INTERRUPTED:  # by `close`: that says nothing of the answers
                raise
            return Failure(error.reason, error.detail)
        finally:
            self._free.put(process)
        if not isinstance(scores, list):
            return Failure("unreadable reply", "no list of scores")
        if len(scores) != len(answers):
            some = "more" if len(scores) > len(answers) else str(len(scores))
            return Failure(WRONG_COUNT, f"{some} for {len(answers)} answers")
        return [Failure(NOT_A_NUMBER, f"returned {s}") if isinstance(s, str) else as_score(s) for s in scores]

    def close(self) -> None:
        """Kill the processes and everything they started. A call in progress in another thread ends at once."""
        for process in self._processes:
            process.interrupt()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _parts(count: int, workers: int) -> list[range]:
    """`count` items in at most `workers` contiguous parts whose sizes differ by at most one; none is empty."""
    parts = min(workers, count)
    bounds = [count * k // parts for k in range(parts + 1)] if parts else [0]
    return [range(a, b) for a, b in itertools.pairwise(bounds)]
