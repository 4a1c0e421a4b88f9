"""The engine on the task: the stage `ppo` as `camel-ray run` runs it, colocated on one host of a local Ray.

    python -m ppo_sides.side_engine TASK

The stage reports each round through its `Progress`; here that report is also where the side stops at the gate.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from camel_ray.api.pipeline import CamelPipeline
from camel_ray.progress import Progress
from camel_ray.stages.contract import StageContext
from ppo_sides.gate import Gate
from ppo_sides.task import MICRO_BATCH_TOKENS, Task

_GATES: list[Gate] = []
"""The gate of this process: `Progress` may be copied to others, which have none."""


class GatedProgress(Progress):
    """Stops after every round."""

    def update(self, task: str, done: int, *rest: Any, **named: Any) -> None:
        """See `Progress`."""
        super().update(task, done, *rest, **named)
        if not _GATES:
            return
        if task == "ppo-evaluate":
            _GATES[0].ready()  # the evaluation before the first round is over
        elif task == "ppo":
            metrics: Mapping[str, float] = named["metrics"]
            _GATES[0].done(
                {name.removeprefix("seconds_"): value for name, value in metrics.items() if "seconds_" in name}
            )


def pipeline(task: Task) -> CamelPipeline:
    """One stage with the settings of `task`."""
    optimizer = {"learningRate": task.learning_rate, "maxGradNorm": task.max_grad_norm}
    ppo = {
        "prompts": {"source": str(task.path("prompts.jsonl")), "validation": 0.01},
        "model": str(task.path("policy")),
        "reward": {"model": str(task.path("reward")), "clip": None},
        "steps": 100_000,
        "promptsPerStep": task.prompts,
        "sampling": {"maxPromptLength": task.prompt, "maxResponseLength": task.response},
        "epochs": task.epochs,
        "miniBatches": task.mini_batches,
        "microBatchTokens": MICRO_BATCH_TOKENS,
        "gamma": task.gamma,
        "lam": task.lam,
        "clip": {"low": task.clip, "high": task.clip},
        "valueClip": task.value_clip,
        "kl": {"controller": "fixed", "coefficient": task.kl},
        "actorOptimizer": optimizer,
        "criticOptimizer": optimizer,
        "zero": 0,
        "precision": "fp32",
        "evaluationPrompts": 2,
        "checkpoint": {"everySteps": 100_000},
    }
    return CamelPipeline.model_validate(
        {"metadata": {"name": "benchmark"}, "spec": {"stages": [{"name": "tune", "ppo": ppo}]}}
    )


def main() -> None:
    """Speak with the benchmark."""
    _GATES.append(Gate())
    from camel_ray.stages.ppo import run

    task = Task(**json.loads(sys.argv[1]))
    stages = pipeline(task)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        progress = GatedProgress(work / "progress.jsonl")
        run(StageContext(stages, stages.stage("tune"), {}, work, work, progress, 1, 0, 1, task.threads))


if __name__ == "__main__":
    main()
