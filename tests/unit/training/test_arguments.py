"""The learning-rate schedule that the trainers are told to use."""

import json
from pathlib import Path

import pytest
import torch
from transformers import get_scheduler

from camel_ray.api.training import OptimizerSpec
from camel_ray.training.arguments import schedule_arguments

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "lr_schedules.json").read_text())["cases"]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_schedule_gives_the_reference_learning_rates(case):
    inputs = case["inputs"]
    total = inputs["total_steps"]
    spec = OptimizerSpec(
        learning_rate=inputs["base_lr"],
        schedule=inputs["kind"],
        warmup_ratio=inputs["warmup_steps"] / total,
        min_learning_rate_ratio=inputs["min_ratio"],
    )
    made = schedule_arguments(spec, steps=total)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=spec.learning_rate)
    scheduler = get_scheduler(
        made["lr_scheduler_type"],
        optimizer,
        num_warmup_steps=made["warmup_steps"],
        num_training_steps=total,
        scheduler_specific_kwargs=made["lr_scheduler_kwargs"],
    )
    rates = [scheduler.get_last_lr()[0]]
    for _ in range(total):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert rates == pytest.approx(case["expected"]["lr"], rel=1e-9, abs=1e-18)


def test_constant_stays_after_warm_up():
    made = schedule_arguments(OptimizerSpec(schedule="constant", warmup_ratio=0.25), steps=10)
    assert made["lr_scheduler_type"] == "constant_with_warmup"
    assert made["warmup_steps"] == 3
