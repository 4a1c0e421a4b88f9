"""`pretrain`: language modelling on plain text, causal or masked."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from camel_ray.api.training import TrainingSpec


class PretrainStageSpec(TrainingSpec):
    """Train a language model on plain text. Makes a `model` artifact."""

    objective: Literal["causal", "masked"] = "causal"
    """`causal`: predict the next token. `masked`: predict hidden tokens from both sides (BERT)."""
    masked_share: float = Field(default=0.15, gt=0.0, lt=1.0)
    """Share of the tokens that `masked` hides."""
    packing: bool = True
    """Join documents, with an end-of-text token between them, and cut the stream into sequences of exactly
    `maxLength`."""
    learning_rate: float = Field(default=3e-4, gt=0.0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.1, ge=0.0)
    """Decoupled weight decay of AdamW."""
