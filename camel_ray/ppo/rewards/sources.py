"""The score of an answer: the weighted sum of all sources that `reward` names, and what happens when one fails.

The sources of a round run side by side: the function in its processes, the requests to the service, and the reward
model, whose scores the caller waits for. `RewardSources.score` is called once per round by the driver.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from camel_ray.api.stages.ppo_reward import RewardSpec
from camel_ray.errors import RewardError
from camel_ray.ppo.rewards.answer import AnswerCheck
from camel_ray.ppo.rewards.function import RewardFunction
from camel_ray.ppo.rewards.http import HttpReward
from camel_ray.ppo.rewards.process import UserSource
from camel_ray.ppo.rewards.score import FLOAT32_MAX, NOT_A_NUMBER, Answered, Failure, Scores, as_score

ModelScores = Callable[[], Sequence[float]]
"""Waits for the reward model's scores, which are computed while the other sources work."""

Entries = Sequence[float | Failure]
"""What a source says of each answer of a round."""


class RewardSources:
    """All rewards of a stage. Use as a context manager, or call `close`.

    The constructor finds what can be found before anything is loaded: it raises RewardError for a function that cannot
    be loaded, a URL that is none, or a token that is not set.
    """

    def __init__(self, spec: RewardSpec, *, base_dir: Path) -> None:
        self.spec = spec
        self._answer = AnswerCheck(spec.answer) if spec.answer is not None else None
        self._source = None
        if spec.function is not None:
            self._source = UserSource.read(
                spec.function.path, spec.function.name, base_dir=base_dir, field="reward.function.path"
            )
        self._stack: ExitStack | None = None
        self._function: RewardFunction | None = None
        self._http: HttpReward | None = None
        self._open()

    @property
    def needs_text(self) -> bool:
        """Whether answers have to be decoded: a reward model alone reads tokens."""
        spec = self.spec
        return spec.function is not None or spec.answer is not None or spec.http is not None

    def check(self, rows: Iterable[str]) -> None:
        """Raise RewardError if one of the prompts' rows (JSON objects) lacks a right answer that is needed."""
        if self._answer is not None:
            self._answer.check(rows)

    def score(self, answers: Sequence[Answered], model: ModelScores | None = None) -> Scores:
        """The weighted sum over the sources for each answer of a round; failures follow `spec.on_failure`.

        `model` gives one score per answer; it is called in this thread. Where rewards need no text, that of `answers`
        may be empty. Raises RewardError for the first
        failure if the policy is `fail`, and if all answers failed and are to be dropped. Whatever is raised here, also
        by `model`, ends the calls in progress first; the next round starts with new processes.
        """
        self._open()
        entries: dict[str, Entries] = {}
        threads = ThreadPoolExecutor(2, thread_name_prefix="reward")
        try:
            pending: dict[str, Future[list[float | Failure]]] = {}
            if self._function is not None:
                pending["function"] = threads.submit(self._function, answers)
            if self._http is not None:
                pending["http"] = threads.submit(self._http, answers)
            if self._answer is not None:
                entries["answer"] = self._answer(answers)
            if model is not None:
                entries["model"] = [as_score(score) for score in model()]
            for name, future in pending.items():
                entries[name] = future.result()
        except BaseException:
            self.close()
            raise
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
        return self._combine(answers, entries)

    def close(self) -> None:
        """End what is in progress, and kill the processes of the function."""
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()
        self._function = self._http = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        if self._stack is not None:
            return
        with ExitStack() as stack:
            if self.spec.http is not None:
                self._http = stack.enter_context(HttpReward(self.spec.http))
            if self.spec.function is not None:
                assert self._source is not None
                self._function = stack.enter_context(RewardFunction(self.spec.function, self._source))
            self._stack = stack.pop_all()

    def _combine(self, answers: Sequence[Answered], entries: dict[str, Entries]) -> Scores:
        spec = self.spec
        total = [0.0] * len(answers)
        failures: dict[int, tuple[str, Failure]] = {}
        counts: Counter[str] = Counter()
        for name, weight in self._weights().items():
            if name not in entries:
                continue
            for i, entry in enumerate(entries[name]):
                if isinstance(entry, Failure):
                    failures.setdefault(i, (name, entry))
                    counts[f"{name}: {entry.reason}"] += 1
                else:
                    total[i] += weight * entry
        for i, score in enumerate(total):
            if i not in failures and not (math.isfinite(score) and abs(score) <= FLOAT32_MAX):
                failures[i] = "sum", Failure(NOT_A_NUMBER, f"the weighted sum is {score:.3g}")
                counts[f"sum: {NOT_A_NUMBER}"] += 1
        if failures and spec.on_failure == "fail":
            i = min(failures)
            answer = f"the answer {_short(answers[i].answer)}" if self.needs_text else "an answer"
            raise RewardError(
                f"{self._sentence(*failures[i])}, for {answer} to the prompt {_short(answers[i].prompt)}; fix it, or "
                "set reward.onFailure to drop or value"
            )
        if spec.on_failure == "drop" and answers and len(failures) == len(answers):
            raise RewardError(
                f"all {len(answers)} answers of a round failed and were dropped, the first because of "
                f"{self._sentence(*failures[0])}; fix it, nothing can be learned"
            )
        replacement = spec.failure_value if spec.on_failure == "value" else 0.0
        drop = spec.on_failure == "drop"
        return Scores(
            scores_B=torch.tensor(
                [replacement if i in failures else score for i, score in enumerate(total)], dtype=torch.float32
            ),
            failed_B=torch.tensor([drop and i in failures for i in range(len(answers))], dtype=torch.bool),
            failures=counts,
        )

    def _weights(self) -> dict[str, float]:
        spec = self.spec
        return {
            "function": spec.function_weight,
            "answer": spec.answer_weight,
            "http": spec.http_weight,
            "model": spec.model_weight,
        }

    def _sentence(self, name: str, failure: Failure) -> str:
        match name:
            case "function":
                assert self._source is not None
                who = f"reward function '{self._source.name}' of {self._source.path}"
            case "http":
                assert self._http is not None
                who = f"reward service {self._http.address}"
            case "model":
                who = f"reward model {self.spec.model}"
            case _:
                who = "rewards"
        return f"{who}: {failure}"


def _short(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
