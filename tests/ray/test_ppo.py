"""The ppo stage on a real Ray: whatever the placement, ranks, ZeRO stage or interruption, it learns the same.

The model is a two-layer Llama and a round a handful of answers: the figures are exact, not large.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from camel_ray.api.pipeline import CamelPipeline
from camel_ray.data.tokenizer import train_tokenizer
from camel_ray.errors import RewardError, WorkerLost
from camel_ray.models.load import save_model
from camel_ray.ppo import groups
from camel_ray.ppo.groups import HostGroup, Pending
from camel_ray.ppo.placement import GroupPlan
from camel_ray.progress import Progress, ProgressReader, curve
from camel_ray.ray_session import ensure_ray
from camel_ray.stages.contract import StageContext
from camel_ray.stages.ppo import run

SENTENCE = "what does the function do it returns a new list of all items in order and removes every value"
WORDS = SENTENCE.split()
CONSTANT = {"schedule": "constant", "warmupRatio": 0.0}
VOWELS = """
def reward(prompts, answers, rows):
    return [4 * sum(c in "aeiou" for c in a) / max(len(a), 1) for a in answers]
"""


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, a reward model with the same tokenizer, prompts and a reward function."""
    root = tmp_path_factory.mktemp("assets")
    texts = [" ".join(WORDS[(i * 7 + k * 3) % len(WORDS)] for k in range(12)) for i in range(100)]
    tokenizer = train_tokenizer(texts, vocab_size=330)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    save_model(LlamaForCausalLM(LlamaConfig(**shape)), tokenizer, root / "policy")
    reward = LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1, reward_mean=0.1, reward_std=2.0))
    save_model(reward, tokenizer, root / "reward-model")
    rows = [
        {"prompt": "what does " + " ".join(WORDS[i % 20 : i % 20 + 2 + i % 3]) + f" {i}", "completion": "a list"}
        for i in range(60)
    ]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (root / "vowels.py").write_text(VOWELS)
    return root


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ensure_ray(cores=2)
    yield
    ray.shutdown()


def context(assets: Path, work: Path, *, workers: int = 1, **fields: Any) -> StageContext:
    ppo = {
        "prompts": {"source": str(assets / "prompts.jsonl"), "validation": 0.2},
        "reward": {"function": {"path": "vowels.py"}, "model": str(assets / "reward-model")},
        "model": str(assets / "policy"),
        "steps": 2,
        "promptsPerStep": 5,
        "evaluationPrompts": 4,
        "microBatchTokens": 120,
        "sampling": {"maxResponseLength": 10, "maxPromptLength": 40},
        "actorOptimizer": {"learningRate": 1e-3, **CONSTANT},
        "criticOptimizer": {"learningRate": 1e-3, **CONSTANT},
        **fields,
    }
    document = {"metadata": {"name": "test"}, "spec": {"stages": [{"name": "tune", "workers": workers, "ppo": ppo}]}}
    pipeline = CamelPipeline.model_validate(document)
    work.mkdir(parents=True, exist_ok=True)
    return StageContext(
        pipeline=pipeline,
        stage=pipeline.spec.stages[0],
        inputs={},
        work=work,
        base_dir=assets,
        progress=Progress(work / "progress.jsonl"),
        attempt=1,
        seed=7,
        workers=workers,
        cores=2,
    )


def weights_after(assets: Path, work: Path, **fields: Any) -> dict[str, torch.Tensor]:
    outputs = run(context(assets, work, **fields))
    return load_file(outputs[0].path / "model.safetensors")


def curve_of(work: Path, metric: str) -> list[float]:
    return [value for _, value in curve(ProgressReader(work / "progress.jsonl").new_events(), "ppo", metric)]


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, atol: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture(scope="module")
def plain(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """One host, all roles, ZeRO-2: what everything else is compared with."""
    work = tmp_path_factory.mktemp("plain")
    return work, weights_after(assets, work)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"workers": 2, "zero": 3}, id="two-ranks-zero-3"),
        pytest.param({"zero": 0, "microBatchTokens": 4000}, id="one-micro-batch-zero-0"),
        pytest.param({"placement": "split"}, id="split"),
        pytest.param(
            {
                "placement": [["actor", "reference"], ["critic", "reward"], ["rollout"]],
                "workers": 2,
                "zero": 1,
                "roles": {"rollout": {"workers": 1}, "critic": {"zero": 3}},
            },
            id="mixed-two-ranks",
        ),
    ],
)
def test_updates_do_not_depend_on_ranks_zero_micro_batches_or_placement(
    assets: Path, tmp_path: Path, plain: tuple[Path, dict[str, torch.Tensor]], fields: dict[str, Any]
) -> None:
    weights = weights_after(assets, tmp_path, **fields)
    for metric in ("reward", "kl", "policy_loss", "value_loss", "grad_norm", "value_grad_norm", "entropy"):
        assert curve_of(tmp_path, metric) == pytest.approx(curve_of(plain[0], metric), rel=1e-4, abs=2e-6), metric
    assert_same(weights, plain[1], atol=1e-5)
    assert max(curve_of(tmp_path, "logprob_mismatch")) < 1e-5


