"""Which keys `trainer:` may hold: the arguments of the Hugging Face trainer behind each stage, without importing it.

`validate` has to be fast and runs where transformers is not installed (the operator's image), so names and simple
types of the dataclasses are kept in `hf_arguments.json`, which `python -m camel_ray.api.generate` writes from the
installed libraries.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("hf_arguments.json")

DATACLASSES: Mapping[str, str] = {
    "pretrain": "TrainingArguments",
    "sft": "SFTConfig",
    "reward": "RewardConfig",
    "dpo": "DPOConfig",
}
"""Kind of stage to the dataclass its trainer takes."""

_FIELDS: Mapping[str, str] = {
    "learning_rate": "learningRate",
    "lr_scheduler_type": "schedule",
    "lr_scheduler_kwargs": "schedule",
    "warmup_steps": "warmupRatio",
    "warmup_ratio": "warmupRatio",
    "weight_decay": "weightDecay",
    "adam_beta1": "betas",
    "adam_beta2": "betas",
    "adam_epsilon": "epsilon",
    "max_grad_norm": "maxGradNorm",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "per_device_train_batch_size": "microBatchSize",
    "per_device_eval_batch_size": "microBatchSize",
    "gradient_accumulation_steps": "batchSize",
    "auto_find_batch_size": "microBatchSize",
    "max_length": "maxLength",
    "truncation_mode": "overflow",
    "packing": "packing",
    "bf16": "precision",
    "fp16": "precision",
    "bf16_full_eval": "precision",
    "fp16_full_eval": "precision",
    "gradient_checkpointing": "gradientCheckpointing",
    "eval_strategy": "evaluateEverySteps",
    "eval_steps": "evaluateEverySteps",
    "logging_strategy": "logEverySteps",
    "logging_steps": "logEverySteps",
    "save_strategy": "checkpoint.everySteps",
    "save_steps": "checkpoint.everySteps",
    "save_total_limit": "checkpoint.keep",
    "deepspeed": "zero",
    "completion_only_loss": "lossOn",
    "assistant_only_loss": "lossOn",
    "center_rewards_coefficient": "centerCoefficient",
    "model_init_kwargs": "model",
    "trust_remote_code": "model.trustRemoteCode",
    "chat_template_path": "tokenizer",
    "eos_token": "tokenizer",
    "pad_token": "tokenizer",
}
"""Arguments that have a field of their own in the stage."""

_DPO_FIELDS: Mapping[str, str] = {"beta": "beta", "loss_type": "loss", "label_smoothing": "labelSmoothing"}
"""The same for arguments that mean something else, or have no field, in other kinds of stages."""

_PIPELINE_FIELDS: Mapping[str, str] = {
    "seed": "spec.seed",
    "data_seed": "spec.seed",
    "report_to": "spec.tracking",
    "project": "spec.tracking.project",
    "full_determinism": "spec.seed",
}
"""Arguments that have a field of the pipeline."""

_OURS = frozenset(
    {
        "output_dir",
        "do_train",
        "do_eval",
        "do_predict",
        "disable_tqdm",
        "run_name",
        "save_only_model",
        "resume_from_checkpoint",
        "ignore_data_skip",
        "restore_callback_states_from_checkpoint",
        "enable_jit_checkpoint",
        "load_best_model_at_end",
        "push_to_hub",
        "local_rank",
        "use_cpu",
        "ddp_backend",
        "fsdp",
        "fsdp_config",
        "parallelism_config",
        "accelerator_config",
        "remove_unused_columns",
        "dataset_kwargs",
        "dataset_text_field",
        "average_tokens_across_devices",
        "optim",
        "train_sampling_strategy",
        "dataloader_drop_last",
        "eval_on_start",
        "logging_nan_inf_filter",
        "metric_for_best_model",
        "greater_is_better",
    }
)
"""Arguments that would break checkpoints, resume or the DeepSpeed set-up if they were changed."""


def check_trainer(kind: str, trainer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Pairs (key, what is wrong with it) of a stage's `trainer` mapping; nothing if all of it can be passed on."""
    known = _arguments(kind)
    for key, value in trainer.items():
        if sentence := _managed(kind, key):
            yield key, sentence
        elif key not in known:
            free = [name for name in known if not _managed(kind, name)]
            close = difflib.get_close_matches(_snake(key), free, n=1, cutoff=0.6)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            yield (
                key,
                f"is no argument of {DATACLASSES[kind]} (transformers and TRL); keys are its snake_case names.{hint}",
            )
        elif not _fits(value, known[key]):
            yield (
                key,
                f"should be {_words(known[key])} for {DATACLASSES[kind]}, not {json.dumps(value, default=str)[:40]}",
            )


def remedy(kind: str, argument: str) -> str:
    """What a user who wrote a trainer argument directly into a stage should write instead, or the empty string."""
    if sentence := _managed(kind, argument):
        return sentence
    if argument in _arguments(kind):
        return f"it is an argument of {DATACLASSES[kind]}: write `{argument}` under `trainer:`"
    return ""


def _managed(kind: str, argument: str) -> str:
    fields = {**_FIELDS, **_DPO_FIELDS} if kind == "dpo" else _FIELDS
    # warmup_ratio is gone from transformers, but everybody's old scripts have it
    if argument in fields and (argument in _arguments(kind) or argument == "warmup_ratio"):
        return f"`{argument}` has a field of its own in the stage; set `{fields[argument]}` instead"
    if argument in _PIPELINE_FIELDS:
        return f"`{argument}` is the same for all stages; set `{_PIPELINE_FIELDS[argument]}` instead"
    if argument in _OURS or argument.startswith("hub_"):
        return f"`{argument}` is set by camel-ray itself, so that checkpoints and resume work; delete it"
    return ""


@cache
def _table() -> dict[str, dict[str, list[str]]]:
    table: dict[str, dict[str, list[str]]] = json.loads(FILE.read_text(encoding="utf-8"))
    return table


def _arguments(kind: str) -> dict[str, list[str]]:
    """Argument names and the simple types each takes."""
    table = _table()
    return {**table["TrainingArguments"], **table[DATACLASSES[kind]]}


def _snake(key: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in key)


_TYPES: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "list": (list,),
    "dict": (dict,),
    "null": (type(None),),
}
_WORDS: Mapping[str, str] = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
    "null": "null",
}


def _fits(value: Any, names: list[str]) -> bool:
    if isinstance(value, bool):
        return "bool" in names
    return any(isinstance(value, _TYPES[name]) for name in names)


def _words(names: list[str]) -> str:
    return " or ".join(_WORDS[name] for name in names)
