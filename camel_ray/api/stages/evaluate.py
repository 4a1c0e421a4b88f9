"""`evaluate`: figures, samples and the report a person reads at the end."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from camel_ray.api.base import Spec
from camel_ray.api.data import DataRef
from camel_ray.api.model import ModelSpec

MetricName = Literal["perplexity", "bleu", "rouge", "exact_match", "reward", "win_rate"]


class EvaluateStageSpec(Spec):
    """Measure a model on validation rows, beside another one. Makes a `report` artifact with report.html."""

    model: ModelSpec | str | None = None
    """Model to evaluate. Default: the newest model made by an earlier stage."""
    baseline: ModelSpec | str | None = None
    """Model to compare with, for the win rate and the before/after samples. Default: the model the evaluated stage
    started from."""
    data: DataRef | None = None
    """Rows with prompts and reference answers; the validation side is used."""
    text: DataRef | None = None
    """Plain text for perplexity; the validation side is used. Default: the data of the newest pretrain stage."""
    reward_model: str | None = None
    """Reward stage, directory or hub id that judges answers. Default: the newest reward stage."""
    metrics: list[MetricName] = Field(default_factory=lambda: list(get_args(MetricName)))
    """What to measure. A metric whose inputs are missing is listed as left out, with the reason."""
    prompts: int = Field(default=64, ge=1)
    """Most validation rows whose prompts are answered."""
    max_text_tokens: int = Field(default=32_768, ge=1)
    """Most tokens of text used for perplexity."""
    samples: int = Field(default=8, ge=0)
    """Prompts shown in the report with the answers of both models."""
    max_length: int = Field(default=512, ge=8)
    """Longest sequence in tokens (prompt and answer)."""
    max_response_length: int = Field(default=128, ge=1)
    """Longest answer in tokens."""
    temperature: float = Field(default=0.0, ge=0.0)
    """0: the likeliest token each time; else sampling at this temperature with the pipeline's seed."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences per forward pass."""
