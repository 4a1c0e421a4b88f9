"""Completes a checkpoint once every worker has written its part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from camel_ray.training.checkpoint import commit


class CommitCallback(TrainerCallback):
    """Writes the manifest and removes old checkpoints. `run`, `keep`: see `checkpoint.commit`."""

    def __init__(self, *, run: str, keep: int) -> None:
        self._run, self._keep = run, keep

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The trainer calls this on every worker after its own files are written."""
        dist.barrier()
        if state.is_world_process_zero:
            directory = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            commit(directory, run=self._run, step=state.global_step, keep=self._keep)
