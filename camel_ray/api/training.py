"""Hyper-parameters that every supervised stage shares."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from camel_ray.api.base import Spec
from camel_ray.api.data import DataRef
from camel_ray.api.model import CheckpointSpec, ModelSpec


class EarlyStoppingSpec(Spec):
    """Stop when validation stops getting better."""

    patience: int = Field(default=3, ge=1)
    """Validations in a row without improvement before training stops."""
    min_delta: float = Field(default=0.0, ge=0.0)
    """Smallest fall of the validation loss that counts as an improvement, in nats."""


class OptimizerSpec(Spec):
    """AdamW and its learning-rate schedule."""

    learning_rate: float = Field(default=2e-5, gt=0.0)
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup_ratio: float = Field(default=0.03, ge=0.0, le=1.0)
    """Share of all optimizer steps during which the learning rate rises from 0 to its peak."""
    min_learning_rate_ratio: float = Field(default=0.0, ge=0.0, le=1.0)
    """Learning rate at the end of a cosine schedule, as a share of the peak."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Decoupled weight decay of AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's first and second moment."""
    epsilon: float = Field(default=1e-8, gt=0.0)
    """AdamW's denominator offset."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """Gradients are scaled down to this global L2 norm."""


class TrainingSpec(OptimizerSpec):
    """A supervised stage: data, model, batches, schedule, DeepSpeed and checkpoints."""

    data: DataRef
    """Name of a data stage, or a data set described in place."""
    model: ModelSpec | str | None = None
    """Model to start from; a string is short for its `source`. Default: the newest model made by an earlier stage, else
    the pipeline's `model`."""
    tokenizer: str | None = None
    """Tokenizer stage, directory or hub id. Default: the one saved with the model, else the newest tokenizer stage."""
    epochs: float = Field(default=1.0, gt=0.0)
    """Passes over the training rows. Ignored when `steps` is set."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps, instead of `epochs`."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences (pairs, for preference data) per optimizer step over all workers. Gradient accumulation follows from
    it: batchSize = workers x microBatchSize x accumulation."""
    micro_batch_size: int = Field(default=8, ge=1)
    """Sequences (pairs) per forward pass on one worker."""
    max_length: int = Field(default=1024, ge=8)
    """Longest sequence in tokens. What happens to longer ones is the stage's `overflow`."""
    overflow: Literal["truncate", "drop"] = "truncate"
    """Cut sequences longer than `maxLength` at the end, or drop and count them. A prompt that leaves no room for an
    answer is always dropped and counted."""
    zero: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage: 0 shards nothing, 1 optimizer state, 2 also gradients, 3 also parameters."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """Keep optimizer state (`optimizer`) or also parameters (`all`, ZeRO-3 only) in host memory."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of forward and backward. `auto`: bf16 on a GPU that has it, fp32 on a CPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    evaluate_every_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between two validations. Default: only at the end."""
    log_every_steps: int = Field(default=5, ge=1)
    """Optimizer steps between two log lines."""
    early_stopping: EarlyStoppingSpec | None = None
    """Stop when validation stops getting better. Needs `evaluateEverySteps`."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """How often training state is saved."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Any other argument of the Hugging Face trainer behind the stage, by its own snake_case name
    (`TrainingArguments` for pretrain, `SFTConfig` for sft, `RewardConfig` for reward, `DPOConfig` for dpo). Checked
    by `validate`."""
