"""The training half of a recorded round once more, in one process, for debugging.

It starts from the newest checkpoint before the round, learns from the recorded experience of the rounds between, and
says how far the last one's figures are from those of the run. Checkpoints do not depend on ranks or ZeRO stages, so
what ran on many hosts is replayed on one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.api.stages.ppo_reward import RewardSpec
from camel_ray.api.stages.ppo_roles import RoleName
from camel_ray.errors import ModelError
from camel_ray.ppo.advantages import Baseline
from camel_ray.ppo.checkpoint import Checkpoints
from camel_ray.ppo.driver import Driver, Judged
from camel_ray.ppo.experience import load_experience
from camel_ray.ppo.groups import TRAINED, Losses
from camel_ray.ppo.importance import Mismatch
from camel_ray.ppo.local import LocalGroup
from camel_ray.ppo.placement import GroupPlan
from camel_ray.ppo.recording import Recording, Round
from camel_ray.ppo.rewards.sources import RewardSources
from camel_ray.ppo.roles import role_class
from camel_ray.ppo.roles.buffer import Summary
from camel_ray.ppo.scoring import Scorer
from camel_ray.ppo.settings import Place, RoleSettings
from camel_ray.progress import Progress


@dataclass(frozen=True)
class Figure:
    """One figure of a round."""

    name: str
    recorded: float
    replayed: float


@dataclass(frozen=True)
class Replayed:
    """What a replay found."""

    step: int
    from_step: int
    """The checkpoint it began with; 0: the weights the stage began with."""
    answers: int
    tokens: int
    figures: tuple[Figure, ...]


def replay(
    spec: PpoStageSpec,
    settings: Mapping[RoleName, RoleSettings],
    *,
    step: int,
    checkpoints: Checkpoints,
    recording: Recording,
    seed: int,
    progress: Progress,
) -> Replayed:
    """Learn again from round `step`.

    Raises ModelError if it was not recorded, or no checkpoint lies before it with all rounds between recorded.
    """
    recording.read(step)
    found = checkpoints.newest(progress, before=step)
    start = 0 if found is None else found[0]
    rounds = [_needed(recording, number, step, start) for number in range(start + 1, step + 1)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    groups = {}
    for role in (role for role in TRAINED if role in settings):
        own = settings[role]
        assert own.training is not None
        own = replace(own, training=replace(own.training, zero=0, offload="none"))
        built = role_class(role)(own, Place(rank=0, world=1, device=device, roles={}))
        groups[role] = LocalGroup(GroupPlan((role,), 1), [{role: built}])
    driver = Driver(
        spec=spec,
        groups=groups,
        losses=Losses(spec.limits, progress),
        # Scores are recorded.
        scorer=Scorer(spec, groups, RewardSources(RewardSpec(), base_dir=Path()), own_tokens=False),
        shares_actor=True,
        bf16=settings["actor"].bf16,
        seed=seed,
    )
    if found is not None:
        driver.load_trained(found[2])
    learned: dict[str, float] = {}
    judged: Judged | None = None
    for one in rounds:
        judged = _judged(one)
        learned = driver.learn(judged, number=one.number, kl_coefficient=one.kl_coefficient)
    assert judged is not None
    recorded = rounds[-1].learned
    figures = tuple(Figure(name, recorded[name], value) for name, value in learned.items() if name in recorded)
    index = judged.summary.index
    return Replayed(step, start, len(index), sum(index.action_lengths), figures)


def _needed(recording: Recording, number: int, step: int, start: int) -> Round:
    try:
        return recording.read(number)
    except ModelError as error:
        begin = f"the checkpoint of round {start}" if start else "the first weights"
        raise ModelError(
            f"round {step} can only be replayed from {begin} through all rounds between, but {error}"
        ) from error


def _judged(one: Round) -> Judged:
    experience = load_experience(one.experience)
    nothing = Mismatch(0.0, 0.0, 0.0, 0.0)
    summary = Summary({}, None, nothing, Baseline("none"), experience.index())
    return Judged(experience, summary, [], Counter())
