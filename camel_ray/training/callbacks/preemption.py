"""Saves a checkpoint when Ray says that the machine of a worker is about to be taken away.

Signals do not reach the training function, which runs in a thread of its Ray worker, so Ray's notice is polled. The
poll is a barrier of all workers, hence not every step.
"""

from __future__ import annotations

from typing import Any

import ray.train
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from camel_ray.errors import Preempted

POLL_STEPS = 10
"""Optimizer steps between two looks; Ray's notice comes minutes before the end, a step takes seconds at most."""


class PreemptionCallback(TrainerCallback):
    """Asks for a checkpoint and, when it is complete, raises Preempted. Stands after the callback that commits."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._noticed = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """All workers get the same answer, so all of them save."""
        if state.global_step % POLL_STEPS == 0 and ray.train.get_preemption_info() is not None:
            self._noticed = True
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The state is safe: give the machine back."""
        if self._noticed:
            raise Preempted(
                f"stage '{self._stage}': a machine is being taken away; step {state.global_step} is saved, "
                "the next attempt continues there"
            )
