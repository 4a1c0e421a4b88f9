"""Stops a run whose loss or gradient is no number any more, before a checkpoint is made of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from camel_ray.errors import ModelError


class NanGuard(TrainerCallback):
    """Raises ModelError at the step. `figures`: loss of the last forward pass and gradient norm of the last step (or
    None).
    """

    def __init__(self, stage: str, learning_rate: float, figures: Callable[[], tuple[float, float | None]]) -> None:
        self._stage, self._learning_rate, self._figures = stage, learning_rate, figures

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Runs before the trainer logs, validates or saves this step."""
        loss, grad_norm = self._figures()
        if math.isfinite(loss) and (grad_norm is None or math.isfinite(grad_norm)):
            return
        what = "loss" if not math.isfinite(loss) else "gradient"
        raise ModelError(
            f"stage '{self._stage}': the {what} is not a finite number at step {state.global_step}; lower learningRate "
            f"({self._learning_rate:g}), lengthen warmupRatio, or look for broken rows in the data, and run again"
        )
