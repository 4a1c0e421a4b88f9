"""Stage `tokenizer`: a byte-level BPE trained on the pipeline's text, or a loaded tokenizer, with a chat template."""

from __future__ import annotations

from itertools import chain, islice

from camel_ray.api.data import DataFormat
from camel_ray.api.model import ModelSpec
from camel_ray.api.stages.tokenizer import TokenizerStageSpec
from camel_ray.data.dataset import PreparedDataset
from camel_ray.data.filters import texts
from camel_ray.data.tokenizer import (
    add_special_tokens,
    bytes_per_token,
    ensure_chat_template,
    train_tokenizer,
    training_texts,
)
from camel_ray.manifest import disk_errors
from camel_ray.stages.contract import ArtifactKind, Output, StageContext
from camel_ray.stages.inputs import resolve_dataset, resolve_tokenizer

_ALL_FORMATS: tuple[DataFormat, ...] = ("text", "prompt-completion", "messages", "preference", "labelled")
_SAMPLE_TEXTS = 2000


def run(context: StageContext) -> list[Output]:
    """Train or load the tokenizer. Raises DataError or ModelError if the text, template or tokenizer is unusable."""
    spec = context.stage.spec
    assert isinstance(spec, TokenizerStageSpec)
    datasets = _datasets(context, spec)
    if spec.source is not None:
        from camel_ray.models.load import load_tokenizer  # imports torch, which takes longer than training a tokenizer

        tokenizer = load_tokenizer(resolve_tokenizer(context, spec.source, ModelSpec()), revision=spec.revision)
        added = add_special_tokens(tokenizer, spec.special_tokens)
        ensure_chat_template(tokenizer, spec.chat_template)
        tokenizer.model_max_length = min(tokenizer.model_max_length, spec.max_length)
        if added:
            context.progress.note(
                f"{added} special tokens are new: a model loaded with this tokenizer has to know them"
            )
    else:
        total = sum(len(dataset.train) for dataset in datasets)
        context.progress.update("train", 0, total, unit="rows")
        tokenizer = train_tokenizer(
            chain.from_iterable(map(training_texts, datasets)),
            vocab_size=spec.vocab_size,
            min_frequency=spec.min_frequency,
            max_length=spec.max_length,
            chat_template=spec.chat_template,
            special_tokens=spec.special_tokens,
        )
        context.progress.update("train", total, total, unit="rows")
        context.progress.finish("train")
        if len(tokenizer) < spec.vocab_size:
            context.progress.note(
                f"the text gives {len(tokenizer)} of {spec.vocab_size} vocabulary entries; "
                "add text or lower `vocabSize`",
                level="warning",
            )
    path = context.output(ArtifactKind.TOKENIZER)
    with disk_errors(path):
        tokenizer.save_pretrained(path)
    sample = list(chain.from_iterable(_sample(dataset) for dataset in datasets))
    metrics: dict[str, float] = {"vocab_size": len(tokenizer)}
    if sample:
        metrics["bytes_per_token"] = bytes_per_token(tokenizer, sample)
    return [Output(ArtifactKind.TOKENIZER, path, metrics)]


def _datasets(context: StageContext, spec: TokenizerStageSpec) -> list[PreparedDataset]:
    refs = [] if spec.data is None else spec.data if isinstance(spec.data, list) else [spec.data]
    return [
        resolve_dataset(context, ref, field=f"tokenizer.data[{index}]", accept=_ALL_FORMATS)
        for index, ref in enumerate(refs)
    ]


def _sample(dataset: PreparedDataset) -> list[str]:
    """Texts the tokenizer was not trained on, where there are any."""
    side = dataset.validation if len(dataset.validation) else dataset.train
    rows = (texts(row, dataset.format) for row in side)
    return list(islice(chain.from_iterable(rows), _SAMPLE_TEXTS))
