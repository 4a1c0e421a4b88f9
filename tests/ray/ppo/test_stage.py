"""The ppo stage on a real Ray: whatever the placement, ranks, ZeRO stage or interruption, it learns the same.

The model is a two-layer Llama and a round a handful of answers: the figures are exact, not large.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from camel_ray.errors import RewardError
from camel_ray.progress import ProgressReader
from camel_ray.stages.ppo import run

pytestmark = pytest.mark.usefixtures("local_ray")
Plain = tuple[Path, dict[str, torch.Tensor]]


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
    ppo: Any, tmp_path: Path, plain: Plain, assert_same: Any, fields: dict[str, Any]
) -> None:
    weights = ppo.weights(tmp_path, **fields)
    for metric in ("reward", "kl", "policy_loss", "value_loss", "grad_norm", "value_grad_norm", "entropy"):
        assert ppo.curve(tmp_path, metric) == pytest.approx(ppo.curve(plain[0], metric), rel=1e-4, abs=2e-6), metric
    assert_same(weights, plain[1], atol=5e-5)
    assert max(ppo.curve(tmp_path, "logprob_mismatch")) < 1e-5


def test_fewer_answers_than_ranks_work_and_learn_the_same(ppo: Any, tmp_path: Path, assert_same: Any) -> None:
    one = ppo.weights(tmp_path / "one", promptsPerStep=1)
    three = ppo.weights(tmp_path / "three", promptsPerStep=1, workers=3, zero=2)
    assert_same(three, one, atol=5e-5)


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
def test_every_estimator_and_option_trains(ppo: Any, tmp_path: Path, fields: dict[str, Any]) -> None:
    before = load_file(ppo.assets / "policy" / "model.safetensors")
    after = ppo.weights(tmp_path, **fields)
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    assert all(value.isfinite().all() for value in after.values())
    if "ptx" in fields:
        assert min(ppo.curve(tmp_path, "ptx_loss")) > 1.0


def test_the_reward_rises_within_the_kl_target(ppo: Any, tmp_path: Path) -> None:
    fields = {
        "reward": {"function": {"path": "vowels.py"}},
        "steps": 15,
        "promptsPerStep": 48,
        "evaluationPrompts": 12,
        "microBatchTokens": 4096,
        "actorOptimizer": {"learningRate": 3e-3},
        "criticOptimizer": {"learningRate": 5e-3},
        "kl": {"target": 4.0, "horizon": 50},
    }
    metrics = run(ppo.context(tmp_path, **fields))[0].metrics
    assert metrics["reward_after"] > metrics["reward_before"] + 0.5 * metrics["reward_std_before"]
    assert 0.0 < metrics["kl"] < 2 * metrics["kl_target"]
    assert metrics["steps"] == 15


def test_a_flipped_byte_in_the_newest_checkpoint_costs_its_rounds_only(
    ppo: Any, tmp_path: Path, assert_same: Any
) -> None:
    fields: dict[str, Any] = {"steps": 3, "checkpoint": {"everySteps": 1, "keep": 2}}
    expected = ppo.weights(tmp_path, **fields)
    shard = max(
        (tmp_path / "checkpoints" / "step-000003" / "actor").rglob("*.safetensors"),
        key=lambda path: path.stat().st_size,
    )
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert_same(ppo.weights(tmp_path, **fields), expected, atol=1e-6)
    notes = [
        event["message"]
        for event in ProgressReader(tmp_path / "progress.jsonl").new_events()
        if event["event"] == "note"
    ]
    assert any("checkpoint step-000003 is not used" in note and "SHA-256" in note for note in notes)
    assert any("continues after round 2" in note for note in notes)


def test_failed_rewards_are_dropped_and_counted(ppo: Any, tmp_path: Path) -> None:
    (ppo.assets / "picky.py").write_text(
        "def reward(prompts, answers, rows):\n    if any(p.endswith(('1', '3')) for p in prompts):\n"
        "        raise ValueError('odd')\n    return [1.0] * len(prompts)\n"
    )
    reward = {"function": {"path": "picky.py"}, "onFailure": "drop"}
    metrics = run(ppo.context(tmp_path, reward=reward, promptsPerStep=20))[0].metrics
    assert list(metrics["reward_failures"]) == ["function: raised ValueError"]
    assert sum(metrics["reward_failures"].values()) > 0
    with pytest.raises(RewardError, match="raised ValueError: odd, line 3, for the answer"):
        run(ppo.context(tmp_path / "fail", reward={"function": {"path": "picky.py"}}, promptsPerStep=20))
