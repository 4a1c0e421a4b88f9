"""The DeepSpeed configuration of a stage. Pure: from the spec to a dict, no DeepSpeed import.

The optimizer is not in it. PyTorch's AdamW, made by the trainer, decays matrices only (biases and norms are left alone)
and compiles nothing, while DeepSpeed's own would decay everything and compile C++ on first use. ZeRO wraps it all the
same.
"""

from __future__ import annotations

from typing import Any, Literal

Precision = Literal["fp32", "bf16"]


def accumulation_steps(*, batch_size: int, micro_batch_size: int, workers: int) -> int:
    """Forward passes per worker and optimizer step. Raises ValueError if batch_size does not divide."""
    steps, rest = divmod(batch_size, micro_batch_size * workers)
    if rest or not steps:
        raise ValueError(f"batch size {batch_size} is not a multiple of {workers} workers x {micro_batch_size}")
    return steps


def deepspeed_config(
    *,
    stage: Literal[0, 1, 2, 3],
    offload: Literal["none", "optimizer", "all"],
    precision: Precision,
    batch_size: int,
    micro_batch_size: int,
    workers: int,
    max_grad_norm: float,
) -> dict[str, Any]:
    """The `deepspeed` argument of a Hugging Face trainer.

    `stage`: 0 shards nothing, 1 optimizer state, 2 also gradients, 3 also parameters. `offload` keeps optimizer state,
    or also the parameters (stage 3 only), in host memory. `batch_size` counts sequences of one optimizer step over all
    workers. Raises ValueError if it does not divide (see `accumulation_steps`).
    """
    zero: dict[str, Any] = {"stage": stage}
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if stage == 3:
        # Trace-free settings: "auto" lets the trainer derive the bucket sizes from the model's width.
        zero |= {
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        }
        if offload == "all":
            zero["offload_param"] = {"device": "cpu"}
    accumulation = accumulation_steps(batch_size=batch_size, micro_batch_size=micro_batch_size, workers=workers)
    return {
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": zero,
        # AdamW is ours (see above), with and without offload.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # Its own console output is replaced by our progress events.
        "steps_per_print": 2**31,
    }
