"""`dpo`: direct preference optimisation (TRL DPOTrainer)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from camel_ray.api.model import ModelSpec
from camel_ray.api.training import TrainingSpec


class DpoStageSpec(TrainingSpec):
    """Fit a policy directly to preferences, without a reward model. Makes a `model` artifact."""

    beta: float = Field(default=0.1, gt=0.0)
    """Strength of the pull towards the reference model."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """`sigmoid`: DPO (Rafailov et al. 2023). `ipo`: squared loss (Azar et al. 2023) on log-ratios per token, TRL's
    variant, which does not favour short answers."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Assumed share of wrongly labelled pairs (sigmoid loss only)."""
    reference: ModelSpec | str | None = None
    """Reference model. Default: the model the stage starts from."""
    learning_rate: float = Field(default=1e-6, gt=0.0)
    """Peak learning rate of AdamW."""
