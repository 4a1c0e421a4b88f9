"""Attempts of stages with checkpoints that are stopped save their state, and the next one ends with the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from camel_ray.api.status import RESULT_MARK
from camel_ray.progress import ProgressReader

MODEL = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
TRAINING = {
    "data": "text", "model": {"config": MODEL}, "steps": 150, "maxLength": 64, "batchSize": 8, "microBatchSize": 4,
    "learningRate": 1e-3, "logEverySteps": 1, "checkpoint": {"everySteps": 1000},
}  # fmt: skip
VOWELS = """
def reward(prompts, answers, rows):
    return [4 * sum(c in "aeiou" for c in a) / max(len(a), 1) for a in answers]
"""
STAGES: list[dict[str, Any]] = [
    {"name": "text", "data": {"source": "builtin://python-docs/text", "limit": 200}},
    {"name": "questions", "data": {"source": "builtin://python-docs/instructions", "limit": 100}},
    {"name": "tokenizer", "tokenizer": {"data": ["text", "questions"], "vocabSize": 600}},
    {"name": "base", "pretrain": TRAINING},
    {"name": "pair", "workers": 2, "pretrain": TRAINING},
    {
        "name": "tuned",
        "ppo": {
            "model": "base", "prompts": "questions", "reward": {"function": {"path": "vowels.py"}}, "steps": 12,
            "advantage": "rloo", "samplesPerPrompt": 2, "promptsPerStep": 4, "evaluationPrompts": 4,
            "sampling": {"maxPromptLength": 128, "maxResponseLength": 12}, "actorOptimizer": {"learningRate": 1e-4},
            "checkpoint": {"everySteps": 1000},
        },
    },
]  # fmt: skip


def start(directory: Path, stage: str) -> subprocess.Popen[str]:
    """An attempt as a pod without a Ray cluster would run it, in a process group of its own."""
    environment = {
        "CAMEL_RAY_PIPELINE_FILE": str(directory / "pipeline.json"),
        "CAMEL_RAY_STAGE": stage,
        "CAMEL_RAY_ATTEMPT": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "camel_ray.runtime.attempt"],
        cwd=directory,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=1500)
    last = out.splitlines()[-1]
    assert last.startswith(RESULT_MARK), out + err
    result: dict[str, Any] = json.loads(last.removeprefix(RESULT_MARK))
    assert process.returncode == result["code"], out + err
    return result


def write_pipeline(directory: Path) -> None:
    document = {
        "apiVersion": "camel-ray.dev/v1alpha1",
        "kind": "CamelPipeline",
        "metadata": {"name": "stop"},
        "spec": {"storage": str(directory / "storage"), "seed": 3, "stages": STAGES},
    }
    (directory / "pipeline.json").write_text(json.dumps(document))
    (directory / "vowels.py").write_text(VOWELS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which every stage has run without a break."""
    directory = tmp_path_factory.mktemp("whole")
    write_pipeline(directory)
    for stage in STAGES:
        assert end(start(directory, stage["name"]))["code"] == 0
    return directory


def progress(directory: Path, stage: str, task: str) -> int:
    events = ProgressReader(directory / f"storage/stop/stages/{stage}/progress.jsonl").new_events()
    return max((e["done"] for e in events if e["event"] == "update" and e["task"] == task), default=0)


@pytest.mark.parametrize(
    ("stage", "task", "steps"), [("base", "train", 150), ("pair", "train", 150), ("tuned", "ppo", 12)]
)
def test_a_stopped_stage_continues_to_the_same_bytes(
    whole: Path, tmp_path: Path, stage: str, task: str, steps: int
) -> None:
    shutil.copytree(whole / "storage", tmp_path / "storage")
    write_pipeline(tmp_path)
    own = tmp_path / "storage/stop/stages" / stage
    shutil.rmtree(own)
    process = start(tmp_path, stage)
    while progress(tmp_path, stage, task) < 2 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    result = end(process)
    assert result["code"] == 25
    assert "stopped on request" in result["message"]
    state = json.loads((own / "state.json").read_text())
    assert (state["phase"], state["message"]) == ("interrupted", result["message"])
    (saved,) = [int(path.parent.name.split("-")[1]) for path in own.glob("work/checkpoints/*/manifest.json")]
    assert 2 <= saved < steps, "it was saved for the request, as no turn comes in this run"
    assert end(start(tmp_path, stage))["code"] == 0
    events = ProgressReader(own / "progress.jsonl").new_events()
    assert any(str(saved) in e["message"] and "continues" in e["message"] for e in events if e["event"] == "note")
    made, expected = (
        (d / "storage/stop/stages" / stage / "model/model.safetensors").read_bytes() for d in (tmp_path, whole)
    )
    assert made == expected
