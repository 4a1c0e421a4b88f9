"""A DeepSpeed engine that takes exact gradients of sums over a global batch, for the two roles that train.

DeepSpeed averages over ranks and divides by its accumulation steps. Neither is what a token mean over a ragged global
batch needs, so accumulation is ours (`update`: any number of micro-batches, one optimizer step) and the average over
ranks is undone by the factor `world`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn
from transformers import get_scheduler

from camel_ray.api.training import OptimizerSpec
from camel_ray.manifest import disk_errors

_TAG = "state"


def join_process_group(endpoint: str, *, rank: int, world: int, timeout_seconds: float) -> None:
    """Make this process one of `world`: NCCL where there is a GPU, gloo else. `endpoint`: host:port of rank 0."""
    host, _, port = endpoint.rpartition(":")
    os.environ.update(
        MASTER_ADDR=host, MASTER_PORT=port, RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0", LOCAL_WORLD_SIZE="1"
    )
    # The shared-memory collectives of DeepSpeed's CPU build are compiled on first use (half a minute); gloo needs
    # nothing.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if torch.cuda.is_available() else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=timeout_seconds),
    )


class TrainingEngine:
    """A module, its AdamW, its schedule and its ZeRO shards on one rank."""

    def __init__(
        self, module: nn.Module, optimizer: OptimizerSpec, *, zero: int, bf16: bool, updates: int, world: int
    ) -> None:
        self.world = world
        # Dropout would make the probability ratio differ from 1 before anything was learned.
        module.eval()
        adamw = torch.optim.AdamW(
            _parameter_groups(module, optimizer.weight_decay),
            lr=optimizer.learning_rate,
            betas=optimizer.betas,
            eps=optimizer.epsilon,
        )
        warmup = round(optimizer.warmup_ratio * updates)
        names = {"cosine": "cosine_with_min_lr", "linear": "linear", "constant": "constant_with_warmup"}
        options = {"min_lr_rate": optimizer.min_learning_rate_ratio} if optimizer.schedule == "cosine" else {}
        scheduler = get_scheduler(
            names[optimizer.schedule],
            adamw,
            num_warmup_steps=warmup,
            num_training_steps=updates,
            scheduler_specific_kwargs=options,
        )
        config = {
            "train_micro_batch_size_per_gpu": 1,  # unused: batches are ragged and ours
            "gradient_accumulation_steps": 1,
            "gradient_clipping": optimizer.max_grad_norm,
            "bf16": {"enabled": bf16},
            "zero_optimization": {"stage": zero, "overlap_comm": False, "contiguous_gradients": zero >= 2},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        }
        self.zero = zero
        self.engine: Any
        self.engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=adamw,
            lr_scheduler=scheduler,
            config=config,
            dist_init_required=False,
        )

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return torch.device(self.engine.device)

    def __call__(self, *inputs: Any) -> Any:
        """A forward pass. A collective under ZeRO-3: all ranks have to call it equally often."""
        return self.engine(*inputs)

    def update(self, losses: Sequence[Callable[[], Tensor]]) -> float:
        """One optimizer step on the gradient of the sum of all losses over all ranks. Returns the gradient's norm.

        Each loss is called once and runs its own forward pass. All ranks bring equally many, at least one.
        """
        for number, loss in enumerate(losses, start=1):
            self.engine.set_gradient_accumulation_boundary(number == len(losses))
            self.engine.backward(loss() * self.world)
        norm = self._unsharded_norm()
        self.engine.step()
        return float(self.engine.get_global_grad_norm() if norm is None else norm)

    def _unsharded_norm(self) -> Tensor | None:
        """Norm of the gradients where DeepSpeed has no optimizer of its own around AdamW (fp32 without ZeRO), else
        None.
        """
        if self.zero > 0 or hasattr(self.engine.optimizer, "_global_grad_norm"):
            return None
        return torch.nn.utils.get_total_norm([p.grad for p in self.engine.module.parameters() if p.grad is not None])

    @property
    def learning_rate(self) -> float:
        """Of the next update."""
        return float(self.engine.get_lr()[0])

    def full_state(self) -> dict[str, Tensor] | None:
        """All parameters and buffers, whole and on the CPU, on rank 0; None on the others. Every rank has to call it.

        ZeRO-3 parameters are gathered one at a time, so that no device needs room for all of them.
        """
        state: dict[str, Tensor] = {}
        first = self.engine.global_rank == 0
        for name, parameter in self.engine.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.zero == 3):
                if first:
                    state[name] = parameter.detach().to("cpu", copy=True)
        persistent = self.engine.module.state_dict().keys() if self.zero < 3 else ()
        for name, buffer in self.engine.module.named_buffers():
            if first and name in persistent:
                state[name] = buffer.detach().to("cpu", copy=True)
        return state if first else None

    def save(self, directory: Path) -> None:
        """Write this rank's shards of parameters, optimizer and schedule. Every rank has to call it."""
        with disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self.engine.save_checkpoint(str(directory), tag=_TAG, save_latest=False)

    def load(self, directory: Path) -> None:
        """Read back what `save` wrote with the same number of ranks and ZeRO stage."""
        self.engine.load_checkpoint(str(directory), tag=_TAG)


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices only: decaying biases and norms pulls them to 0 for no reason."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
