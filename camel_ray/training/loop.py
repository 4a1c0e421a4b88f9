"""The function that runs on every training process, alone or as a worker of Ray Train: build, train, measure, save.

It reads everything from one `TrainingPlan` and leaves the trained model in the plan's output directory and the figures
in its result file, both written by the first worker.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.distributed as dist
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.dpo_trainer import DataCollatorForPreference as PairCollator
from trl.trainer.reward_trainer import DataCollatorForPreference as ScoreCollator

from camel_ray.api.stages.pretrain import PretrainStageSpec
from camel_ray.errors import ModelError
from camel_ray.manifest import disk_errors, write_atomically
from camel_ray.models.load import load_causal_lm, load_reward_model, load_tokenizer, save_model
from camel_ray.stop import StopRequest
from camel_ray.training.arguments import trainer_arguments
from camel_ray.training.batches import BatchPlan, steps_for
from camel_ray.training.callbacks.commit import CommitCallback
from camel_ray.training.callbacks.nan_guard import NanGuard
from camel_ray.training.callbacks.progress import ProgressCallback
from camel_ray.training.callbacks.stopping import StopCallback
from camel_ray.training.checkpoint import writing
from camel_ray.training.collate import CausalCollator, MaskedCollator
from camel_ray.training.plan import TrainingPlan
from camel_ray.training.process import Rank, training_process
from camel_ray.training.reward_metrics import normalise, reward_metrics
from camel_ray.training.tokens import TokenRows, load_tokens
from camel_ray.training.trainers import TRAINERS, ScoreTrainer, Streamed
from camel_ray.training.zero import Precision, deepspeed_config

VALIDATION_SHARE = 0.05
"""Tokens of one validation of a language model, at most, as a share of the tokens trained on; validation is a third the
cost of training.
"""
VALIDATION_ROWS = 64
"""Rows that are validated in any case."""


def train(plan: TrainingPlan, rank: Rank, resume: Path | None, *, threads: int) -> None:
    """Train to the end, from `resume` (an intact checkpoint of this plan) or from the start.

    `threads`: CPU threads of this process.
    """
    environment = {
        **_wandb_mode(plan),
        "TENSORBOARD_LOGGING_DIR": str(plan.work / "tensorboard"),
        "WANDB_PROJECT": plan.tracking.project or plan.run_name,
        "MLFLOW_EXPERIMENT_NAME": plan.tracking.project or plan.run_name,
    }
    with writing(plan.work), training_process(rank, threads=threads, environment=environment):
        started = time.perf_counter()
        trainer, tokenizer, rows = _build(plan, rank)
        built = time.perf_counter()
        figures = _run(trainer, plan, resume)
        trained = time.perf_counter()
        metrics = {
            **figures,
            "dropped": dict(rows.dropped),
            "truncated": rows.truncated,
            "validation_rows": len(trainer.validation_rows),
            "validation_rows_available": len(rows.validation),
        }
        if isinstance(trainer, ScoreTrainer):
            metrics |= _measure_scores(trainer, plan)
        _save(trainer, tokenizer, plan.output)
        metrics["seconds"] = {
            "build": built - started,
            "train": trained - built,
            "save": time.perf_counter() - trained,
        }
        if rank.first:
            write_atomically(plan.result, json.dumps(metrics))


def _wandb_mode(plan: TrainingPlan) -> dict[str, str]:
    """Without a key W&B would ask for one on the terminal; offline its files can be sent later with `wandb sync`."""
    offline = plan.tracking.wandb and not {"WANDB_API_KEY", "WANDB_MODE"} & os.environ.keys()
    return {"WANDB_MODE": "offline", "WANDB_DIR": str(plan.work)} if offline else {}


def precision_of(plan: TrainingPlan) -> Precision:
    """`auto`: bf16 on a GPU that has it, else fp32."""
    if plan.spec.precision != "auto":
        return plan.spec.precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def _build(plan: TrainingPlan, rank: Rank) -> tuple[Streamed, PreTrainedTokenizerBase, TokenRows]:
    spec = plan.spec
    rows = load_tokens(plan.tokens)
    lengths = rows.lengths(rows.train)
    steps = steps_for(rows=len(lengths), batch_size=spec.batch_size, epochs=spec.epochs, steps=spec.steps)
    batches = BatchPlan(lengths, spec.batch_size, steps, plan.seed)
    tokens = batches.tokens()
    precision = precision_of(plan)
    tokenizer = load_tokenizer(
        plan.tokenizer, revision=plan.model.revision, trust_remote_code=plan.model.trust_remote_code
    )
    # Where a model is read from files, the arguments come first: they make ZeRO-3 split it while it is read, so that it
    # never has to fit into the memory of one process. Fresh weights come first: drawn in one piece, they are the same
    # for every ZeRO stage and number of workers.
    if plan.model.source is None:
        models = _models(plan, tokenizer, precision)
        arguments = _arguments(plan, rank, precision, steps)
    else:
        arguments = _arguments(plan, rank, precision, steps)
        models = _models(plan, tokenizer, precision)
    validation = _validation(plan, rows.validation, budget=int(tokens[-1] * VALIDATION_SHARE))
    trainer = TRAINERS[plan.kind](
        **models,
        args=arguments,
        train_dataset=rows.train,
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=_collator(plan, tokenizer),
    )
    trainer.stream(batches, train=rows.train, validation=validation, work=plan.work)
    _add_callbacks(trainer, plan, tokens)
    return trainer, tokenizer, rows


def _arguments(plan: TrainingPlan, rank: Rank, precision: Precision, steps: int) -> Any:
    spec = plan.spec
    return trainer_arguments(
        plan.kind,
        spec,
        extra=plan.extra,
        deepspeed=deepspeed_config(
            stage=spec.zero,
            offload=spec.offload,
            precision=precision,
            batch_size=spec.batch_size,
            micro_batch_size=spec.micro_batch_size,
            workers=rank.world_size,
            max_grad_norm=spec.max_grad_norm,
        ),
        steps=steps,
        workers=rank.world_size,
        bf16=precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        checkpoints=plan.checkpoints,
        tracking=plan.tracking,
        run_name=f"{plan.run_name}-{plan.stage}",
        seed=plan.seed,
    )


def _models(plan: TrainingPlan, tokenizer: PreTrainedTokenizerBase, precision: Precision) -> dict[str, PreTrainedModel]:
    """The models a trainer takes, by the names of its arguments."""
    if plan.kind == "reward":
        return {"model": _cast(load_reward_model(plan.model, tokenizer, seed=plan.seed), precision)}
    masked = isinstance(plan.spec, PretrainStageSpec) and plan.spec.objective == "masked"
    models = {"model": _cast(load_causal_lm(plan.model, tokenizer, seed=plan.seed, masked=masked), precision)}
    if plan.kind == "dpo":
        reference = load_causal_lm(plan.reference or plan.model, tokenizer, seed=plan.seed)
        models["ref_model"] = _cast(reference, precision)
    return models


def _cast(model: PreTrainedModel, precision: Precision) -> PreTrainedModel:
    """In fp32 a model saved in half precision has to be widened; in bf16 DeepSpeed narrows it and keeps a wide copy."""
    return model.float() if precision == "fp32" else model


def _collator(plan: TrainingPlan, tokenizer: PreTrainedTokenizerBase) -> Any:
    pad_id = int(tokenizer.pad_token_id)
    if plan.kind == "reward":
        return ScoreCollator(pad_token_id=pad_id)
    if plan.kind == "dpo":
        return PairCollator(pad_token_id=pad_id)
    if not isinstance(plan.spec, PretrainStageSpec):
        return None  # TRL's own, which knows packed rows
    if plan.spec.objective == "causal":
        return CausalCollator(pad_id)
    return MaskedCollator(
        pad_id=pad_id,
        mask_id=mask_token_id(tokenizer),
        special_ids=tuple(tokenizer.all_special_ids),
        vocab_size=len(tokenizer),
        share=plan.spec.masked_share,
        seed=plan.seed,
    )


def mask_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that hides another. Raises ModelError if the tokenizer has none."""
    vocabulary = tokenizer.get_vocab()
    for name in (tokenizer.mask_token, "<|mask|>", "[MASK]", "<mask>"):
        if name in vocabulary:
            return int(vocabulary[name])
    raise ModelError(
        "objective: masked needs a mask token, and the tokenizer has none; add '<|mask|>' to specialTokens of the "
        "tokenizer stage"
    )


