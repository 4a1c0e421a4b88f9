"""Turns the trainer's log lines into progress events: the terminal's bars and the report's curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from camel_ray.progress import Progress

_TRAIN = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "accuracy": "accuracy",
    "rewards/accuracies": "accuracy",
    "margin": "margin",
    "rewards/margins": "margin",
}
"""Key of the trainer's log to the metric's name."""


class ProgressCallback(TrainerCallback):
    """Writes the tasks "train" and "validate". `tokens`: tokens seen after 0, 1, ... steps, padding not counted."""

    def __init__(self, progress: Progress, tokens: npt.NDArray[np.int64]) -> None:
        self._progress, self._tokens = progress, tokens

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar at once: the first log line may be minutes away."""
        if state.is_world_process_zero:
            self._update(state, {})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Only lines about training steps; validation has its own event."""
        if logs and "loss" in logs and state.is_world_process_zero:
            self._update(state, logs)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """One point of the validation curve."""
        if metrics and state.is_world_process_zero:
            shown = {name: metrics[f"eval_{name}"] for name in ("loss", "accuracy") if f"eval_{name}" in metrics}
            self._progress.update("validate", state.global_step, state.max_steps, metrics=shown)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the bars away."""
        if state.is_world_process_zero:
            self._update(state, {})
            self._progress.finish("train")

    def _update(self, state: TrainerState, logs: Mapping[str, float]) -> None:
        metrics = {name: float(logs[key]) for key, name in _TRAIN.items() if key in logs}
        tokens = int(self._tokens[min(state.global_step, len(self._tokens) - 1)])
        self._progress.update("train", state.global_step, state.max_steps, tokens=tokens, metrics=metrics)
