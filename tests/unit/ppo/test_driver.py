"""The driver against roles in this process: what it sends, how results come back into order, what it never touches.

Experience is an object without any use here, so a driver that looked into it would fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.api.stages.ppo_roles import LimitsSpec
from camel_ray.errors import WorkerLost
from camel_ray.ppo.advantages import Baseline
from camel_ray.ppo.driver import Driver
from camel_ray.ppo.experience import Index, join_indices
from camel_ray.ppo.groups import Losses
from camel_ray.ppo.importance import Mismatch
from camel_ray.ppo.local import LocalGroup
from camel_ray.ppo.placement import GroupPlan
from camel_ray.ppo.prompts import Prompt
from camel_ray.ppo.rewards.sources import RewardSources
from camel_ray.ppo.roles.buffer import Summary, Verdict
from camel_ray.ppo.scoring import Scorer
from camel_ray.ppo.shares import Share
from camel_ray.progress import Progress

ROLES = ("actor", "critic", "reference", "reward", "rollout")


class Roles:
    """All roles of one rank; what they were told is kept."""

    def __init__(self, length: int) -> None:
        self.length, self.version = length, 0
        self.seeds: list[int] = []
        self.verdicts: list[Verdict] = []
        self.indices: list[Index] = []
        self.updates: list[Share] = []

    def generate(
        self, prompts: Sequence[Prompt], groups: Sequence[int], seeds: Sequence[int], *, texts: bool
    ) -> tuple[Index, object]:
        assert not texts
        self.seeds += seeds
        # Longer and longer, so that balancing changes the order of rows.
        lengths = [self.length + 7 * group for group in groups]
        index = Index(
            [n + 3 for n in lengths], lengths, [True] * len(prompts), list(groups), [self.version] * len(prompts)
        )
        self.indices.append(index)
        return index, object()

    def collect(self, groups: Sequence[int], *parts: object) -> tuple[None, object]:
        return None, object()

    def logprobs(self, experience: object, share: Share, *, temperature: float) -> tuple[None, object]:
        return None, object()

    def values(self, experience: object, share: Share) -> tuple[None, object]:
        return None, object()

    def scores(self, experience: object, share: Share) -> list[float]:
        return [float(row) for row in share.rows]

    def judge(self, spec: Any, found: Any, verdict: Verdict, *rest: Any) -> tuple[Summary, object]:
        self.verdicts.append(verdict)
        index = join_indices(self.all_indices())
        self.indices.clear()
        return Summary({}, 1.0, Mismatch(0.0, 0.0, 0.0, 0.0), Baseline("none"), index), object()

    def update(self, experience: object, share: Share, settings: Any, batch: Any, **_: Any) -> dict[str, float]:
        self.updates.append(share)
        return {"policy_loss": len(share.rows) / batch.sequences, "skipped": 0.0}

    def set_version(self, version: int) -> None:
        self.version = version

    all_indices: Any


def make(ranks: int, length: int, **fields: object) -> tuple[Driver, list[Roles]]:
    spec = PpoStageSpec.model_validate(
        {"prompts": "p", "reward": {"model": "m"}, "promptsPerStep": 5, "samplesPerPrompt": 2, **fields}
    )
    everything = [Roles(length) for _ in range(ranks)]
    for roles in everything:
        roles.all_indices = lambda: [roles.indices[-1] for roles in everything]
    hosts: Any = [dict.fromkeys((*ROLES, "buffer"), roles) for roles in everything]
    group = LocalGroup(GroupPlan(ROLES, ranks), hosts)
    groups: Any = dict.fromkeys(ROLES, group)
    sources = RewardSources(spec.reward, base_dir=Path())
    scorer = Scorer(spec, groups, sources, own_tokens=False)
    losses = Losses(LimitsSpec(), Progress(Path("unused")))
    return Driver(spec, groups, losses, scorer, shares_actor=True, bf16=False, seed=1), everything


PROMPTS = [Prompt((1, 2, 3), f"p{number}", (), "{}", number) for number in range(5)]


def step(driver: Driver, number: int) -> dict[str, float]:
    answers = driver.collect(driver.write(PROMPTS, samples=2, draw=f"round/{number}"))
    judged = driver.judge(answers, kl_coefficient=0.1, baseline=Baseline("none"))
    learned = driver.learn(judged, number=number, kl_coefficient=0.1)
    driver.sync(judged)
    return {**learned, **driver.usage(1.0)}


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_scores_come_back_in_the_order_of_the_answers(ranks: int) -> None:
    driver, roles = make(ranks, length=20)
    step(driver, 1)
    assert roles[0].verdicts[0].scores == [float(row) for row in range(10)]
    assert roles[0].verdicts[0].keep == list(range(10))


def test_calls_per_step_do_not_grow_with_the_length_of_answers() -> None:
    calls = {step(make(4, length)[0], 1)["remote_calls"] for length in (1, 100, 10_000)}
    assert len(calls) == 1


def test_every_answer_is_learned_from_once_per_epoch_whatever_the_mini_batches() -> None:
    driver, roles = make(3, length=20, epochs=2, miniBatches=3)
    learned = step(driver, 1)
    rows = [row for one in roles for share in one.updates for row in share.rows]
    # Actor and critic, two epochs each.
    assert sorted(rows) == sorted(list(range(10)) * 4)
    # Each rank brings its share of the mean; actor and critic both report it here.
    assert learned["policy_loss"] == pytest.approx(2.0)


def test_random_numbers_belong_to_the_round_and_the_answer() -> None:
    (first, one), (second, three) = make(1, 20), make(3, 20)
    step(first, 7)
    step(second, 7)
    seeds = list(one[0].seeds)
    assert len(set(seeds)) == 10
    assert [seed for roles in three for seed in roles.seeds] == seeds
    step(first, 8)
    assert not set(one[0].seeds[10:]) & set(seeds)


def test_answers_of_another_version_are_refused() -> None:
    driver, roles = make(2, length=20)
    step(driver, 1)
    roles[1].version = 0
    with pytest.raises(WorkerLost, match=r"policy version 0, but the policy is at 1 and rollout\.staleness is 0"):
        step(driver, 2)
