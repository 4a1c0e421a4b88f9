"""A finished run as the runtime would record it, with every kind of stage, for the tests of the report."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import yaml

from camel_ray.api.pipeline import CamelPipeline
from camel_ray.evaluation.record import RunRecord, StageRecord

START = 1_790_000_000.0

YAML = """\
apiVersion: camel-ray.dev/v1alpha1
kind: CamelPipeline
metadata: {name: quickstart}
spec:
  stages:
  - {name: text, data: {source: "builtin://python-docs/text"}}
  - {name: instructions, data: {source: "builtin://python-docs/instructions"}}
  - {name: preferences, data: {source: "builtin://python-docs/preferences"}}
  - {name: tokenizer, tokenizer: {data: text}}
  - {name: base, pretrain: {data: text, model: {config: {model_type: llama, hidden_size: 192}}}}
  - {name: sft, sft: {data: instructions}}
  - {name: reward, reward: {data: preferences, model: sft}}
  - {name: ppo, ppo: {prompts: instructions, model: sft, reward: {model: reward}}}
  - {name: evaluate, evaluate: {data: instructions, text: text}}
"""


def document() -> dict[str, Any]:
    """The pipeline of the run as a camelCase mapping."""
    return CamelPipeline.model_validate(yaml.safe_load(YAML)).wire()


def update(task: str, done: int, total: int, at: float, **metrics: float | None) -> dict[str, Any]:
    """A progress event."""
    return {
        "time": at,
        "event": "update",
        "task": task,
        "done": done,
        "total": total,
        "unit": "steps",
        "metrics": metrics,
    }


def training_events(
    at: float, steps: int, first: float, last: float, *, accuracy: bool = False
) -> list[dict[str, Any]]:
    """Loss, learning rate and gradient norm every 5 steps, validation every 50."""
    events = []
    for step in range(5, steps + 1, 5):
        share = step / steps
        loss = last + (first - last) * math.exp(-5 * share) + 0.05 * math.sin(step * 1.7)
        rate = 3e-3 * min(share / 0.05, 0.5 * (1 + math.cos(math.pi * share)))
        norm = 0.6 + math.exp(-8 * share) + 0.12 * math.cos(step * 2.3)
        events.append(update("train", step, steps, at + step / 10, loss=loss, learning_rate=rate, grad_norm=norm))
        if step % 50 == 0:
            extra = {"accuracy": 0.5 + 0.34 * (1 - math.exp(-4 * share))} if accuracy else {}
            events.append(update("validate", step, steps, at + step / 10, loss=loss + 0.08, **extra))
    return events


def ppo_events(at: float, steps: int) -> list[dict[str, Any]]:
    """A PPO run whose reward rises and whose KL settles at its target."""
    events = []
    for step in range(1, steps + 1):
        share, wave = step / steps, math.sin(step * 2.1)
        events.append(
            update(
                "ppo", step, steps, at + 2 * step,
                reward=-0.2 + 1.1 * (1 - math.exp(-2.5 * share)) + 0.08 * wave, reward_std=0.9,
                kl=6 * (1 - math.exp(-4 * share)) + 0.4 * wave, kl_coefficient=0.05 * (1 + 0.2 * share),
                response_length=22 + 6 * share + wave, policy_loss=-0.02 + 0.01 * wave,
                value_loss=0.5 * math.exp(-3 * share) + 0.1, clip_fraction=0.08 + 0.03 * wave,
                entropy=2.4 - 0.7 * share + 0.05 * wave,
                seconds_generate=0.9, seconds_score=0.25, seconds_train=0.85, seconds_sync=0.2,
                remote_calls=14, sync_bytes=4_700_000, idle_actor=0.25, idle_rollout=0.6,
            )
        )  # fmt: skip
        if step % 10 == 0:
            events.append(
                update(
                    "ppo-evaluate",
                    step,
                    steps,
                    at + 2 * step,
                    reward=-0.1 + 0.8 * share,
                    kl=5.5 * share,
                    response_length=23 + 4 * share,
                )
            )
    return events


def data_metrics(train: int, validation: int, format: str, **rejected: int) -> dict[str, Any]:
    """Metrics of a data stage."""
    rejected = {reason.replace("_", " "): n for reason, n in rejected.items()}
    read = train + validation + sum(rejected.values())
    return {
        "format": format,
        "rows_read": read,
        "rows_train": train,
        "rows_validation": validation,
        "rejected": rejected,
    }


@pytest.fixture
def finished() -> RunRecord:
    """All nine stages done."""
    at = START
    stages: list[StageRecord] = []

    def add(name: str, kind: str, seconds: float, metrics: dict[str, Any], **more: Any) -> None:
        nonlocal at
        needs = (stages[-1].name,) if stages else ()
        stages.append(
            StageRecord(
                name,
                kind,
                needs,
                "done",
                at,
                at + seconds,
                1,
                "",
                metrics,
                artifacts={"artifact": f"stages/{name}"},
                **more,
            )
        )
        at += seconds + 0.4

    text = data_metrics(4312, 227, "text", duplicate=96, too_short=41)
    example = {
        "file": "python-docs/text",
        "line": 17,
        "reason": "too short",
        "detail": "3 characters, minCharacters is 16",
    }
    add(
        "text",
        "data",
        3.1,
        text,
        data_report={**text, "sources": ["builtin://python-docs/text"], "examples": [example]},
    )
    add("instructions", "data", 2.4, data_metrics(6120, 322, "prompt-completion", duplicate=58))
    add("preferences", "data", 2.2, data_metrics(5410, 285, "preference", duplicate=12, chosen_equals_rejected=4))
    add("tokenizer", "tokenizer", 3.8, {"vocab_size": 2048, "bytes_per_token": 3.41})
    trained = {"parameters": 2_754_816, "steps": 400, "tokens": 1_638_400, "tokens_per_second": 23_400.0}
    base = {**trained, "train_loss": 3.31, "validation_loss": 3.62, "perplexity": 37.3, "perplexity_untrained": 2096.0}
    add("base", "pretrain", 70.0, base, events=training_events(at, 400, 7.6, 3.3))
    sft = {
        **trained,
        "steps": 250,
        "tokens": 402_000,
        "validation_loss": 2.2,
        "perplexity": 9.0,
        "dropped": {"too long": 3},
    }
    add("sft", "sft", 41.0, sft, events=training_events(at, 250, 3.4, 2.1))
    reward = {
        "parameters": 2_754_816,
        "steps": 200,
        "accuracy": 0.835,
        "accuracy_longer_wins": 0.512,
        "accuracy_by_kind": {"other object": 0.74, "repeating": 0.97},
        "mean": 0.4,
        "std": 1.2,
    }
    add("reward", "reward", 36.0, reward, events=training_events(at, 200, 0.69, 0.34, accuracy=True))
    note = {
        "time": at,
        "event": "note",
        "level": "warning",
        "message": "3 prompts were longer than maxPromptLength and were dropped",
    }
    ppo = {
        "reward_before": -0.11,
        "reward_after": 0.69,
        "reward_std_before": 0.97,
        "kl": 5.4,
        "kl_target": 6.0,
        "kl_coefficient": 0.06,
        "response_length_before": 23.1,
        "response_length_after": 27.0,
        "steps": 40,
    }
    add("ppo", "ppo", 82.0, ppo, events=[note, *ppo_events(at, 40)])
    add("evaluate", "evaluate", 9.0, {})
    return RunRecord(
        name="quickstart",
        document=document(),
        yaml=YAML,
        stages=tuple(stages),
        storage="camel-ray-runs/quickstart",
        environment={
            "camel-ray": "0.1.0",
            "Python": "3.11.7",
            "torch": "2.13.0",
            "transformers": "5.19.0",
            "Ray": "2.60.0",
            "CPU cores": "2",
            "memory": "23 GiB",
            "platform": "Linux x86_64",
        },
        evaluation=evaluation(),
        samples=samples(),
    )


def evaluation() -> dict[str, Any]:
    """`evaluation.json` of the run."""
    return {
        "model": "ppo", "baseline": "sft",
        "figures": {
            "perplexity": {"model": 44.1, "baseline": 41.9},
            "bits_per_byte": {"model": 1.59, "baseline": 1.57},
            "bleu": {"model": 0.181, "baseline": 0.152},
            "rouge1": {"model": 0.412, "baseline": 0.379},
            "rouge2": {"model": 0.221, "baseline": 0.204},
            "rougeL": {"model": 0.377, "baseline": 0.351},
            "exact_match": {"model": 0.094, "baseline": 0.109},
            "reward": {"model": 0.69, "baseline": -0.11, "reference": 1.02},
            "response_length": {"model": 27.0, "baseline": 23.1, "reference": 24.4},
            "finished": {"model": 0.98, "baseline": 0.95},
        },
        "reward_gain": {"mean": 0.8, "low": 0.55, "high": 1.06, "std": 1.0, "count": 64},
        "win_rate": {"rate": 0.734, "low": 0.63, "high": 0.83, "wins": 45, "ties": 4, "losses": 15},
        "left_out": {}, "counts": {"prompts": 64, "text_tokens": 32768}, "samples_shown": 4,
    }  # fmt: skip


def samples() -> list[dict[str, Any]]:
    """`samples.jsonl` of the run."""
    texts = [
        (
            "What does os.path.join do?",
            "Join two or more pathname components, inserting '/' as needed.",
            "Join the path components, and the path is a path.",
            "Join one or more path components, inserting '/' as needed.",
        ),
        (
            "What does shutil.rmtree do?",
            "Recursively delete a directory tree.",
            "Remove a directory.",
            "Recursively delete a directory tree.",
        ),
        ("Which module has OrderedDict?", "collections", "collections", "The module collections has OrderedDict."),
        (
            "What does asyncio.gather do?",
            "Return a future aggregating results from the given coroutines/futures.",
            "Return the results",
            "Return a future with the results of the given coroutines, in the order of the arguments.",
        ),
        (
            "What does math.fsum do?",
            "Return an accurate floating-point sum of values in the iterable.",
            "Return a float.",
            "Return the sum of values.",
        ),
    ]
    rows = []
    for k, (prompt, reference, before, after) in enumerate(texts):
        rows.append(
            {
                "prompt": [{"role": "user", "content": prompt}],
                "reference": {"answer": reference, "reward": 1.1, "tokens": 14},
                "baseline": {"answer": before, "reward": -0.4 + 0.2 * k, "tokens": 9, "finished": True},
                "model": {"answer": after, "reward": 0.3 + 0.1 * k, "tokens": 15, "finished": k != 3},
            }
        )
    return rows


@pytest.fixture
def half_way(finished: RunRecord) -> RunRecord:
    """The same run while PPO is at work: no later stage has begun and its own metrics do not exist yet."""
    stages = []
    for stage in finished.stages:
        if stage.name == "ppo":
            stage = replace(stage, state="running", finished=None, metrics={}, artifacts={}, events=stage.events[:20])
        elif stage.name == "evaluate":
            stage = replace(stage, state="waiting", started=None, finished=None, attempts=0, metrics={}, artifacts={})
        stages.append(stage)
    return replace(finished, stages=tuple(stages), evaluation=None, samples=())
