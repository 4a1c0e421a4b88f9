"""What the process that runs stages has to set before it imports torch, ray or transformers.

Libraries of this field print banners, start thread pools of the machine's size and write caches to the home directory
on import. One place decides all of that, for the local run and for a stage on a cluster alike.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from camel_ray.errors import CamelError, OutOfMemory, StorageUnavailable
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


_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = 32 << 20, (2 << 30) - 1, 64 << 20
"""Bytes. 32 MiB is the largest threshold that glibc takes."""


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
    # A few microseconds of it save a sleep between the operations of a small model, which halves the time of decoding.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    _keep_freed_memory()
    if debug:
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("DeepSpeed", "deepspeed", "ray", "transformers", "datasets", "accelerate", "trl", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Third-party deprecations are ours to follow up, not the user's to read.
    warnings.simplefilter("ignore")


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 32 MiB for the next step instead of giving them back to the kernel.

    A step on a CPU allocates the same activations again and again; mapping their pages anew each time took a third of
    the CPU time of a small model. Child processes read the variables when they start, this one needs the calls.
    """
    variables = {
        "MALLOC_MMAP_THRESHOLD_": (-3, _MMAP_THRESHOLD),
        "MALLOC_TRIM_THRESHOLD_": (-1, _TRIM_THRESHOLD),
        "MALLOC_TOP_PAD_": (-2, _TOP_PAD),
    }
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl and macOS have not
    for name, (parameter, value) in variables.items():
        if name not in os.environ and mallopt is not None:
            os.environ[name] = str(value)
            mallopt(parameter, value)


@contextmanager
def known_failures(stage: str) -> Iterator[None]:
    """Turn a full disk and exhausted memory, wherever they struck, into errors of ours with a remedy."""
    try:
        yield
    except CamelError:
        raise
    except MemoryError as error:
        raise OutOfMemory(f"stage '{stage}': host memory ran out; use a smaller microBatchSize or maxLength") from error
    except Exception as error:
        if _disk_is_full(error):
            where = f" for {error.filename}" if isinstance(error, OSError) and error.filename else ""
            raise StorageUnavailable(
                f"stage '{stage}': no space left{where}; free some space and run again, finished work is kept"
            ) from error
        if _memory_ran_out(error):
            raise OutOfMemory(
                f"stage '{stage}': device memory ran out; "
                "use a smaller microBatchSize or maxLength, a higher zero, or offload"
            ) from error
        raise


def _disk_is_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # Libraries in C++ and Rust raise classes of their own; torch's writer of archives says only that it stopped short.
    text = str(error)
    return "os error 28" in text or "No space left on device" in text or "inline_container.cc" in text


def _memory_ran_out(error: Exception) -> bool:
    out_of_memory = getattr(sys.modules.get("torch"), "OutOfMemoryError", None)
    return (out_of_memory is not None and isinstance(error, out_of_memory)) or "can't allocate memory" in str(error)
