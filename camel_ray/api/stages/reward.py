"""`reward`: a reward model from pairs of answers (TRL RewardTrainer, Bradley-Terry loss)."""

from __future__ import annotations

from pydantic import Field

from camel_ray.api.training import TrainingSpec


class RewardStageSpec(TrainingSpec):
    """Learn to score answers from pairs of a chosen and a rejected one. Makes a `reward-model` artifact."""

    center_coefficient: float = Field(default=0.0, ge=0.0)
    """Weight of the squared sum of both scores, which keeps rewards around 0."""
    normalize: bool = True
    """After training, store mean and standard deviation of the scores of held-out chosen answers, so that PPO and
    evaluation see rewards with mean 0 and deviation 1 on good answers."""
