"""The values that rewards are made of: an answer to be judged, a failure, and the scores of a round."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from torch import Tensor

FLOAT32_MAX = 3.4028234663852886e38

NOT_A_NUMBER = "not a number"
TIMED_OUT = "timed out"
WRONG_COUNT = "wrong number of scores"
NOT_TRIED = "not tried"


DEMONSTRATION = "completion"
"""Key of a prompt's row under which rewards find the data's own answer, where there is one."""


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
class Failure:
    """Why an answer has no score."""

    reason: str
    """A few words out of a small set, the same for the same cause: failures are counted by it."""
    detail: str = ""
    """What else is known; for the eyes of a person."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class Scores:
    """Result of a round."""

    scores_B: Tensor
    """float32; 0 where `failed_B`."""
    failed_B: Tensor
    """True where an answer has no score and is to be dropped. A score of 0 is a score."""
    failures: Counter[str]
    """Failed rewards by source and reason, whatever became of them."""


def as_score(value: object) -> float | Failure:
    """A number (bool included) that float32 can hold, as float; anything else is a failure."""
    if not isinstance(value, int | float):
        return Failure(NOT_A_NUMBER, f"returned {'null' if value is None else type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        return Failure(NOT_A_NUMBER, "returned an integer beyond the range of floats")
    if not math.isfinite(number):
        return Failure(NOT_A_NUMBER, f"returned {number}")
    return number if abs(number) <= FLOAT32_MAX else Failure(NOT_A_NUMBER, f"returned {number:.3g}, beyond float32")
