"""What a round does to the driver's state."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict

import pytest

from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.ppo.advantages import Baseline
from camel_ray.ppo.driver import Judged
from camel_ray.ppo.experience import Index
from camel_ray.ppo.importance import Mismatch
from camel_ray.ppo.roles.buffer import Summary
from camel_ray.ppo.state import State, account, first_state


def spec(**fields: object) -> PpoStageSpec:
    return PpoStageSpec.model_validate({"prompts": "p", "reward": {"model": "m"}, **fields})


def judged(kl: float | None = 12.0, **failures: int) -> Judged:
    index = Index([9, 11], [4, 6], [True, False], [0, 1], [3, 3])
    nothing = Mismatch(0.0, 0.0, 0.01, 0.0)
    return Judged(
        None, Summary({"turns": 1.0}, kl, nothing, Baseline("ema", average=2.0), index), [1.0, 3.0], Counter(failures)
    )


def test_a_round_moves_the_state_on() -> None:
    ppo = spec(kl={"coefficient": 0.2, "target": 6.0, "horizon": 10})
    state = first_state(ppo, {"reward": 0.0})
    account(state, ppo, judged(timeout=2), {"policy_loss": 0.5, "skipped": 0.0})
    account(state, ppo, judged(timeout=1), {"policy_loss": 0.5, "skipped": 0.0})
    assert state.step == 2
    # Ziegler et al. 2019: the relative error is limited to 20 %, times 2 answers of a horizon of 10, twice.
    assert state.kl_coefficient == pytest.approx(0.2 * 1.04**2)
    assert state.baseline["average"] == 2.0
    assert state.failures == {"timeout": 3}
    assert state.last["reward"] == 2.0 and state.last["reward_std"] == 1.0
    assert state.last["response_length"] == 5.0 and state.last["finished"] == 0.5
    assert State(**json.loads(json.dumps(asdict(state)))) == state


def test_skipped_updates_in_a_row_are_counted_until_one_is_good() -> None:
    ppo = spec()
    state = first_state(ppo, {})
    for skipped, broken, total in ((1.0, 1, 1), (2.0, 2, 3), (0.0, 0, 3)):
        account(state, ppo, judged(), {"skipped": skipped})
        assert (state.broken, state.skipped_updates) == (broken, total)


def test_the_number_of_data_runs_ahead_of_the_step_after_a_rollback() -> None:
    assert State(step=4).next_data == 5
    assert State(step=4, left_out=3).next_data == 8


def test_without_a_reference_nothing_is_steered() -> None:
    ppo = spec(kl={"controller": "none", "coefficient": 0.3})
    state = first_state(ppo, {})
    account(state, ppo, judged(kl=None), {})
    assert state.kl_coefficient == 0.0
    assert "kl" not in state.last
