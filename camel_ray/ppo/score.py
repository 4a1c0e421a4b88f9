"""One score per answer from the reward model and the reward function, and what happens when one fails."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camel_ray.api.stages.ppo import RewardSpec
from camel_ray.errors import RewardError
from camel_ray.ppo.reward_function import Failure, RewardFunction

ModelScores = Callable[[], list[float]]
"""Waits for the reward model's scores, which are computed while the function runs."""


@dataclass(frozen=True)
class Answered:
    """An answer as rewards see it."""

    prompt: str
    """Text of the last user message."""
    answer: str
    row: str
    """JSON object with the other columns of the prompt's row."""
    messages: tuple[tuple[str, str], ...] = ()
    """Role and content of all messages of the prompt."""


@dataclass(frozen=True)
class Scores:
    """Result of a round."""

    scores_B: Tensor
    """float32; 0 where `failed_B`."""
    failed_B: Tensor
    """True where an answer has no score and is to be dropped."""
    failures: Counter[str]
    """Failed rewards by reason, whatever became of them."""


def combine(
    spec: RewardSpec, answers: Sequence[Answered], *, model: ModelScores | None, function: RewardFunction | None
) -> Scores:
    """The weighted sum of both sources for each answer; failures follow `spec.on_failure`.

    Raises RewardError for the first failure if that is `fail`, and if all answers of the round failed and are to be
    dropped.
    """
    total = [0.0] * len(answers)
    failures: dict[int, Failure] = {}
    if function is not None:
        rows: list[dict[str, Any]] = [json.loads(a.row) for a in answers]
        for i, score in enumerate(function([a.prompt for a in answers], [a.answer for a in answers], rows)):
            if isinstance(score, Failure):
                failures[i] = Failure(f"reward function '{function.name}' of {function.path} {score.reason}")
            else:
                total[i] += spec.function_weight * score
    if model is not None:
        for i, score in enumerate(model()):
            if math.isfinite(score):
                total[i] += spec.model_weight * score
            else:
                failures.setdefault(i, Failure(f"reward model {spec.model} returned {score} for an answer"))
    if failures and spec.on_failure == "fail":
        first = min(failures)
        raise RewardError(
            f"{failures[first].reason}, for the answer {_short(answers[first].answer)} to the prompt "
            f"{_short(answers[first].prompt)}; fix it, or set reward.onFailure to drop or value"
        )
    if spec.on_failure == "value":
        total = [spec.failure_value if i in failures else score for i, score in enumerate(total)]
    dropped = set(failures) if spec.on_failure == "drop" else set()
    if answers and len(dropped) == len(answers):
        raise RewardError(
            f"all {len(answers)} answers of a round were dropped: {failures[0].reason}; fix it, nothing can be learned"
        )
    return Scores(
        scores_B=torch.tensor([0.0 if i in dropped else score for i, score in enumerate(total)], dtype=torch.float32),
        failed_B=torch.tensor([i in dropped for i in range(len(answers))], dtype=torch.bool),
        failures=Counter(failure.reason for failure in failures.values()),
    )


def _short(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
