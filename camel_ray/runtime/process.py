"""What the process that runs stages has to set before it imports torch, ray or transformers.

Libraries of this field print banners, start thread pools of the machine's size and write caches to the home directory
on import. One place decides all of that, for the local run and for a stage on a cluster alike.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from camel_ray.errors import OutOfMemory, StorageUnavailable
from camel_ray.ray_session import protect_local_ray

_QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DS_ACCELERATOR_LOG_LEVEL": "error",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
}


def available_cores() -> int:
    """CPU cores this process may use: its affinity, limited by the cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2: the affinity is all there is to know
    return cores


def prepare_process(*, cores: int, debug: bool = False) -> None:
    """Set thread counts and quiet the libraries. Call it before torch is imported; a user's own settings win."""
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    protect_local_ray()
    # Waiting threads spin by default; where other processes want the same cores that slows a step down a hundred times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if debug:
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("DeepSpeed", "deepspeed", "ray", "transformers", "datasets", "accelerate", "trl", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Third-party deprecations are ours to follow up, not the user's to read.
    warnings.simplefilter("ignore")


@contextmanager
def known_failures(stage: str) -> Iterator[None]:
    """Turn a full disk and exhausted memory, wherever they struck, into errors of ours with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" for {error.filename}" if error.filename else ""
            raise StorageUnavailable(
                f"stage '{stage}': no space left{where}; free some space and run again, finished work is kept"
            ) from error
        raise
    except MemoryError as error:
        raise OutOfMemory(f"stage '{stage}': host memory ran out; use a smaller microBatchSize or maxLength") from error
    except RuntimeError as error:
        torch = sys.modules.get("torch")
        oom = getattr(torch, "OutOfMemoryError", None)
        if (oom is not None and isinstance(error, oom)) or "can't allocate memory" in str(error):
            raise OutOfMemory(
                f"stage '{stage}': device memory ran out; "
                "use a smaller microBatchSize or maxLength, a higher zero, or offload"
            ) from error
        if "No space left on device" in str(error) or "PytorchStreamWriter failed" in str(error):
            raise StorageUnavailable(
                f"stage '{stage}': no space left while writing; free some space and run again, finished work is kept"
            ) from error
        raise
