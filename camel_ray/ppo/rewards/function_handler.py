"""Calls a user's reward function inside its process (see `child.py`); imports nothing of ours."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Set
from typing import Any


def handle(function: Callable[..., Any], request: dict[str, Any]) -> list[float | str]:
    """The scores for a request {prompts, answers, rows}: a number, or in its place what came instead of one.

    `rows` are JSON texts. Of a result that is longer than the answers, one entry too many is returned, so that a
    generator without end is seen as wrong and not waited for. Raises TypeError if the result is no list.
    """
    answers = request["answers"]
    scores = function(request["prompts"], answers, [json.loads(row) for row in request["rows"]])
    if hasattr(scores, "tolist"):
        scores = scores.tolist()
    if isinstance(scores, str | bytes | Mapping | Set):
        raise TypeError(f"the function returned a {type(scores).__name__} instead of a list of numbers")
    return [_number(score) for score in itertools.islice(scores, len(answers) + 1)]


def _number(score: Any) -> float | str:
    if hasattr(score, "item"):
        score = score.item()
    if score is None or isinstance(score, str | bytes):
        return "None" if score is None else f"a {type(score).__name__}"
    try:
        return float(score)
    except (TypeError, ValueError):
        return f"a {type(score).__name__}"
    except OverflowError:
        return "an integer beyond the range of floats"
