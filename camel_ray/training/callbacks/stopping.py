"""Ends training with a checkpoint when somebody asks for it, or when Ray says that a worker's machine goes away.

Signals do not reach the training function, which runs in a thread of its Ray worker, so both are looked for. All
workers have to do the same at the same step: the first one looks and tells the others.
"""

from __future__ import annotations

import time
from typing import Any, Literal

import ray.train
import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from camel_ray.errors import Preempted, Stopped
from camel_ray.stop import StopRequest

POLL_SECONDS = 2.0
"""Between two looks at Ray's notices, each of which is a barrier of all workers. Ray drains a node for 30 s or more."""
_NOTHING, _STOP, _POLL = range(3)


class StopCallback(TrainerCallback):
    """Asks for a checkpoint and, when it is complete, raises Stopped or Preempted. Stands after the callback that
    commits.
    """

    def __init__(self, stage: str, request: StopRequest) -> None:
        self._stage, self._request = stage, request
        self._next_poll = 0.0
        self._why: Literal["", "stop", "preemption"] = ""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After the last step there is nothing to stop: the model is written."""
        if state.global_step >= state.max_steps:
            return
        found = self._look(args, first=state.is_world_process_zero)
        if found == _STOP:
            self._why = "stop"
        elif found == _POLL and ray.train.get_preemption_info() is not None:
            self._why = "preemption"
        if self._why:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The state is safe once the first worker has committed it; whoever ended earlier would take it along."""
        if not self._why:
            return
        dist.barrier()
        saved = f"step {state.global_step} is saved, the next attempt continues there"
        if self._why == "stop":
            raise Stopped(f"stage '{self._stage}': stopped on request; {saved}")
        raise Preempted(f"stage '{self._stage}': a machine is being taken away; {saved}")

    def _look(self, args: TrainingArguments, *, first: bool) -> int:
        """What all workers have to do now."""
        found = _NOTHING
        if first:
            now = time.monotonic()
            if self._request.asked:
                found = _STOP
            elif now >= self._next_poll:
                self._next_poll, found = now + POLL_SECONDS, _POLL
        if dist.get_world_size() == 1:
            return found
        shared = torch.tensor([found], device=args.device)
        dist.broadcast(shared, src=0)
        return int(shared)
