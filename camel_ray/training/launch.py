"""Starts the training processes of a plan and brings back their figures.

One worker trains in the calling process (Ray Train's in-process mode): starting a worker group takes longer than a
small stage. Several workers are Ray Train worker processes, on a Ray that is started when it is first needed. See
docs/decisions.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from camel_ray.errors import CamelError, OutOfMemory, WorkerLost
from camel_ray.ray_session import ensure_ray
from camel_ray.training.checkpoint import newest, wait_for_writers
from camel_ray.training.plan import TrainingPlan

_START_SECONDS = "600"
"""How long Ray Train waits for its workers: a cluster may have to start machines first."""

_ORPHAN_SECONDS = 60.0
"""Ray notices within seconds that the driver of its workers is gone."""


def fit(plan: TrainingPlan) -> dict[str, Any]:
    """Run the plan to its end and return its figures; continues from the newest intact checkpoint.

    Raises what the training function raised, WorkerLost if a worker process died, OutOfMemory if it was killed for
    memory.
    """
    plan.work.mkdir(parents=True, exist_ok=True)
    wait_for_writers(plan.work, seconds=_ORPHAN_SECONDS)
    plan.result.unlink(missing_ok=True)
    resume = newest(plan.checkpoints, run=plan.digest, progress=plan.progress)
    if resume is not None:
        plan.progress.note(f"stage '{plan.stage}' continues at step {int(resume.name.rsplit('-', 1)[1])}")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _START_SECONDS)
    # Its cleaner of abandoned workers asks the dashboard for them, which a local Ray has not, and complains every
    # second.
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    if plan.workers > 1:
        ensure_ray(cores=plan.cores)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"plan": plan, "resume": resume},
        scaling_config=_scaling(plan, ScalingConfig),
        run_config=RunConfig(
            # A name of its own per attempt: under a known name Ray Train would bring back its own, older state.
            name=f"{plan.run_name}-{plan.stage}-{os.getpid()}",
            storage_path=str(plan.work / "ray"),
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    with _own_interrupts():
        try:
            trainer.fit()
        except CamelError:
            raise
        except Exception as error:
            cause = _cause(plan, error)
            if cause is error:
                raise
            raise cause from error
    figures: dict[str, Any] = json.loads(plan.result.read_text(encoding="utf-8"))
    return figures


def _worker(config: dict[str, Any]) -> None:
    import ray.train

    from camel_ray.training.loop import train
    from camel_ray.training.process import Rank

    context = ray.train.get_context()
    rank = Rank(context.get_world_rank(), context.get_local_rank(), context.get_world_size())
    train(config["plan"], rank, config["resume"])


def _scaling(plan: TrainingPlan, scaling_config: Any) -> Any:
    if plan.workers == 1:
        return scaling_config(num_workers=0)
    import ray

    use_gpu = ray.cluster_resources().get("GPU", 0) >= plan.workers
    return scaling_config(
        num_workers=plan.workers, use_gpu=use_gpu, resources_per_worker={"CPU": 1, "GPU": int(use_gpu)}
    )


def _cause(plan: TrainingPlan, error: Exception) -> BaseException:
    """What really went wrong in a worker, freed from Ray Train's wrappers."""
    import ray.exceptions

    found = [_unwrapped(failure) for failure in getattr(error, "worker_failures", {}).values()]
    for failure in found:
        if isinstance(failure, CamelError):
            return failure
    # The others then fail too, for want of the one that died: its death is what happened.
    dead = [failure for failure in found if isinstance(failure, ray.exceptions.RayError)]
    if any(isinstance(failure, ray.exceptions.OutOfMemoryError) for failure in dead):
        return OutOfMemory(
            f"stage '{plan.stage}': a worker was killed for memory; use fewer workers, a smaller microBatchSize, "
            "or a higher zero"
        )
    if dead:
        return WorkerLost(
            f"stage '{plan.stage}': a training process died; run again, it continues from the last checkpoint"
        )
    return found[0] if found else error


def _unwrapped(failure: BaseException) -> BaseException:
    """What a worker raised, or Ray's word about its death, without the exceptions it is wrapped in."""
    for name in ("health_check_failure", "cause", "_base_exc"):
        inner = getattr(failure, name, None)
        if isinstance(inner, BaseException):
            return _unwrapped(inner)
    return failure


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Give Ctrl-C back to the caller: Ray Train installs a handler and leaves it there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
