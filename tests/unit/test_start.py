"""What the processes of an attempt load before they do anything: imports are most of the time to the first step."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"accelerate", "datasets", "deepspeed", "ray", "tokenizers", "torch", "transformers", "trl"}


@pytest.mark.parametrize(
    ("module", "loads"),
    [
        ("camel_ray.runtime.attempt", set()),
        ("camel_ray.training.launch", set()),  # Ray Train's controller reads it, and trains nothing
        ("camel_ray.stages.data", {"datasets"}),
        ("camel_ray.stages.tokenizer", {"datasets", "tokenizers", "transformers"}),  # transformers without torch
    ],
)
def test_a_process_loads_no_library_that_it_has_no_use_for(module: str, loads: set[str]) -> None:
    code = f"import {module}, sys; print(*(set({HEAVY!r}) & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(printed.split()) == loads
