"""`dpo`: a policy fitted to preference pairs without a reward model (TRL DPOTrainer)."""

from __future__ import annotations

from camel_ray.api.stages.dpo import DpoStageSpec
from camel_ray.stages.contract import Output, StageContext
from camel_ray.stages.inputs import resolve_dataset, resolve_model
from camel_ray.stages.supervised import train_stage
from camel_ray.training.tokens import pair_rows


def run(context: StageContext) -> list[Output]:
    """Train on `preference` rows. Makes a `model`."""
    spec = context.stage.dpo
    assert isinstance(spec, DpoStageSpec)
    reference = None if spec.reference is None else resolve_model(context, spec.reference, field="reference")
    return train_stage(
        context,
        "dpo",
        spec,
        resolve_dataset(context, spec.data, field="data", accept=("preference",)),
        lambda tokenizer, _: pair_rows(
            tokenizer, max_length=spec.max_length, overflow=spec.overflow, split_prompt=True
        ),
        reference=reference,
        extra={"beta": spec.beta, "loss_type": [spec.loss], "label_smoothing": spec.label_smoothing},
    )
