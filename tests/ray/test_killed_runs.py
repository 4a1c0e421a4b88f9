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

from camel_ray.progress import ProgressReader

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


Moment = Callable[[Path], Callable[[], bool]]
"""Of the stages' folder, before a run begins: what says whether that run, not an earlier one, has come to it."""


def kill_when(directory: Path, storage: Path, moment: Moment) -> None:
    """Start a run and SIGKILL its whole process group as soon as it has come to the moment."""
    has_come = moment(storage / "kill" / "stages")
    process = start(directory, storage)
    deadline = time.monotonic() + 900
    while not has_come():
        if process.poll() is not None:
            pytest.fail(f"the run ended before it could be killed:\n{process.communicate()[0]}")
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail("the moment to kill at never came")
        time.sleep(0.01)  # polling a condition of another process's files
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def begun(stage: str) -> Moment:
    """`stage` begins."""

    def moment(stages: Path) -> Callable[[], bool]:
        before = attempts(stages, stage)
        return lambda: attempts(stages, stage) > before

    return moment


def attempts(stages: Path, stage: str) -> int:
    """How often a stage has begun."""
    state = stages / stage / "state.json"
    return int(json.loads(state.read_text())["attempts"]) if state.exists() else 0


def reached(stage: str, task: str, done: int) -> Moment:
    """`stage` reports `done` units of `task`, or more."""

    def moment(stages: Path) -> Callable[[], bool]:
        reader = ProgressReader(stages / stage / "progress.jsonl")
        reader.new_events()  # those of earlier runs
        return lambda: any(e.get("task") == task and e.get("done", -1) >= done for e in reader.new_events())

    return moment


def appears(pattern: str) -> Moment:
    """A path that matches comes to be below the stages' folder."""

    def moment(stages: Path) -> Callable[[], bool]:
        known = set(stages.glob(pattern))

        def has_come() -> bool:
            there = set(stages.glob(pattern))
            known.intersection_update(there)  # what a run removes first it may make again
            return bool(there - known)

        return has_come

    return moment


MOMENTS = {
    "reading data": begun("text"),
    "before the first checkpoint": reached("base", "train", 3),
    "after a checkpoint": reached("base", "train", 9),
    "while a checkpoint is written": appears("base/work/checkpoints/checkpoint-*"),
    "in the next stage": reached("chat", "train", 8),
    "while the result is written": appears("judge/work/output/reward-model/*"),
    "in the first PPO round": begun("tuned"),
    "in a later PPO round": reached("tuned", "ppo", 3),
    "in the evaluation": begun("report"),
}


def artifacts(storage: Path) -> dict[str, str]:
    """Content digest of every artifact, by stage and kind."""
    found = sorted((storage / "kill" / "stages").glob("*/*/manifest.json"))
    return {f"{p.parts[-3]}/{p.parts[-2]}": json.loads(p.read_text())["digest"] for p in found}


@pytest.mark.timeout(3600)
def test_a_run_killed_nine_times_ends_with_the_artifacts_of_an_unbroken_run(tmp_path: Path) -> None:
    (tmp_path / "kill.yaml").write_text(PIPELINE)
    unbroken = start(tmp_path, tmp_path / "unbroken")
    output, _ = unbroken.communicate(timeout=1500)
    assert unbroken.returncode == 0, output
    expected = artifacts(tmp_path / "unbroken")
    assert len(expected) == 9

    for moment in MOMENTS.values():
        kill_when(tmp_path, tmp_path / "broken", moment)
    last = start(tmp_path, tmp_path / "broken")
    output, _ = last.communicate(timeout=1500)
    assert last.returncode == 0, output

    assert artifacts(tmp_path / "broken") == expected
    assert attempts(tmp_path / "broken/kill/stages", "base") == 4
