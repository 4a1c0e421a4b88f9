"""A run killed with SIGKILL at any moment and started again ends with the same artifacts as an unbroken one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

PIPELINE = """
apiVersion: camel-ray.dev/v1alpha1
kind: CamelPipeline
metadata: {name: kill}
spec:
  seed: 3
  stages:
  - name: text
    data: {source: "builtin://python-docs/text", limit: 400}
  - name: questions
    data: {source: "builtin://python-docs/instructions", limit: 200}
  - name: pairs
    data: {source: "builtin://python-docs/preferences", limit: 200}
  - name: tokenizer
    tokenizer: {data: [text, questions], vocabSize: 600}
  - name: base
    pretrain:
      data: text
      model: {config: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2,
                       num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 512}}
      steps: 30
      maxLength: 64
      batchSize: 8
      learningRate: 1.0e-3
      logEverySteps: 1
      checkpoint: {everySteps: 6}
  - name: chat
    sft:
      data: questions
      steps: 20
      maxLength: 192
      batchSize: 8
      learningRate: 1.0e-3
      logEverySteps: 1
      checkpoint: {everySteps: 6}
  - name: judge
    reward:
      data: pairs
      steps: 10
      maxLength: 192
      batchSize: 8
      learningRate: 1.0e-3
      logEverySteps: 1
      checkpoint: {everySteps: 4}
  - name: tuned
    ppo:
      model: chat
      prompts: questions
      reward: {model: judge}
      steps: 6
      promptsPerStep: 8
      evaluationPrompts: 8
      sampling: {maxPromptLength: 128, maxResponseLength: 12}
      actorOptimizer: {learningRate: 1.0e-4}
      criticOptimizer: {learningRate: 1.0e-4}
      checkpoint: {everySteps: 2}
  - name: report
    evaluate: {data: questions, prompts: 8, samples: 2, maxTextTokens: 2048, maxResponseLength: 12}
"""


def start(directory: Path, storage: Path) -> subprocess.Popen[str]:
    """`camel-ray run` in a process group of its own, so that a kill takes its Ray along."""
    return subprocess.Popen(
        [sys.executable, "-m", "camel_ray", "run", "-f", str(directory / "kill.yaml"), "--storage", str(storage)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill_when(directory: Path, storage: Path, condition: Callable[[Path], bool]) -> None:
    """Start a run and SIGKILL its whole process group as soon as `condition` holds of the pipeline's folder."""
    process = start(directory, storage)
    deadline = time.monotonic() + 240
    while not condition(storage / "kill" / "stages"):
        if process.poll() is not None:
            pytest.fail(f"the run ended before it could be killed:\n{process.communicate()[0]}")
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail("the moment to kill at never came")
        time.sleep(0.01)  # polling a condition of another process's files
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def reached(stage: str, task: str, done: int) -> Callable[[Path], bool]:
    """True once `stage` has reported `done` units of `task`."""

    def condition(stages: Path) -> bool:
        try:
            lines = (stages / stage / "progress.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return False
        events = [json.loads(line) for line in lines if line.endswith("}")]
        return any(e.get("task") == task and e.get("done", -1) >= done for e in events)

    return condition


def exists(pattern: str) -> Callable[[Path], bool]:
    """True once a path matches below the stages' folder."""
    return lambda stages: any(True for _ in stages.glob(pattern))


MOMENTS = {
    "reading data": exists("text/state.json"),
    "before the first checkpoint": reached("base", "train", 3),
    "after a checkpoint": reached("base", "train", 9),
    "while a checkpoint is written": exists("base/work/checkpoints/*18*"),
    "in the next stage": reached("chat", "train", 8),
    "while the result is written": exists("judge/work/output/reward-model/*"),
    "in the first PPO round": exists("tuned/state.json"),
    "in a later PPO round": reached("tuned", "ppo", 3),
    "in the evaluation": exists("report/state.json"),
}


def artifacts(storage: Path) -> dict[str, str]:
    """Content digest of every artifact, by stage and kind."""
    found = sorted((storage / "kill" / "stages").glob("*/*/manifest.json"))
    return {f"{p.parts[-3]}/{p.parts[-2]}": json.loads(p.read_text())["digest"] for p in found}


@pytest.mark.timeout(1800)
def test_a_run_killed_nine_times_ends_with_the_artifacts_of_an_unbroken_run(tmp_path: Path) -> None:
    (tmp_path / "kill.yaml").write_text(PIPELINE)
    unbroken = start(tmp_path, tmp_path / "unbroken")
    output, _ = unbroken.communicate(timeout=600)
    assert unbroken.returncode == 0, output
    expected = artifacts(tmp_path / "unbroken")
    assert len(expected) == 9

    for condition in MOMENTS.values():
        kill_when(tmp_path, tmp_path / "broken", condition)
    last = start(tmp_path, tmp_path / "broken")
    output, _ = last.communicate(timeout=600)
    assert last.returncode == 0, output

    assert artifacts(tmp_path / "broken") == expected
    attempts = json.loads((tmp_path / "broken/kill/stages/base/state.json").read_text())["attempts"]
    assert attempts == 4
