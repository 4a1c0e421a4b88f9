"""`evaluate`: measure a model beside the one it started from, on rows neither was trained on.

Writes `evaluation.json` (figures) and `samples.jsonl` (every prompt with all answers and scores); the runtime makes the
report of them. Models are loaded one at a time, so the stage needs the memory of one.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from camel_ray.api.data import DataRef
from camel_ray.api.model import ModelSpec
from camel_ray.api.stages.evaluate import EvaluateStageSpec, MetricName
from camel_ray.errors import ModelError, SpecError
from camel_ray.evaluation.answers import Answer, Question, answer, fitting, judge, questions, references
from camel_ray.evaluation.bleu import corpus_bleu
from camel_ray.evaluation.exact_match import exact_match
from camel_ray.evaluation.judge import estimate, gain, win_rate
from camel_ray.evaluation.perplexity import TextLikelihood, text_likelihood
from camel_ray.evaluation.rouge import mean_rouge
from camel_ray.manifest import disk_errors
from camel_ray.models.load import check_length, load_causal_lm, load_config, load_reward_model, load_tokenizer
from camel_ray.stages.contract import ArtifactKind, Output, StageContext
from camel_ray.stages.inputs import (
    model_before,
    resolve_dataset,
    resolve_model,
    resolve_reward_model,
    resolve_tokenizer,
)

_TEXT_METRICS: frozenset[MetricName] = frozenset({"bleu", "rouge", "exact_match"})
_JUDGED: frozenset[MetricName] = frozenset({"reward", "win_rate"})


@dataclass
class _Contender:
    """A model under evaluation and what was found out about it."""

    name: str
    spec: ModelSpec
    tokenizer: PreTrainedTokenizerBase
    likelihood: TextLikelihood | None = None
    answers: list[Answer] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


def run(context: StageContext) -> list[Output]:
    """Measure what can be measured; the rest is listed as left out, with the reason."""
    spec = context.stage.spec
    assert isinstance(spec, EvaluateStageSpec)
    torch.set_num_threads(context.cores)
    if spec.max_response_length >= spec.max_length:
        raise SpecError(
            f"stage '{context.stage.name}', field maxResponseLength: {spec.max_response_length} tokens leave no room "
            f"for a prompt in maxLength {spec.max_length}; make it smaller, or maxLength larger"
        )
    left_out: dict[str, str] = {}
    contenders = _contenders(context, spec)
    texts = _texts(context, spec, left_out)
    asked, too_long = _questions(context, spec, contenders, left_out)
    for number, contender in enumerate(contenders.values()):
        _measure(context, spec, contender, texts, asked, number, len(contenders))
    judged = _judge(context, spec, contenders, asked, left_out)

    figures = _figures(spec, contenders, asked, judged)
    model, baseline = contenders["model"], contenders.get("baseline")
    evaluation: dict[str, Any] = {
        "model": model.name,
        "baseline": baseline.name if baseline else None,
        "figures": figures,
        "left_out": left_out,
        "counts": {
            "prompts": len(asked),
            "prompts_too_long": too_long,
            "text_tokens": model.likelihood.tokens if model.likelihood else 0,
        },
        "samples_shown": spec.samples,
    }
    if baseline and judged:
        evaluation["reward_gain"] = asdict(gain(model.scores, baseline.scores))
        if "win_rate" in spec.metrics:
            evaluation["win_rate"] = asdict(win_rate(model.scores, baseline.scores))
    directory = context.output(ArtifactKind.REPORT)
    lines = _samples(model, baseline, asked, judged)
    with disk_errors(directory):
        text = json.dumps(evaluation, indent=1, ensure_ascii=False, allow_nan=False)
        (directory / "evaluation.json").write_text(text + "\n", encoding="utf-8")
        with (directory / "samples.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    return [Output(ArtifactKind.REPORT, directory, _metrics(evaluation))]


def _metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Of `evaluation.json` the numbers that are the model's own, for the artifact and for a status on a cluster."""
    figures: Mapping[str, Mapping[str, float | None]] = evaluation["figures"]
    metrics = {name: value for name, sides in figures.items() if (value := sides.get("model")) is not None}
    if "win_rate" in evaluation:
        metrics["win_rate"] = evaluation["win_rate"]["rate"]
    return metrics


