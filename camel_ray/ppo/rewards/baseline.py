"""Scores relative to the data's own answers: r(x, y) = f(x, y) - E[f], so that demonstrations score 0 on average."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from camel_ray.errors import RewardError


@dataclass(frozen=True)
class RewardBaseline:
    """Mean scores of demonstrations (Stiennon et al. 2020; Ouyang et al. 2022, section 3.5)."""

    overall: float
    """Mean over all demonstrations, each counting once."""
    of_prompt: Mapping[int, float] | None = None
    """Mean over the demonstrations of each prompt, by its number; None: `overall` counts for every prompt."""

    @classmethod
    def of(
        cls, demonstrations: Mapping[int, Sequence[float]], *, normalise: Literal["demonstrations", "prompt"]
    ) -> RewardBaseline:
        """From the scores of the demonstrations of each prompt, by its number.

        Raises RewardError if there is no score at all, or one that is not finite.
        """
        scores = [score for of_prompt in demonstrations.values() for score in of_prompt]
        if not scores or not all(math.isfinite(score) for score in scores):
            problem = "no prompt has an answer with a score" if not scores else "one of them is not finite"
            raise RewardError(
                f"reward.normalise: {normalise} needs the scores of the data's own answers, but {problem}; use prompts "
                "with answers, or set reward.normalise to none"
            )
        overall = math.fsum(scores) / len(scores)
        if normalise == "demonstrations":
            return cls(overall)
        return cls(overall, {prompt: math.fsum(own) / len(own) for prompt, own in demonstrations.items() if own})

    def subtract(self, scores: Sequence[float], prompts: Sequence[int]) -> list[float]:
        """Each score minus the mean that belongs to its prompt; `prompts` are the prompts' numbers.

        Of a prompt without a scored demonstration the mean is not known: `overall` takes its place.
        """
        means = self.of_prompt or {}
        return [score - means.get(prompt, self.overall) for score, prompt in zip(scores, prompts, strict=True)]
