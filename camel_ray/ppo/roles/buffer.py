"""Where the experience of a round comes together: on rank 0 of the actor's group, not in the driver.

The parts that rollout wrote, and what the other roles found out about them, come here as Ray objects; advantages are
computed, and the result goes back into the object store, where every rank reads it. The driver sees figures only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.ppo.advantages import Baseline
from camel_ray.ppo.estimate import estimate_advantages, figures, sequence_kl
from camel_ray.ppo.experience import Experience, Index, concatenate, load_experience, save_experience
from camel_ray.ppo.importance import Mismatch, mismatch
from camel_ray.ppo.ragged import gather_index
from camel_ray.ppo.settings import Place, RoleSettings


@dataclass(frozen=True)
class Found:
    """A field that ranks computed: their parts follow each other in the order of `rows`."""

    name: str
    parts: int
    rows: list[int]


@dataclass(frozen=True)
class Verdict:
    """What is known of a round's answers beside what roles found out."""

    scores: list[float]
    """Reward of each answer."""
    keep: list[int]
    """Answers that are learned from; the others have no score, or their group no signal."""
    exact_rollout: bool
    """Rollout's log-probabilities are the policy's; the field `logprobs_A` holds a sample that checks it."""
    off_policy: bool
    """Answers may come from another policy than the one that learns from them."""


@dataclass(frozen=True)
class Summary:
    """Figures of a round's experience, for the driver."""

    figures: dict[str, float]
    kl: float | None
    """KL(policy || reference) in nats per answer; None without a reference."""
    mismatch: Mismatch
    """Between the log-probabilities of trainer and rollout."""
    baseline: Baseline
    index: Index
    """Of the answers that are learned from."""


class Buffer:
    """Holds nothing between calls: what has to last lies in the object store or in a checkpoint."""

    def __init__(self, settings: RoleSettings, place: Place) -> None:
        del settings, place

    def collect(self, groups: Sequence[int], *parts: Experience) -> tuple[None, Experience]:
        """One experience from the parts of several ranks or calls. `groups`: of the whole, which the parts do not
        know.
        """
        return None, concatenate(parts).with_(groups_B=torch.tensor(groups, dtype=torch.long))

    def select(self, rows: Sequence[int], experience: Experience) -> tuple[None, Experience]:
        """Some of the answers."""
        return None, experience.select(torch.tensor(rows, dtype=torch.long))

    def judge(
        self,
        spec: PpoStageSpec,
        found: Sequence[Found],
        verdict: Verdict,
        kl_coefficient: float,
        baseline: Baseline,
        experience: Experience,
        *parts: Tensor,
    ) -> tuple[Summary, Experience]:
        """Add what roles found (`parts`, flat over `found`) and the scores, and compute advantages."""
        fields: dict[str, Tensor] = {}
        checked, checked_rows = experience, list(range(len(experience)))
        start = 0
        for item in found:
            joined_A = torch.cat(parts[start : start + item.parts])
            start += item.parts
            rows_B = torch.tensor(item.rows, dtype=torch.long)
            lengths_B = experience.action_lengths_B[rows_B]
            fields[item.name] = joined_A[gather_index(lengths_B, rows_B.argsort())]
            if item.name == "logprobs_A":
                checked_rows = sorted(item.rows)
        if verdict.exact_rollout:
            checked = experience.select(torch.tensor(checked_rows, dtype=torch.long))
        difference = mismatch(fields["logprobs_A"], checked.rollout_logprobs_A)
        if verdict.exact_rollout:
            fields["logprobs_A"] = experience.rollout_logprobs_A
        experience = experience.with_(scores_B=torch.tensor(verdict.scores, dtype=torch.float32), **fields)
        if len(verdict.keep) < len(experience):
            experience = experience.select(torch.tensor(verdict.keep, dtype=torch.long))
        experience = estimate_advantages(
            experience, spec, kl_coefficient=kl_coefficient, baseline=baseline, off_policy=verdict.off_policy
        )
        kl = None if experience.reference_logprobs_A is None else float(sequence_kl(experience).mean())
        return Summary(figures(experience, spec), kl, difference, replace(baseline), experience.index()), experience

    def save(self, path: str, experience: Experience) -> None:
        """Write an experience to storage."""
        save_experience(experience, Path(path))

    def load(self, path: str) -> tuple[None, Experience]:
        """Read back what `save` wrote."""
        return None, load_experience(Path(path))