def _validation(plan: TrainingPlan, rows: datasets.Dataset, *, budget: int) -> datasets.Dataset:
    """The rows that are validated: all pairs, or as many rows of a language model as the budget of tokens allows."""
    if plan.kind == "reward" or not len(rows):
        return rows
    kept = int((TokenRows.lengths(rows).cumsum() <= budget).sum())
    return rows.select(range(min(len(rows), max(VALIDATION_ROWS, kept))))


def _add_callbacks(trainer: Streamed, plan: TrainingPlan, tokens: Any) -> None:
    trainer.add_callback(NanGuard(plan.stage, plan.spec.learning_rate, trainer.figures))
    trainer.add_callback(ProgressCallback(plan.progress, tokens))
    trainer.add_callback(CommitCallback(run=plan.digest, keep=plan.spec.checkpoint.keep))
    if stopping := plan.spec.early_stopping:
        trainer.add_callback(EarlyStoppingCallback(stopping.patience, stopping.min_delta))
    trainer.add_callback(StopCallback(plan.stage, StopRequest(plan.work)))


def _run(trainer: Streamed, plan: TrainingPlan, resume: Path | None) -> dict[str, Any]:
    """Train and return the figures of the language model."""
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters())
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    seconds = time.perf_counter() - trainer.began
    first = 0 if resume is None else int(resume.name.rsplit("-", 1)[1])
    step = trainer.state.global_step
    final = trainer.evaluate()["eval_loss"]
    untrained = trainer.untrained["eval_loss"]
    tokens = trainer.plan.tokens()
    metrics = {
        "parameters": parameters,
        "steps": step,
        "tokens": int(tokens[step]),
        "tokens_per_second": float(tokens[step] - tokens[first]) / seconds if step > first else None,
        "train_loss": next((e["loss"] for e in reversed(trainer.state.log_history) if "loss" in e), None),
        "validation_loss": _finite(final),
    }
    if plan.kind in ("pretrain", "sft"):
        metrics |= {"perplexity": _perplexity(final), "perplexity_untrained": _perplexity(untrained)}
    else:
        metrics["validation_loss_untrained"] = _finite(untrained)
    return metrics


def _measure_scores(trainer: ScoreTrainer, plan: TrainingPlan) -> dict[str, Any]:
    """Figures of a reward model on all held-out pairs; writes its normalisation into its configuration."""
    scores = trainer.pair_scores()
    pairs = [trainer.validation_rows[row] for row in scores]
    metrics = reward_metrics(
        list(scores.values()), characters=[p["characters"] for p in pairs], kinds=[p["kind"] for p in pairs]
    )
    if plan.spec.normalize and scores:  # type: ignore[attr-defined]
        normalise(trainer.model.config, mean=metrics["mean"], std=metrics["std"])
    return metrics


def _save(trainer: Streamed, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    # All workers take part: under ZeRO-3 each holds a shard.
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        with disk_errors(output):
            save_model(trainer.accelerator.unwrap_model(trainer.model_wrapped), tokenizer, output, state_dict=state)
    dist.barrier()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _perplexity(loss: float) -> float | None:
    return math.exp(min(loss, 700.0)) if math.isfinite(loss) else None
