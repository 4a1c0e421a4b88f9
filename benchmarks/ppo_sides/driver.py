"""The driver's own time per step, with many simulated ranks that do nothing.

The driver is the engine's; its groups answer at once with what hosts would send back: figures per answer, and
references in place of tensors. Nothing goes over Ray, whose cost is not the driver's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.api.stages.ppo_roles import LimitsSpec, RoleName
from camel_ray.ppo.advantages import Baseline
from camel_ray.ppo.driver import Driver
from camel_ray.ppo.experience import Index
from camel_ray.ppo.groups import Group, Losses, Usage
from camel_ray.ppo.importance import Mismatch
from camel_ray.ppo.placement import GroupPlan
from camel_ray.ppo.prompts import Prompt
from camel_ray.ppo.rewards.sources import RewardSources
from camel_ray.ppo.roles.buffer import Summary
from camel_ray.ppo.scoring import Scorer
from camel_ray.progress import Progress

_ROLES: tuple[RoleName, ...] = ("actor", "critic", "reference", "reward", "rollout")
_FIGURES = ("policy_loss", "clip_fraction", "entropy", "approximate_kl", "grad_norm", "learning_rate", "skipped")


@dataclass
class Answered:
    """Answers that are there already."""

    answers: list[Any]
    kept: list[Any]

    def wait(self) -> list[Any]:
        """By rank."""
        return self.answers


@dataclass(eq=False)
class NoOpGroup:
    """Ranks that do nothing, and answer as role hosts do."""

    plan: GroupPlan
    length: int
    """Tokens of each answer."""
    usage: Usage = field(default_factory=Usage)
    indices: list[Index] = field(default_factory=list)
    """Of the answers of the last call of rollout, by rank."""

    def call(
        self, role: str, method: str, by_rank: Callable[[int], tuple[Any, ...]], /, *, keep: bool = False, **_: Any
    ) -> Answered:
        """See `HostGroup`."""
        arguments = [by_rank(rank) for rank in range(self.plan.size)]
        if method == "generate":
            self.indices = [self._index(own, version=0) for own in arguments]
            return Answered(self.indices, [object() for _ in arguments])
        if method == "scores":
            return Answered([[0.0] * len(share.rows) for _, share in arguments], [])
        if method == "update":
            return Answered([dict.fromkeys(_FIGURES, 0.1) for _ in arguments], [])
        return Answered([None] * len(arguments), [object() for _ in arguments])

    def call_all(self, role: str, method: str, /, *args: Any, keep: bool = False, **kw: Any) -> Answered:
        """See `HostGroup`."""
        return self.call(role, method, lambda _: args, keep=keep, **kw)

    def call_first(self, role: str, method: str, /, *args: Any, keep: bool = False, **_: Any) -> Answered:
        """See `HostGroup`."""
        if method != "judge":
            return Answered([None], [object()])
        # Joined by the buffer's process in a run.
        columns = ("lengths", "action_lengths", "finished", "groups", "policy_versions")
        whole = Index(**{name: [v for one in self.indices for v in getattr(one, name)] for name in columns})
        return Answered([Summary({}, 0.0, Mismatch(0.0, 0.0, 0.0, 0.0), Baseline("none"), whole)], [object()])

    def remember(self, role: str, method: str, *args: Any) -> None:
        """Nothing is ever replaced."""

    def _index(self, arguments: tuple[Any, ...], *, version: int) -> Index:
        prompts, groups, _ = arguments
        count = len(prompts)
        return Index(
            lengths=[len(prompt.ids) + self.length for prompt in prompts],
            action_lengths=[self.length] * count,
            finished=[True] * count,
            groups=list(groups),
            policy_versions=[version] * count,
        )


def milliseconds_per_step(*, ranks: int, answers: int, length: int, steps: int = 15) -> float:
    """Median time of the driver for a step, all roles colocated on `ranks` ranks with `answers` answers each."""
    spec = PpoStageSpec.model_validate(
        {
            "prompts": "rows",
            "reward": {"model": "reward"},
            "promptsPerStep": ranks,
            "samplesPerPrompt": answers,
            "sampling": {"maxResponseLength": length},
            "microBatchTokens": 2 * length,
        }
    )
    group = NoOpGroup(GroupPlan(_ROLES, ranks), length)
    groups: dict[RoleName, Group] = dict.fromkeys(_ROLES, group)
    losses = Losses(LimitsSpec(), Progress(Path("unused")))
    prompt = Prompt((1,) * 32, "text", (("user", "text"),), "{}")
    seconds = []
    with RewardSources(spec.reward, base_dir=Path()) as sources:
        scorer = Scorer(spec, groups, sources, own_tokens=False)
        driver = Driver(spec, groups, losses, scorer, shares_actor=True, bf16=False, seed=0)
        for number in range(steps):
            driver.version = 0
            start = time.perf_counter()
            written = driver.write([prompt] * ranks, samples=answers, draw=f"round/{number}")
            judged = driver.judge(driver.collect(written), kl_coefficient=0.1, baseline=Baseline("none"))
            driver.learn(judged, number=number, kl_coefficient=0.1)
            driver.sync(judged)
            driver.usage(1.0)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * 1e3
