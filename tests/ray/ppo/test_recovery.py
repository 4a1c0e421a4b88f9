"""Broken updates, changed layouts and interruptions: the run goes on, and says what it did."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from camel_ray.errors import ModelError
from camel_ray.ppo.driver import Driver
from camel_ray.stages.ppo import run

pytestmark = pytest.mark.usefixtures("local_ray")

IN_LOSS: dict[str, Any] = {"kl": {"place": "loss", "estimator": "k3", "controller": "fixed"}}


def break_rounds(monkeypatch: pytest.MonkeyPatch, numbers: set[int]) -> list[int]:
    """Make the policy's loss of these rounds of data not a number. Returns the numbers of all rounds that were run."""
    original, seen = Driver.learn, []

    def learn(driver: Driver, judged: Any, *, number: int, kl_coefficient: float) -> dict[str, float]:
        seen.append(number)
        return original(driver, judged, number=number, kl_coefficient=math.inf if number in numbers else kl_coefficient)

    monkeypatch.setattr(Driver, "learn", learn)
    return seen


def test_a_broken_update_is_skipped_on_all_ranks_and_counted(
    ppo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_rounds(monkeypatch, {2})
    metrics = ppo.metrics(tmp_path, workers=2, zero=3, steps=4, **IN_LOSS)
    assert metrics["steps"] == 4
    assert metrics["skipped_updates"] == 1
    assert metrics["rounds_left_out"] == 0
    assert ppo.curve(tmp_path, "skipped_updates") == [0.0, 1.0, 1.0, 1.0]
    assert len(ppo.curve(tmp_path, "grad_norm")) == 3


def test_broken_updates_in_a_row_go_back_and_leave_their_prompts_out(
    ppo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = break_rounds(monkeypatch, {4, 5})
    fields = {"steps": 6, "checkpoint": {"everySteps": 2}, "guard": {"patience": 2}, **IN_LOSS}
    metrics = ppo.metrics(tmp_path, **fields)
    # Rounds 1 to 3 are good, 4 and 5 are not: back to the checkpoint of round 2, and on with the data of round 6.
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert metrics["steps"] == 6
    assert metrics["rounds_left_out"] == 3
    assert any(
        "goes back to the last checkpoint and leaves out the prompts since then" in n for n in ppo.notes(tmp_path)
    )


def test_a_run_that_only_breaks_ends_with_a_sentence(ppo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_rounds(monkeypatch, set(range(100)))
    fields = {"steps": 6, "guard": {"patience": 1, "rollbacks": 1}, **IN_LOSS}
    with pytest.raises(ModelError, match=r"rounds in a row had a broken update .* after 1 rollbacks; lower"):
        run(ppo.context(tmp_path, **fields))


def test_a_checkpoint_goes_on_with_other_workers_and_another_zero_stage(
    ppo: Any, tmp_path: Path, assert_same: Any
) -> None:
    expected = ppo.weights(tmp_path / "unbroken", steps=4)
    work = tmp_path / "changed"
    ppo.weights(work, steps=2, workers=2, zero=3)
    actual = ppo.weights(work, steps=4, workers=1, zero=1, placement="split")
    assert_same(actual, expected, atol=5e-5)
    assert any("continues after round 2" in note for note in ppo.notes(work))


def test_answers_written_ahead_survive_a_resume(ppo: Any, tmp_path: Path, assert_same: Any) -> None:
    fields = {"placement": "split", "rollout": {"staleness": 1}, "advantage": "reinforce", "baseline": "moving"}
    expected = ppo.weights(tmp_path / "unbroken", steps=4, **fields)
    work = tmp_path / "resumed"
    ppo.weights(work, steps=4, checkpoint={"everySteps": 1, "keep": 4}, **fields)
    for step in (3, 4):
        (work / "checkpoints" / f"step-{step:06d}" / "manifest.json").unlink()
    assert_same(ppo.weights(work, steps=4, **fields), expected, atol=1e-6)
    for metric in ("reward", "policy_loss", "importance_mean"):
        expected_curve = ppo.curve(tmp_path / "unbroken", metric)
        assert ppo.curve(work, metric) == pytest.approx(expected_curve, rel=1e-5, abs=1e-6), metric
