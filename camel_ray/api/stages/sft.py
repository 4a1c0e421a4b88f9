"""`sft`: supervised fine-tuning on prompt-completion pairs or conversations (TRL SFTTrainer)."""

from __future__ import annotations

from typing import Literal

from camel_ray.api.training import TrainingSpec


class SftStageSpec(TrainingSpec):
    """Instruction tuning. Makes a `model` artifact."""

    loss_on: Literal["answer", "all"] = "answer"
    """`answer`: the loss counts answer tokens only (all assistant turns of a conversation). `all`: also the prompt."""
    packing: bool = False
    """Put several conversations into one sequence of up to `maxLength` tokens (best fit). Attention is kept within each
    conversation only by implementations that honour position resets (flash attention)."""
