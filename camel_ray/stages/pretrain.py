"""`pretrain`: a language model from plain text, causal or masked (Hugging Face Trainer)."""

from __future__ import annotations

from camel_ray.api.stages.pretrain import PretrainStageSpec
from camel_ray.stages.contract import Output, StageContext
from camel_ray.stages.inputs import resolve_dataset
from camel_ray.stages.supervised import train_stage
from camel_ray.training.tokens import text_rows


def run(context: StageContext) -> list[Output]:
    """Train on the `text` rows of the stage's data. Makes a `model`."""
    spec = context.stage.pretrain
    assert isinstance(spec, PretrainStageSpec)
    return train_stage(
        context,
        "pretrain",
        spec,
        resolve_dataset(context, spec.data, field="data", accept=("text",)),
        lambda tokenizer, _: text_rows(
            tokenizer, max_length=spec.max_length, packing=spec.packing, overflow=spec.overflow
        ),
    )
