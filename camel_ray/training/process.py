"""The process group of a training process, and the traces that the libraries leave in it.

DeepSpeed wants a process group even for one process, and accelerate, transformers and DeepSpeed keep what they were
told in module-level state and environment variables. `camel-ray run` trains several stages one after the other in one
process, so every stage starts from, and leaves, a clean process.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore


@dataclass(frozen=True)
class Rank:
    """Place of this process among the training processes."""

    rank: int
    local_rank: int
    world_size: int

    @property
    def first(self) -> bool:
        """True in the process that writes files and progress."""
        return self.rank == 0


@contextmanager
def training_process(rank: Rank, *, threads: int, environment: dict[str, str]) -> Iterator[None]:
    """Join (or, alone, make) the process group, hand it to DeepSpeed and accelerate, and undo all of it at the end.

    `threads`: CPU threads of this process. `environment`: variables set meanwhile. A group that Ray Train made is left
    to it.
    """
    kept_environment = dict(os.environ)
    kept_hook = sys.excepthook
    kept_threads = torch.get_num_threads()
    alone = not dist.is_initialized()
    os.environ.update(
        environment, RANK=str(rank.rank), LOCAL_RANK=str(rank.local_rank), WORLD_SIZE=str(rank.world_size)
    )
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings():
            _quiet()
            if alone:
                # A store in memory: one process needs no address and no port.
                backend = "nccl" if torch.cuda.is_available() else "gloo"
                dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
            _hand_over_group()
            yield
    finally:
        _forget(destroy_group=alone)
        torch.set_num_threads(kept_threads)
        # torch.distributed puts the rank before every line of a traceback.
        sys.excepthook = kept_hook
        os.environ.clear()
        os.environ.update(kept_environment)


def _hand_over_group() -> None:
    """Make DeepSpeed and accelerate use the group that exists."""
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"  # it would say that it had to guess
    import deepspeed
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    if not torch.cuda.is_available():
        # DeepSpeed would probe what it can compile and build shared-memory collectives (half a minute of C++) on first
        # use. This table is what it asks; with nothing in it gloo serves as well.
        vars(deepspeed.ops)["__compatible_ops__"] = {}
    backend = str(dist.get_backend())
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    # Whoever used accelerate in this process before, if only to log, has told it that there is no DeepSpeed.
    AcceleratorState._reset_state(reset_partial_state=True)
    # On a CPU accelerate takes a DeepSpeed process for a single one unless it is told the backend.
    PartialState(backend=backend)


def _forget(*, destroy_group: bool) -> None:
    import deepspeed.comm.comm as deepspeed_comm
    from accelerate.state import AcceleratorState, GradientState
    from deepspeed.utils import groups
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    # ZeRO's hooks and the engine refer to each other; without this the model stays in memory until some later
    # collection.
    gc.collect()
    if destroy_group and dist.is_initialized():
        groups._release_process_group_references(group=None)
        deepspeed_comm.cdb = None
        dist.destroy_process_group()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _quiet() -> None:
    """Silence what the libraries say about themselves on every start; it would break the terminal's progress bars."""
    for name in ("deepspeed", "DeepSpeed", "accelerate", "transformers", "trl", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|deepspeed|accelerate|transformers|trl")
