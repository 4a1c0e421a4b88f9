"""The ppo stage with vLLM workers for rollout: weights reach them from sharded trainers, and what died comes back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from camel_ray.ppo.groups import HostGroup
from camel_ray.ray_session import ensure_ray, shut_down_ray

FIELDS: dict[str, Any] = {
    "placement": [["actor", "critic", "reference", "reward"], ["rollout"]],
    "rollout": {"engine": "vllm"},
    "roles": {"rollout": {"workers": 2}},
    "workers": 2,
    "zero": 3,
    "actorOptimizer": {"learningRate": 1e-2},
    "steps": 3,
}


@pytest.fixture(autouse=True, scope="module")
def _ray() -> Iterator[None]:
    ensure_ray(cores=2)
    yield
    shut_down_ray()


def test_sharded_trainers_bring_their_weights_to_vllm_workers(ppo: Any, tmp_path: Path) -> None:
    weights = ppo.weights(tmp_path, **FIELDS)
    assert all(value.isfinite().all() for value in weights.values())
    # The sync is checked after each round (rollout.mismatchLimit 0.001); this is what the answers themselves say.
    mismatch = ppo.curve(tmp_path, "logprob_mismatch")
    assert len(mismatch) == 3
    assert max(mismatch) < 1e-4
    # The policy moves: without the sync the second round would show it.
    assert max(abs(kl) for kl in ppo.curve(tmp_path, "kl")[1:]) > 1e-3
    assert ppo.curve(tmp_path, "importance_mean") == pytest.approx([1.0] * 3, abs=1e-3)


def test_a_killed_vllm_worker_is_replaced_and_its_prompts_are_answered(
    ppo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = HostGroup.call, []

    def call(group: HostGroup, role: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        pending = original(group, role, method, *args, **kwargs)
        if method == "generate":
            calls.append(method)
            if len(calls) == 3:  # the evaluation, round 1, and now round 2
                os.kill(group.hosts[1].pid, signal.SIGKILL)
        return pending

    monkeypatch.setattr(HostGroup, "call", call)
    ppo.weights(tmp_path, **FIELDS)
    assert len(ppo.curve(tmp_path, "reward")) == 3
    assert max(ppo.curve(tmp_path, "logprob_mismatch")) < 1e-4
    lost = [note for note in ppo.notes(tmp_path) if "it is replaced" in note]
    assert len(lost) == 1
    assert "role rollout, rank 1 of 2 on node" in lost[0] and "died in rollout.generate" in lost[0]
