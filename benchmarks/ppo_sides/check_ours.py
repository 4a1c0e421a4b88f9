"""Draws the rollouts of the comparison of losses, and computes ours on them.

python -m ppo_sides.check_ours TASK
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import torch

from camel_ray.models.generation import generate
from ppo_sides.bare import BarePpo
from ppo_sides.task import EOS, PAD, Task

CHANGES: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-3, "max_grad_norm": float("inf")}
"""The first update starts from a ratio of 1 everywhere; the second shows what the first one did."""
ROLLOUTS = "rollouts.json"


def main() -> None:
    """Print the means of both losses over all updates."""
    task = replace(Task(**json.loads(sys.argv[1])), **CHANGES)
    ppo, prompts = BarePpo(task), task.all_prompts()[: task.prompts]
    answers = generate(
        ppo.policy.model,
        prompts,
        max_new_tokens=task.response,
        temperature=1.0,
        stop_ids=[EOS],
        pad_id=PAD,
        generator=torch.Generator().manual_seed(1),
        batch_size=task.prompts,
    )
    task.path(ROLLOUTS).write_text(json.dumps([[*p, *a.tokens] for p, a in zip(prompts, answers, strict=True)]))
    losses = ppo.learn(ppo.judge(prompts, answers), 0)
    policy, value = (sum(each) / len(losses) for each in zip(*losses, strict=True))
    print(json.dumps({"policy loss": policy, "value loss": value}))


if __name__ == "__main__":
    main()
