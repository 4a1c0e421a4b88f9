"""Which model a stage starts from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from camel_ray.api.base import Spec


class ModelSpec(Spec):
    """A model to start from: a stage of this pipeline, a directory, a hub id, or a configuration to build from
    scratch.
    """

    source: str | None = None
    """Name of an earlier stage, a local directory, or a Hugging Face hub id. Leave out to build `config` from
    scratch."""
    revision: str | None = None
    """Branch, tag or commit of a hub model. Pin it for runs that must be repeatable."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type the weights are loaded in. `auto` keeps the type they were saved in."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention implementation. `auto` lets transformers choose (sdpa where the model has it)."""
    trust_remote_code: bool = False
    """Run Python code shipped with a hub model. Off, because that code runs with your credentials."""
    config: dict[str, Any] | None = None
    """Arguments of the transformers configuration class in its own snake_case names, with `model_type` (for example
    `{model_type: llama, hidden_size: 256, num_hidden_layers: 4}`). The vocabulary size and special tokens come from
    the tokenizer. Without `source` the model is built from scratch; with it, the entries override the loaded
    configuration."""


class CheckpointSpec(Spec):
    """How often training state is saved, and how much of it is kept."""

    every_steps: int = Field(default=100, ge=1)
    """Optimizer steps between two checkpoints."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept; an old one is deleted only after a newer one is complete."""
