"""A loss that is no number ends the run at that step."""

import math

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from camel_ray.errors import ModelError
from camel_ray.training.callbacks.nan_guard import NanGuard


def step(loss, norm, tmp_path):
    state = TrainerState()
    state.global_step = 12
    guard = NanGuard("base", 3e-4, lambda: (loss, norm))
    guard.on_step_end(TrainingArguments(str(tmp_path), use_cpu=True), state, TrainerControl())


@pytest.mark.parametrize(("loss", "norm"), [(1.0, 2.0), (0.0, None)])
def test_numbers_pass(loss, norm, tmp_path):
    step(loss, norm, tmp_path)


@pytest.mark.parametrize(
    ("loss", "norm", "what"), [(math.nan, 1.0, "loss"), (math.inf, 1.0, "loss"), (1.0, math.nan, "gradient")]
)
def test_anything_else_names_stage_step_and_remedy(loss, norm, what, tmp_path):
    message = rf"stage 'base': the {what} is not a finite number at step 12; lower learningRate \(0.0003\)"
    with pytest.raises(ModelError, match=message):
        step(loss, norm, tmp_path)
