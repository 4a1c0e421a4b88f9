"""What the spec offers beyond plain PPO does what it says on a real run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from camel_ray.errors import WorkerLost
from camel_ray.ppo.groups import HostGroup
from camel_ray.stages.ppo import replay_round, run

pytestmark = pytest.mark.usefixtures("local_ray")

ENVIRONMENT = """
class Environment:
    def reset(self, prompt, row):
        return prompt

    def step(self, answer):
        return "and then", 0.1 + 0.01 * len(answer), False
"""


def test_one_step_off_policy_overlaps_and_corrects(ppo: Any, tmp_path: Path) -> None:
    fields = {"placement": "split", "steps": 3, "actorOptimizer": {"learningRate": 1e-2}}
    ppo.weights(tmp_path, rollout={"staleness": 1}, **fields)
    # The first round has no older policy to be behind; the others are written by the one before.
    mismatch = ppo.curve(tmp_path, "logprob_mismatch")
    assert mismatch[0] < 1e-5
    assert min(mismatch[1:]) > 1e-4
    means = ppo.curve(tmp_path, "importance_mean")
    assert means[0] == pytest.approx(1.0, abs=1e-5)
    assert all(0.5 < mean < 1.5 and mean != pytest.approx(1.0, abs=1e-6) for mean in means[1:])


def test_adapters_alone_learn_and_come_out_merged(ppo: Any, tmp_path: Path, assert_same: Any) -> None:
    fields = {"lora": {"rank": 4, "alpha": 8}, "actorOptimizer": {"learningRate": 1e-2}, "steps": 3}
    merged = ppo.weights(tmp_path / "one", **fields)
    before = load_file(ppo.assets / "policy" / "model.safetensors")
    assert merged.keys() == before.keys()
    changed = {name for name, value in before.items() if not torch.equal(merged[name], value)}
    assert changed
    assert all("proj" in name for name in changed)
    # The reference is the actor with its adapters off: its KL is that of a reference of its own.
    split = ppo.weights(tmp_path / "split", placement="split", workers=2, zero=3, **fields)
    assert_same(split, merged, atol=5e-5)
    assert ppo.curve(tmp_path / "split", "kl") == pytest.approx(ppo.curve(tmp_path / "one", "kl"), rel=1e-3, abs=1e-5)
    assert abs(ppo.curve(tmp_path / "one", "kl")[-1]) > 1e-4


def test_without_a_penalty_no_reference_is_loaded(ppo: Any, tmp_path: Path) -> None:
    fields = {"kl": {"controller": "none"}, "placement": [["actor", "rollout"], ["critic", "reward"]]}
    metrics = ppo.metrics(tmp_path, **fields)
    assert metrics["kl"] is None
    assert ppo.curve(tmp_path, "kl") == []
    assert len(ppo.curve(tmp_path, "reward")) == 2


def test_prompts_without_signal_are_replaced(ppo: Any, tmp_path: Path) -> None:
    (ppo.assets / "sometimes.py").write_text(
        "def reward(prompts, answers, rows):\n"
        "    return [len(a) if p.endswith(('0', '5')) else 1.0 for p, a in zip(prompts, answers)]\n"
    )
    fields = {
        "reward": {"function": {"path": "sometimes.py"}},
        "advantage": "group",
        "samplesPerPrompt": 3,
        "promptsPerStep": 6,
        "kl": {"controller": "none"},
        "placement": [["actor", "rollout"]],
    }
    run(ppo.context(tmp_path / "off", **fields))
    run(ppo.context(tmp_path / "on", skipUniformGroups=3, **fields))
    assert min(ppo.curve(tmp_path / "off", "uniform_groups")) > 0.5
    assert max(ppo.curve(tmp_path / "on", "uniform_groups")) == 0.0


def test_conversations_of_several_turns_are_learned_from(ppo: Any, tmp_path: Path) -> None:
    (ppo.assets / "talk.py").write_text(ENVIRONMENT)
    fields = {
        "environment": {"path": "talk.py", "maxTurns": 3},
        "reward": {},
        "sampling": {"maxPromptLength": 160, "maxResponseLength": 8},
        "microBatchTokens": 800,
    }
    one = ppo.weights(tmp_path / "one", **fields)
    two = ppo.weights(tmp_path / "two", workers=2, **fields)
    assert ppo.curve(tmp_path / "one", "turns") == [3.0, 3.0]
    assert min(ppo.curve(tmp_path / "one", "reward")) > 0.3
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 5e-5


def test_rewards_relative_to_demonstrations(ppo: Any, tmp_path: Path) -> None:
    plain, relative = tmp_path / "plain", tmp_path / "relative"
    reward = {"model": str(ppo.assets / "reward-model")}
    run(ppo.context(plain, steps=1, reward=reward))
    run(ppo.context(relative, steps=1, reward={**reward, "normalise": "demonstrations"}))
    difference = ppo.curve(plain, "reward")[0] - ppo.curve(relative, "reward")[0]
    assert abs(difference) > 1e-4
    assert ppo.curve(plain, "reward_std")[0] == pytest.approx(ppo.curve(relative, "reward_std")[0], rel=1e-5)


def test_the_average_of_the_weights_lies_between_first_and_last(ppo: Any, tmp_path: Path, plain: Any) -> None:
    before = load_file(ppo.assets / "policy" / "model.safetensors")
    average = ppo.weights(tmp_path, emaDecay=0.5)
    name = max(before, key=lambda n: float((plain[1][n] - before[n]).abs().max()))
    moved, whole = (float((w[name] - before[name]).norm()) for w in (average, plain[1]))
    assert 0.2 * whole < moved < 0.95 * whole


@pytest.mark.parametrize("what", ["stale", "wrong"])
def test_a_wrong_weight_sync_stops_the_run(
    ppo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Rollout is given the weights of the first sync again, or weights with one matrix of zeros."""
    original = HostGroup.call_all
    seen: list[Any] = []

    def call_all(group: HostGroup, role: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method == "load_weights":
            version, state = args
            seen.append(state)
            if what == "wrong":
                import ray

                tensors = ray.get(state)
                name = next(n for n in tensors if "down_proj" in n)
                state = ray.put({**tensors, name: torch.zeros_like(tensors[name])})
            args = (version, seen[0] if what == "stale" else state)
        return original(group, role, method, *args, **kwargs)

    monkeypatch.setattr(HostGroup, "call_all", call_all)
    with pytest.raises(WorkerLost, match=r"log-probabilities that differ by .* \(limit 0.001, rollout.mismatchLimit\)"):
        ppo.weights(tmp_path, placement="split", steps=4, actorOptimizer={"learningRate": 1e-2})
    assert len(ppo.curve(tmp_path, "reward")) == (1 if what == "stale" else 0)


def test_a_recorded_round_is_replayed_in_one_process(ppo: Any, tmp_path: Path) -> None:
    fields = {"steps": 4, "record": 4, "checkpoint": {"everySteps": 2}, "epochs": 2, "miniBatches": 2}
    context = ppo.context(tmp_path, workers=2, zero=3, **fields)
    run(context)
    found = replay_round(context, 4)
    assert found.from_step == 2
    figures = {figure.name: figure for figure in found.figures}
    for name in ("policy_loss", "value_loss", "grad_norm", "entropy", "clip_fraction", "approximate_kl"):
        assert figures[name].replayed == pytest.approx(figures[name].recorded, rel=1e-4, abs=1e-6), name
    assert found.tokens > 20


def test_the_report_has_where_time_and_bytes_went(ppo: Any, tmp_path: Path) -> None:
    ppo.weights(tmp_path, placement="split")
    events = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    metrics = [e["metrics"] for e in events if e.get("task") == "ppo" and "metrics" in e][-1]
    bytes_of_model = sum(v.numel() * 4 for v in load_file(ppo.assets / "policy" / "model.safetensors").values())
    assert metrics["sync_bytes"] == bytes_of_model
    assert metrics["remote_calls"] < 25
    for role in ("actor", "critic", "reference", "reward", "rollout"):
        assert 0.0 <= metrics[f"idle_{role}"] <= 1.0
    assert {"seconds_generate", "seconds_score", "seconds_train", "seconds_sync"} <= metrics.keys()
