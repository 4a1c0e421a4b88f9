"""Every role dies or hangs at every phase of a round, and the run ends as if nothing had happened.

The processes are real, and so are the signals: they are sent as soon as the call of a phase is on its way.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from camel_ray.errors import WorkerLost
from camel_ray.ppo.groups import HostGroup, Pending
from camel_ray.stages.ppo import run

pytestmark = pytest.mark.usefixtures("local_ray")


@dataclass
class Faults:
    """Signals to send: the n-th call (from 1) of a role's method on a rank is the process's last."""

    signal: signal.Signals
    planned: dict[tuple[str, str], int]
    rank: int = 0
    sent: list[tuple[str, str]] = field(default_factory=list)
    _seen: Counter[tuple[str, str]] = field(default_factory=Counter)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("call", "call_first"):
            monkeypatch.setattr(HostGroup, name, self._wrapped(getattr(HostGroup, name)))

    def _wrapped(self, original: Any) -> Any:
        def call(group: HostGroup, role: str, method: str, *args: Any, **kwargs: Any) -> Pending:
            pending: Pending = original(group, role, method, *args, **kwargs)
            key = (role, method)
            self._seen[key] += 1
            if self._seen[key] == self.planned.get(key):
                os.kill(group.hosts[min(self.rank, group.plan.size - 1)].pid, self.signal)
                self.sent.append(key)
            return pending

        return call


FIELDS: dict[str, Any] = {
    "steps": 6,
    "checkpoint": {"everySteps": 2},
    "kl": {"horizon": 50},
    "emaDecay": 0.5,
}
LIMITS: dict[signal.Signals, dict[str, Any]] = {
    signal.SIGKILL: {"restarts": 50},
    # Each stopped process costs this time; on a busy machine a sound one may take seconds to say that it is alive.
    signal.SIGSTOP: {"restarts": 50, "silentSeconds": 12},
}
PHASES = {
    ("rollout", "generate"): 3,
    ("reward", "scores"): 3,
    ("reference", "logprobs"): 4,
    ("actor", "logprobs"): 5,
    ("critic", "values"): 5,
    ("buffer", "judge"): 6,
    ("critic", "update"): 5,
    ("actor", "update"): 7,
    ("actor", "weights"): 8,
    ("rollout", "load_weights"): 7,
    ("rollout", "logprobs"): 6,
    ("critic", "save"): 2,
    ("actor", "save"): 4,
    ("actor", "save_model"): 1,
}
"""Role and method, and the number of the call in which the process is hit."""


SPLIT: dict[str, Any] = {"placement": "split", **FIELDS}
TWO_RANKS: dict[str, Any] = {"workers": 2, "zero": 3, **FIELDS}
Run = tuple[Path, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def split(ppo: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An unbroken run of every role in a process of its own."""
    work = tmp_path_factory.mktemp("split")
    return work, ppo.weights(work, **SPLIT)


@pytest.fixture(scope="module")
def two_ranks(ppo: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An unbroken run of two processes that host all roles."""
    work = tmp_path_factory.mktemp("two-ranks")
    return work, ppo.weights(work, **TWO_RANKS)


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP], ids=lambda kind: kind.name)
def test_every_role_is_lost_in_every_phase_and_the_run_ends_with_the_same_weights(
    ppo: Any,
    tmp_path: Path,
    split: Run,
    assert_same: Any,
    monkeypatch: pytest.MonkeyPatch,
    kind: signal.Signals,
) -> None:
    faults = Faults(kind, dict(PHASES))
    faults.install(monkeypatch)
    weights = ppo.weights(tmp_path, limits=LIMITS[kind], **SPLIT)
    assert set(faults.sent) == set(PHASES)
    assert_same(weights, split[1], atol=1e-6)
    assert len(ppo.curve(tmp_path, "reward")) == 6
    for metric in ("reward", "kl", "kl_coefficient", "policy_loss", "value_loss"):
        expected = pytest.approx(ppo.curve(split[0], metric), rel=1e-5, abs=1e-6)
        assert ppo.curve(tmp_path, metric) == expected, metric
    notes = [note for note in ppo.notes(tmp_path) if "it is replaced" in note]
    assert len(notes) == len(PHASES)
    how = "died in" if kind == signal.SIGKILL else "gave no sign of life for"
    assert all(how in note and "rank 0 of 1 on node" in note for note in notes), notes
    named = {note.split(",")[0] for note in notes}
    assert named == {"role actor", "role critic", "role reference", "role reward", "role rollout"}


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP], ids=lambda kind: kind.name)
def test_a_rank_lost_in_a_collective_is_named_and_its_group_comes_back(
    ppo: Any,
    tmp_path: Path,
    two_ranks: Run,
    assert_same: Any,
    monkeypatch: pytest.MonkeyPatch,
    kind: signal.Signals,
) -> None:
    faults = Faults(kind, {("actor", "update"): 4}, rank=1)
    faults.install(monkeypatch)
    weights = ppo.weights(tmp_path, limits=LIMITS[kind], **TWO_RANKS)
    assert faults.sent
    assert_same(weights, two_ranks[1], atol=1e-6)
    lost = [note for note in ppo.notes(tmp_path) if "it is replaced" in note]
    assert len(lost) == 1
    assert "rank 1 of 2 on node" in lost[0]
    assert ".update" in lost[0]


def test_a_run_that_loses_too_many_processes_says_so(ppo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Faults(signal.SIGKILL, {("actor", "update"): 1}).install(monkeypatch)
    with pytest.raises(
        WorkerLost, match=r"died in (actor|critic).update, and the stage has replaced 0 processes already"
    ):
        run(ppo.context(tmp_path, limits={"restarts": 0}))
