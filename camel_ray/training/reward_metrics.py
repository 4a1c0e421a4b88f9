"""How good a reward model is on held-out pairs, and on which scale it scores.

The baseline beside its accuracy is "the longer answer wins": people prefer longer answers, so a reward model has learnt
something only beyond that (Singhal et al. 2023).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any


def reward_metrics(
    scores: Sequence[tuple[float, float]],
    *,
    characters: Sequence[Sequence[int]],
    kinds: Sequence[str | None],
) -> dict[str, Any]:
    """Figures over pairs. `scores`: raw (chosen, rejected); `characters`: lengths of both answers; `kinds`: names or
    None.

    A tie of scores is wrong; a tie of lengths counts half, because the baseline would have to guess. `mean` and `std`
    (divisor n - 1) are those of the chosen answers' scores. Without pairs every figure is None.
    """
    if not scores:
        return {"pairs": 0, "accuracy": None, "accuracy_longer_wins": None, "mean": None, "std": None}
    right = [chosen > rejected for chosen, rejected in scores]
    longer = [1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0 for chosen, rejected in characters]
    chosen_scores = [chosen for chosen, _ in scores]
    mean = math.fsum(chosen_scores) / len(scores)
    spread = math.fsum((s - mean) ** 2 for s in chosen_scores)
    metrics: dict[str, Any] = {
        "pairs": len(scores),
        "accuracy": sum(right) / len(scores),
        "accuracy_longer_wins": sum(longer) / len(scores),
        "margin": math.fsum(chosen - rejected for chosen, rejected in scores) / len(scores),
        "mean": mean,
        "std": math.sqrt(spread / (len(scores) - 1)) if len(scores) > 1 else 0.0,
    }
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for kind, correct in zip(kinds, right, strict=True):
        if kind is not None:
            by_kind[kind].append(correct)
    if by_kind:
        metrics["accuracy_by_kind"] = {kind: sum(r) / len(r) for kind, r in sorted(by_kind.items())}
    return metrics


def normalise(config: Any, *, mean: float, std: float) -> None:
    """Store in a model's configuration what turns its raw score into one with mean 0 and deviation 1 on chosen answers.

    A deviation of 0 (one pair, or a model that scores everything alike) leaves the scale as it is.
    """
    config.reward_mean = mean
    config.reward_std = std if std > 0 else 1.0
