"""Prints what one rank of a training engine holds, in bytes: run by test_memory.py in a process of its own.

The ranks are those of torch's fake process group, whose collectives do nothing: one process is enough to see the shard
of any number of them. Usage: held_bytes.py RANKS, then cases on standard input as JSON; one JSON line per case.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, LlamaForCausalLM

from camel_ray.api.stages.ppo import ActorOptimizerSpec
from camel_ray.ppo.engine import TrainingEngine
from camel_ray.ppo.settings import TrainingSettings


def held() -> dict[int, torch.UntypedStorage]:
    """All storages that a tensor in Python uses, by address. It keeps them, so that no address is used again."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}


def main(ranks: int) -> None:
    warnings.simplefilter("ignore")
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    # What the first engine of a process leaves in DeepSpeed's and torch's own caches is not the engine's.
    for case in [{"zero": 0, "bf16": False}, *json.load(sys.stdin)]:
        print(json.dumps(measure(ranks, **case)), flush=True)


def measure(ranks: int, *, zero: int, bf16: bool, average: bool = False, trained: str = "") -> dict[str, Any]:
    before = held()
    config = LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, vocab_size=2048
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16 if bf16 else torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad == wanted) for wanted in (True, False)]
    training = TrainingSettings(ActorOptimizerSpec(), 10, zero=zero, ema_decay=0.9 if average else None)
    engine = TrainingEngine(model, training, bf16=bf16, world=ranks)
    parameters = list(engine.module.parameters())

    def ours() -> int:
        now = held()
        for parameter in parameters:  # gradients have no Python object until somebody asks for them
            if parameter.grad is not None:
                now[parameter.grad.untyped_storage().data_ptr()] = parameter.grad.untyped_storage()
        return sum(storage.nbytes() for address, storage in now.items() if address not in before)

    result = {"trained": counts[0], "frozen": counts[1], "start": ours()}
    inputs_BT = torch.zeros((1, 4), dtype=torch.long)

    def loss() -> torch.Tensor:
        result["gradients"] = ours()  # of the micro-batch before
        return engine(inputs_BT).logits.float().square().mean()

    engine.update([loss, loss])
    return result


if __name__ == "__main__":
    main(int(sys.argv[1]))
