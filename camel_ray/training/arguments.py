"""Arguments of the Hugging Face and TRL trainers: from the spec's fields, and from its `trainer` mapping.

Which keys `trainer` may hold is checked when the pipeline is read (api/hf_arguments.py); here only values can still be
wrong.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from transformers import TrainingArguments
from trl import DPOConfig, RewardConfig, SFTConfig

from camel_ray.api.pipeline import TrackingSpec
from camel_ray.api.training import OptimizerSpec, TrainingSpec
from camel_ray.errors import SpecError

TrainingKind = Literal["pretrain", "sft", "reward", "dpo"]


def argument_class(kind: TrainingKind) -> type[Any]:
    """The Hugging Face argument class behind a stage kind."""
    classes: dict[TrainingKind, type[Any]] = {
        "pretrain": TrainingArguments,
        "sft": SFTConfig,
        "reward": RewardConfig,
        "dpo": DPOConfig,
    }
    return classes[kind]


def schedule_arguments(spec: OptimizerSpec, *, steps: int) -> dict[str, Any]:
    """Warm-up over ceil(warmupRatio x steps), then the spec's shape, as arguments of a Hugging Face trainer."""
    name: dict[str, tuple[str, dict[str, Any]]] = {
        "cosine": ("cosine_with_min_lr", {"min_lr_rate": spec.min_learning_rate_ratio}),
        "linear": ("linear", {}),
        "constant": ("constant_with_warmup", {}),
    }
    kind, options = name[spec.schedule]
    return {
        "lr_scheduler_type": kind,
        "lr_scheduler_kwargs": options,
        "warmup_steps": math.ceil(spec.warmup_ratio * steps),
    }


def trainer_arguments(
    kind: TrainingKind,
    spec: TrainingSpec,
    *,
    extra: Mapping[str, Any],
    deepspeed: Mapping[str, Any],
    steps: int,
    workers: int,
    bf16: bool,
    use_cpu: bool,
    checkpoints: Path,
    tracking: TrackingSpec,
    run_name: str,
    seed: int,
) -> Any:
    """An instance of the argument class of `kind`. `extra`: what the stage adds for its kind, such as DPO's beta.

    Raises SpecError for values of `trainer` that the class refuses, and for a tracker that is not installed.
    """
    trackers = [name for name in ("wandb", "mlflow") if getattr(tracking, name)]
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise SpecError(
                f"spec.tracking.{name}: the package is not installed; run `pip install {name}`, or set it to false"
            )
    arguments: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "run_name": run_name,
        "seed": seed,
        "deepspeed": dict(deepspeed),
        "use_cpu": use_cpu,
        "bf16": bf16,
        # The process group was made before (see process.py); on a CPU accelerate would not find it by itself.
        "accelerator_config": {"use_configured_state": True},
        "max_steps": steps,
        "per_device_train_batch_size": spec.micro_batch_size,
        "per_device_eval_batch_size": spec.micro_batch_size,
        "gradient_accumulation_steps": spec.batch_size // (spec.micro_batch_size * workers),
        "learning_rate": spec.learning_rate,
        "weight_decay": spec.weight_decay,
        "adam_beta1": spec.betas[0],
        "adam_beta2": spec.betas[1],
        "adam_epsilon": spec.epsilon,
        "max_grad_norm": spec.max_grad_norm,
        **schedule_arguments(spec, steps=steps),
        "optim": "adamw_torch",
        "gradient_checkpointing": spec.gradient_checkpointing,
        "logging_steps": spec.log_every_steps,
        # A hidden not-a-number would look like a good loss; the guard stops at it instead.
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if spec.evaluate_every_steps else "no",
        "eval_steps": spec.evaluate_every_steps,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "save_strategy": "steps",
        "save_steps": spec.checkpoint.every_steps,
        # Rotation is ours: an old checkpoint goes only after the new one is verified.
        "save_total_limit": None,
        "report_to": ["tensorboard", *trackers],
        "disable_tqdm": True,
        "dataloader_pin_memory": not use_cpu,
        "remove_unused_columns": False,
        **extra,
        **spec.trainer,
    }
    if kind != "pretrain":
        # Rows arrive tokenised and cut; the trainer has nothing left to prepare.
        arguments["max_length"] = None
    try:
        return argument_class(kind)(**arguments)
    except (TypeError, ValueError, ImportError) as error:
        sentence = (str(error).splitlines() or [""])[0]
        raise SpecError(f"{kind}.trainer does not fit {argument_class(kind).__name__}: {sentence}") from error
