"""What TRL's own trainer says of both losses on rollouts it is given.

    python -m ppo_sides.check_trl TASK

Only its function that draws answers is replaced; experience, losses and updates are TRL's.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from trl.experimental.ppo import ppo_trainer

from ppo_sides.side_trl import trainer
from ppo_sides.task import Task

CHANGES: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-3}
"""As in `check_ours`, which this environment cannot import."""


class Keep(TrainerCallback):
    """Keeps what the trainer logs."""

    def __init__(self) -> None:
        self.logs: dict[str, float] = {}

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """Figures of the last round."""
        self.logs.update(logs)


def main() -> None:
    """Print the means of both losses over all updates."""
    task = replace(Task(**json.loads(sys.argv[1])), **CHANGES)
    rollouts = {tuple(row[: task.prompt]): row for row in json.loads(task.path("rollouts.json").read_text())}

    def given(model: torch.nn.Module, queries: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        sequences = torch.tensor([rollouts[tuple(query)] for query in queries.tolist()])
        with torch.no_grad():
            return sequences, model(input_ids=sequences).logits[:, task.prompt - 1 : -1]

    ppo_trainer.batch_generation = given
    keep = Keep()
    with tempfile.TemporaryDirectory() as directory:
        made = trainer(task, directory, [keep], rounds=1, prompts=[list(prompt) for prompt in rollouts])
        made.train()
    print(json.dumps({"policy loss": keep.logs["loss/policy_avg"], "value loss": keep.logs["loss/value_avg"]}))


if __name__ == "__main__":
    main()