def _contenders(context: StageContext, spec: EvaluateStageSpec) -> dict[str, _Contender]:
    """The model, and the baseline where there is one, by the names they have in `evaluation.json`."""
    chosen = resolve_model(context, spec.model, field="model")
    contenders = {"model": _contender(context, spec, chosen, "model")}
    if spec.baseline is not None:
        before: ModelSpec | None = resolve_model(context, spec.baseline, field="baseline")
    else:
        before = model_before(context, contenders["model"].name)
    if before is not None:
        contenders["baseline"] = _contender(context, spec, before, "baseline")
    return contenders


def _contender(context: StageContext, spec: EvaluateStageSpec, model: ModelSpec, member: str) -> _Contender:
    tokenizer = load_tokenizer(
        resolve_tokenizer(context, None, model), revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    name = next((s for s, a in context.inputs.items() if str(a.path) == model.source), model.source or "from scratch")
    config = load_config(model, tokenizer)
    check_length(config, spec.max_length, field=f"stage '{context.stage.name}', field maxLength")
    if any(a.endswith("ForMaskedLM") for a in config.architectures or ()):
        raise ModelError(
            f"stage '{context.stage.name}', field {member}: {name} is a masked language model, which cannot write "
            "text; name a causal one"
        )
    return _Contender(name, model, tokenizer)


def _texts(context: StageContext, spec: EvaluateStageSpec, left_out: dict[str, str]) -> list[str]:
    """Held-out text for the perplexity; empty if it is not wanted or there is none."""
    if "perplexity" not in spec.metrics:
        return []
    ref: DataRef | None = spec.text
    if ref is None:
        trained = [s for s in context.pipeline.spec.stages if s.name in context.inputs and s.pretrain is not None]
        ref = trained[-1].pretrain.data if trained and trained[-1].pretrain else None
    if ref is None:
        left_out["perplexity"] = "there is no text: set `text`, or add a pretrain stage before"
        return []
    texts = [t for t in resolve_dataset(context, ref, field="text", accept=("text",)).validation["text"] if t]
    if not texts:
        left_out["perplexity"] = "the text has no validation rows; set its `validation` above 0"
    return texts


def _questions(
    context: StageContext, spec: EvaluateStageSpec, contenders: Mapping[str, _Contender], left_out: dict[str, str]
) -> tuple[list[Question], int]:
    """Held-out questions that fit all models, and how many were too long."""
    wanted = [m for m in spec.metrics if m in _TEXT_METRICS | _JUDGED]
    if not wanted and not spec.samples:
        return [], 0
    asked: list[Question] = []
    reason, too_long = "`data` is not set", 0
    if spec.data is not None:
        dataset = resolve_dataset(
            context, spec.data, field="data", accept=("prompt-completion", "messages", "preference")
        )
        limit = spec.max_length - spec.max_response_length
        tokenizers = [c.tokenizer for c in contenders.values()]
        asked, too_long = fitting(questions(dataset), tokenizers, limit=spec.prompts, max_prompt_length=limit)
        reason = f"all {too_long} prompts of `data` are longer than maxLength - maxResponseLength = {limit} tokens"
        if not too_long:
            reason = "`data` has no validation rows with prompts; set its `validation` above 0"
        elif asked:
            context.progress.note(
                f"{too_long} prompts are longer than {limit} tokens and were passed over", level="warning"
            )
    if not asked:
        left_out.update(dict.fromkeys(wanted, reason))
    return asked, too_long


def _measure(
    context: StageContext,
    spec: EvaluateStageSpec,
    contender: _Contender,
    texts: Sequence[str],
    asked: Sequence[Question],
    number: int,
    of: int,
) -> None:
    """Likelihood of the texts and answers to the questions. `number` `of`: which contender, for the progress."""
    if not texts and not asked:
        return
    model = _placed(load_causal_lm(contender.spec, contender.tokenizer, seed=context.seed))
    if texts:
        contender.likelihood = text_likelihood(
            model,
            contender.tokenizer,
            texts,
            max_length=spec.max_length,
            max_tokens=spec.max_text_tokens,
            batch_size=spec.batch_size,
            report=lambda done: context.progress.update("perplexity", done, unit="tokens", tokens=done),
        )
    if asked:
        offset, total = number * len(asked), of * len(asked)
        contender.answers = answer(
            model,
            contender.tokenizer,
            asked,
            max_response_length=spec.max_response_length,
            temperature=spec.temperature,
            seed=context.seed,
            batch_size=spec.batch_size,
            report=lambda done: context.progress.update("generate", offset + done, total, unit="rows"),
        )
    if number == of - 1:
        context.progress.finish("perplexity")
        context.progress.finish("generate")
    del model
    _free()


def _judge(
    context: StageContext,
    spec: EvaluateStageSpec,
    contenders: Mapping[str, _Contender],
    asked: Sequence[Question],
    left_out: dict[str, str],
) -> list[float]:
    """Score all answers; returns the scores of the reference answers, or nothing where no one judges."""
    wanted = [m for m in spec.metrics if m in _JUDGED]
    if "win_rate" in wanted and "baseline" not in contenders:
        left_out["win_rate"] = "there is no baseline to win against: set `baseline`"
        wanted.remove("win_rate")
    if not wanted or not asked:
        return []
    if spec.reward_model is None and context.newest(ArtifactKind.REWARD_MODEL) is None:
        left_out.update(
            dict.fromkeys(wanted, "there is no reward model: set `rewardModel`, or add a reward stage before")
        )
        return []
    chosen = resolve_reward_model(context, spec.reward_model, field="rewardModel")
    tokenizer = load_tokenizer(resolve_tokenizer(context, None, chosen), revision=chosen.revision)
    judging = _placed(load_reward_model(chosen, tokenizer, seed=context.seed))
    limits = {"max_length": spec.max_length, "batch_tokens": spec.batch_size * spec.max_length}
    total = (len(contenders) + 1) * len(asked)
    for number, contender in enumerate(contenders.values(), start=1):
        contender.scores = judge(judging, tokenizer, asked, contender.answers, **limits)
        context.progress.update("judge", number * len(asked), total, unit="rows")
    scores = judge(judging, tokenizer, asked, references(tokenizer, asked), **limits)
    context.progress.finish("judge")
    del judging
    _free()
    return scores


def _figures(
    spec: EvaluateStageSpec, contenders: Mapping[str, _Contender], asked: Sequence[Question], judged: Sequence[float]
) -> dict[str, dict[str, float | None]]:
    """All figures, by metric and then by whose they are: `model`, `baseline` or `reference`."""
    figures: dict[str, dict[str, float | None]] = {}

    def put(metric: str, side: str, value: float) -> None:
        figures.setdefault(metric, {})[side] = value if math.isfinite(value) else None

    def put_reward(side: str, scores: Sequence[float]) -> None:
        found = estimate(scores)
        put("reward", side, found.mean)
        put("reward_std", side, found.std)

    wanted = [question.reference for question in asked]
    for side, contender in contenders.items():
        if contender.likelihood is not None:
            put("perplexity", side, contender.likelihood.perplexity)
            put("bits_per_byte", side, contender.likelihood.bits_per_byte)
        if not contender.answers:
            continue
        given = [a.text for a in contender.answers]
        if "bleu" in spec.metrics:
            put("bleu", side, corpus_bleu(given, [[w] for w in wanted]).bleu)
        if "rouge" in spec.metrics:
            for name, value in asdict(mean_rouge(given, wanted)).items():
                put(name, side, value)
        if "exact_match" in spec.metrics:
            put("exact_match", side, exact_match(given, wanted))
        if contender.scores:
            put_reward(side, contender.scores)
        put("response_length", side, sum(a.tokens for a in contender.answers) / len(asked))
        put("finished", side, sum(a.finished for a in contender.answers) / len(asked))
    if asked:
        lengths = [a.tokens for a in references(contenders["model"].tokenizer, asked)]
        put("response_length", "reference", sum(lengths) / len(lengths))
    if judged:
        put_reward("reference", judged)
    return figures


def _samples(
    model: _Contender, baseline: _Contender | None, asked: Sequence[Question], judged: Sequence[float]
) -> list[dict[str, Any]]:
    """One object per question: the prompt and, by side, the answer with its score."""

    def entry(contender: _Contender, i: int) -> dict[str, Any]:
        given = contender.answers[i]
        found = {"answer": given.text, "tokens": given.tokens, "finished": given.finished}
        return {**found, "reward": contender.scores[i]} if contender.scores else found

    lines = []
    for i, question in enumerate(asked):
        reference: dict[str, Any] = {"answer": question.reference}
        if judged:
            reference["reward"] = judged[i]
        line = {"prompt": [dict(m) for m in question.prompt], "reference": reference, "model": entry(model, i)}
        if baseline:
            line["baseline"] = entry(baseline, i)
        lines.append(line)
    return lines


def _placed(model: PreTrainedModel) -> PreTrainedModel:
    """On the accelerator where there is one, ready to measure."""
    placed: PreTrainedModel = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return placed


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
