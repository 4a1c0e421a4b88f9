"""`sft`: instruction tuning on answers or conversations (TRL SFTTrainer)."""

from __future__ import annotations

from camel_ray.api.stages.sft import SftStageSpec
from camel_ray.stages.contract import Output, StageContext
from camel_ray.stages.inputs import resolve_dataset
from camel_ray.stages.supervised import train_stage
from camel_ray.training.tokens import answer_rows


def run(context: StageContext) -> list[Output]:
    """Train on `prompt-completion` or `messages` rows. Makes a `model`."""
    spec = context.stage.sft
    assert isinstance(spec, SftStageSpec)
    return train_stage(
        context,
        "sft",
        spec,
        resolve_dataset(context, spec.data, field="data", accept=("prompt-completion", "messages")),
        lambda tokenizer, dataset: answer_rows(
            tokenizer,
            format=dataset.format,
            max_length=spec.max_length,
            overflow=spec.overflow,
            loss_on=spec.loss_on,
            packing=spec.packing,
        ),
        extra={"packing": spec.packing},
    )
