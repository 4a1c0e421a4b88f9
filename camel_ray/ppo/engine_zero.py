"""DeepSpeed's ZeRO, as the engine uses it: its sharding, its collectives and its step, but no decision of its own.

DeepSpeed averages over ranks and divides by its accumulation steps. Neither is what a sum over a ragged global batch
needs: accumulation is the engine's, and the average is undone by the factor `world`. What DeepSpeed does with a
gradient norm that overflowed (drop the step, clear everything) is just what a broken update needs, so the engine
answers its question for the norm, and a broken update is an overflow.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.utils import combine_grad_norm_groups
from torch import Tensor, nn
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from camel_ray.ppo.engine_state import Fragment, Judge, by_weight_decay, new_adamw, start_moments, whole_shape
from camel_ray.ppo.memory import BUCKET_ELEMENTS
from camel_ray.ppo.settings import TrainingSettings


class ZeroOptimizer:
    """Shards of optimizer state, gradients (ZeRO-2) and parameters (ZeRO-3). See `Optimization`."""

    sharded = True

    def __init__(self, module: nn.Module, training: TrainingSettings, *, stage: int, bf16: bool, world: int) -> None:
        _start_deepspeed()
        self._world = world
        self._judge: Judge | None = None
        spec = training.optimizer
        groups = [
            {"params": [p for _, p in group], "weight_decay": spec.weight_decay if decays else 0.0}
            for decays, group in by_weight_decay(module)
        ]
        self.optimizer = new_adamw(groups, spec)
        self.engine: Any
        self.engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=self.optimizer,
            config=_config(training, stage=stage, bf16=bf16, elements=_elements(module)),
            dist_init_required=False,
        )
        self.module: nn.Module = self.engine.module
        self.device = torch.device(self.engine.device)
        self._inner = self.engine.optimizer
        if stage == 3:
            self.masters: list[Tensor] = self._inner.fp32_partitioned_groups_flat
            self._inner._get_norm_groups = self._judged_groups(self._inner._get_norm_groups)
        else:
            self.masters = self._inner.single_partition_of_fp32_groups
            # The norm says it all; without these two lines DeepSpeed looks through all gradients once more in bf16, and
            # would ignore the answer.
            self._inner.check_grad_overflow = True
            self._inner.check_overflow = lambda **_: None
            self._inner.scaled_global_norm = self._judged_norm(self._inner.scaled_global_norm)
        self._stage = stage
        self.fragments = self._fragments()
        start_moments(self.optimizer, self.masters)

    def _fragments(self) -> dict[str, Fragment]:
        """From DeepSpeed's own bookkeeping; the flat tensors end in padding that belongs to no parameter."""
        fragments = {}
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                continue
            if self._stage == 3:
                flat, start, size = self._inner.grad_position[self._inner.get_param_id(parameter)]
                offset = size * dist.get_rank()
                numel = min(size, whole_shape(parameter).numel() - offset)
                if numel > 0:
                    fragments[name] = Fragment(flat, start, offset, numel)
            else:
                mapping = getattr(parameter, "_hp_mapping", None)
                if mapping is None:
                    continue
                master, weight = mapping.hp_fragment_address, mapping.lp_fragment_address
                fragments[name] = Fragment(mapping.param_group_index, master.start, weight.start, weight.numel)
        return fragments

    def _judged_norm(self, norm_of: Any) -> Any:
        def judged() -> Tensor:
            norm = _as_tensor(norm_of())
            assert self._judge is not None
            return norm if self._judge(norm) else torch.full_like(norm, torch.inf)

        return judged

    def _judged_groups(self, norms_of: Any) -> Any:
        def judged() -> list[Tensor]:
            norms = [_as_tensor(norm) for norm in norms_of()]
            assert self._judge is not None
            accepted = self._judge(combine_grad_norm_groups(norms))
            return norms if accepted else [torch.full_like(norm, torch.inf) for norm in norms]

        return judged

    def __call__(self, *inputs: Any) -> Any:
        """A forward pass."""
        return self.engine(*inputs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a micro-batch to those of this update."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self._world)

    def step(self, judge: Judge) -> None:
        """Clip and step if `judge` accepts the norm; clear the gradients."""
        self._judge = judge
        self.engine.step()
        self._forget_gradients()

    def _forget_gradients(self) -> None:
        """Clear what DeepSpeed keeps from one update to the next.

        With offload it keeps the sums of a step it has not taken, and at any time the entry of a parameter that then
        gets no gradient: either may be of a broken update.
        """
        if self._stage == 3:
            self._inner.grad_partitions_flat_buffer.zero_()
        else:
            for group in self._inner.averaged_gradients:
                self._inner.averaged_gradients[group] = None
        for master in self.masters:
            if master.grad is not None:
                master.grad.zero_()

    def whole(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
        """Gathers parameters that ZeRO-3 has sharded."""
        gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(
            list(parameters), enabled=self._stage == 3 and len(parameters) > 0
        )
        return gathered

    @torch.no_grad()
    def publish(self) -> None:
        """Make the masters the parameters of the forward pass."""
        if self._stage < 3:
            self._inner.update_lp_params()
            return
        self._inner._partition_all_parameters()
        for number in range(len(self.masters)):
            self._inner._reassign_or_swap_out_partitioned_parameters(number)
        kept_whole = self._inner.persistent_parameters
        if kept_whole:
            kept_whole[0].all_gather(kept_whole)


@contextmanager
def loading_in_shards(training: TrainingSettings, *, bf16: bool) -> Iterator[None]:
    """Models that transformers makes or loads within it are sharded for ZeRO-3 layer by layer (collective).

    So no rank ever holds a whole model. The file is read by rank 0.
    """
    _start_deepspeed()
    config = HfDeepSpeedConfig(_config(training, stage=3, bf16=bf16, elements=BUCKET_ELEMENTS))
    try:
        yield
    finally:
        # transformers looks at it for as long as it lives, also when it loads the model of another role.
        del config
        unset_hf_deepspeed_config()


def _start_deepspeed() -> None:
    # It warns that a skipped step had gradients that are not finite; the engine says why it was skipped.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # One line per collective, for ever, about a name that DeepSpeed uses.
    warnings.filterwarnings("ignore", r"`torch.distributed.\w+` is deprecated", FutureWarning)
    # The shared-memory collectives of DeepSpeed's CPU build are compiled on first use (half a minute); gloo needs
    # nothing.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)


def _elements(module: nn.Module) -> int:
    return sum(whole_shape(p).numel() for p in module.parameters())


def _config(training: TrainingSettings, *, stage: int, bf16: bool, elements: int) -> dict[str, Any]:
    # Buckets are allocated at full size, so they are no larger than the model; DeepSpeed wants them even.
    bucket = min(BUCKET_ELEMENTS, elements + elements % 2)
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": False,
        "contiguous_gradients": stage >= 2,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if training.offload != "none":
        zero["offload_optimizer"] = host
    if training.offload == "all":
        zero["offload_param"] = host
    return {
        "train_micro_batch_size_per_gpu": 1,  # unused: batches are ragged and the engine's
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.optimizer.max_grad_norm,
        "bf16": {"enabled": bf16},
        # Sums over micro-batches and ranks are fp32 also where each gradient is bf16.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # torch's fused AdamW runs on a CPU at the speed of DeepSpeed's own, which has to be compiled first.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def _as_tensor(norm: Any) -> Tensor:
    """A norm on the host (offload) or device; DeepSpeed's sign for one that is no number is -1."""
    tensor = torch.as_tensor(norm, dtype=torch.float32)
    return torch.where(tensor >= 0, tensor, torch.inf)