def test_fewer_answers_than_ranks_work_and_learn_the_same(assets: Path, tmp_path: Path) -> None:
    one = weights_after(assets, tmp_path / "one", promptsPerStep=1)
    three = weights_after(assets, tmp_path / "three", promptsPerStep=1, workers=3, zero=2)
    assert_same(three, one, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(
            {"advantage": "group", "samplesPerPrompt": 2, "kl": {"place": "loss", "estimator": "k3"}}, id="group"
        ),
        pytest.param({"advantage": "rloo", "samplesPerPrompt": 3}, id="rloo"),
        pytest.param({"advantage": "reinforce"}, id="reinforce"),
        pytest.param(
            {
                "epochs": 2,
                "miniBatches": 2,
                "entropyCoefficient": 0.01,
                "clip": {"high": 0.3, "dual": 3.0},
                "whitenRewards": True,
                "ptx": {"data": {"source": "texts.jsonl"}, "batchSize": 3, "maxLength": 16},
            },
            id="ptx-epochs-mini-batches",
        ),
    ],
)
def test_every_estimator_and_option_trains(assets: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    before = load_file(assets / "policy" / "model.safetensors")
    after = weights_after(assets, tmp_path, **fields)
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    assert all(value.isfinite().all() for value in after.values())
    if "ptx" in fields:
        assert min(curve_of(tmp_path, "ptx_loss")) > 1.0


def test_the_reward_rises_within_the_kl_target(assets: Path, tmp_path: Path) -> None:
    fields = {
        "reward": {"function": {"path": "vowels.py"}},
        "steps": 15,
        "promptsPerStep": 48,
        "evaluationPrompts": 12,
        "microBatchTokens": 4096,
        "actorOptimizer": {"learningRate": 1e-2, **CONSTANT},
        "criticOptimizer": {"learningRate": 5e-3, **CONSTANT},
        "kl": {"target": 4.0, "horizon": 100},
    }
    metrics = run(context(assets, tmp_path, **fields))[0].metrics
    assert metrics["reward_after"] > metrics["reward_before"] + 0.5 * metrics["reward_std_before"]
    assert 0.0 < metrics["kl"] < 2 * metrics["kl_target"]
    assert metrics["steps"] == 15


DRIVER = """
import pickle, sys
from camel_ray.stages.ppo import run
run(pickle.loads(sys.stdin.buffer.read()))
"""


def test_a_run_killed_in_the_middle_ends_with_the_same_weights(assets: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"steps": 4, "checkpoint": {"everySteps": 1, "keep": 2}, "kl": {"horizon": 50}}
    expected = weights_after(assets, tmp_path / "unbroken", **fields)
    work = tmp_path / "killed"
    _kill_after_round(context(assets, work, **fields), 2)
    assert_same(weights_after(assets, work, **fields), expected, atol=1e-6)
    for metric in ("reward", "policy_loss", "value_loss", "kl_coefficient"):
        assert curve_of(work, metric) == pytest.approx(curve_of(tmp_path / "unbroken", metric), rel=1e-5, abs=1e-6)


def test_a_flipped_byte_in_the_newest_checkpoint_costs_its_rounds_only(assets: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"steps": 3, "checkpoint": {"everySteps": 1, "keep": 2}}
    expected = weights_after(assets, tmp_path, **fields)
    shard = max(
        (tmp_path / "checkpoints" / "step-000003" / "actor").rglob("*.pt"), key=lambda path: path.stat().st_size
    )
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert_same(weights_after(assets, tmp_path, **fields), expected, atol=1e-6)
    notes = [
        event["message"]
        for event in ProgressReader(tmp_path / "progress.jsonl").new_events()
        if event["event"] == "note"
    ]
    assert any("checkpoint step-000003 is not used" in note and "SHA-256" in note for note in notes)
    assert any("continues after round 2" in note for note in notes)


def test_failed_rewards_are_dropped_and_counted(assets: Path, tmp_path: Path) -> None:
    (assets / "picky.py").write_text(
        "def reward(prompts, answers, rows):\n    if any(p.endswith(('1', '3')) for p in prompts):\n"
        "        raise ValueError('odd')\n    return [1.0] * len(prompts)\n"
    )
    reward = {"function": {"path": "picky.py"}, "onFailure": "drop"}
    metrics = run(context(assets, tmp_path, reward=reward, promptsPerStep=20))[0].metrics
    assert list(metrics["reward_failures"]) == [
        f"reward function 'reward' of {assets / 'picky.py'} raised ValueError: odd"
    ]
    assert sum(metrics["reward_failures"].values()) > 0
    with pytest.raises(RewardError, match="raised ValueError: odd, for the answer"):
        run(context(assets, tmp_path / "fail", reward={"function": {"path": "picky.py"}}, promptsPerStep=20))


def test_a_dead_host_and_a_silent_one_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    group = HostGroup(GroupPlan(("critic",), 2), threads=1, gpus=0.0)
    try:
        group.supports_bf16()
        pids = ray.get([host.__ray_call__.remote(lambda _: os.getpid()) for host in group.hosts])
        os.kill(pids[1], signal.SIGSTOP)
        silent = [host.supports_bf16.remote() for host in group.hosts]
        with pytest.raises(WorkerLost, match=r"role critic, rank 1 of 2, did not finish critic.values within 1 s"):
            Pending(silent, group.plan, "critic.values", 1.0).wait()
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(WorkerLost, match=r"role critic, rank 1 of 2, died in critic.values"):
            Pending(silent, group.plan, "critic.values", groups.CALL_SECONDS).wait()
    finally:
        group.stop()


def _kill_after_round(stage: StageContext, number: int) -> None:
    """Run a stage in a process of its own and SIGKILL it once round `number` is reported."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        stdin=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "RAY_ADDRESS": ""},
    )
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(stage))
    process.stdin.close()
    reader = ProgressReader(stage.progress.path)
    done = 0
    while done < number:
        assert process.poll() is None, "the stage ended before it could be killed"
        for event in reader.new_events():
            done = max(done, event["done"] if event.get("task") == "ppo" else 0)
    process.kill()
    process.wait()
