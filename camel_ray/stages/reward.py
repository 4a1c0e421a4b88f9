"""`reward`: a model that scores answers, from preference pairs (TRL RewardTrainer)."""

from __future__ import annotations

from camel_ray.api.stages.reward import RewardStageSpec
from camel_ray.stages.contract import ArtifactKind, Output, StageContext
from camel_ray.stages.inputs import resolve_dataset
from camel_ray.stages.supervised import train_stage
from camel_ray.training.tokens import pair_rows


def run(context: StageContext) -> list[Output]:
    """Train on `preference` rows. Makes a `reward-model`."""
    spec = context.stage.reward
    assert isinstance(spec, RewardStageSpec)
    return train_stage(
        context,
        "reward",
        spec,
        resolve_dataset(context, spec.data, field="data", accept=("preference",)),
        lambda tokenizer, _: pair_rows(
            tokenizer, max_length=spec.max_length, overflow=spec.overflow, split_prompt=False
        ),
        makes=ArtifactKind.REWARD_MODEL,
        extra={"center_rewards_coefficient": spec.center_coefficient or None},
    )
